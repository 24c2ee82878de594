"""How much of the engine's speed reaches the clients of the server, beside the engine alone?

    python benchmarks/serve.py results/serve.csv --commit COMMIT           on a GPU: ChatGLM3-6B's shape, random weights
    python benchmarks/serve.py results/serve.csv --commit COMMIT --cpu     the embedded base
    python benchmarks/serve.py results/serve.csv --commit COMMIT --paced 170    an engine that computes nothing, but
                                                                           takes its time: what does the server cost?

Server and engine are in one process, as with `glmtune serve`; the clients are in four others. Greedy, and nothing ends
a reply early. Everything has been computed once before it is measured, each number of rows included.
"""

import argparse
import io
import itertools
import socket
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import uvicorn
from rows import append_row
from serve_clients import ClientProcess
from workload import random_model

from glmtune.config import embedded_base
from glmtune.inference.engine.engine import Engine, Event
from glmtune.inference.engine.request import Request, RunningRequest, Sampling
from glmtune.loading.bases import load_base, load_tokenizer
from glmtune.loading.runs import Loaded
from glmtune.server.app import create_app
from glmtune.server.auth import ApiKeys
from glmtune.server.metrics import Metrics
from glmtune.server.models import Models
from glmtune.server.requests import RequestLog
from glmtune.server.running import SWITCH_INTERVAL_S
from glmtune.server.service import Service
from glmtune.server.worker import Worker

CLIENTS, PROCESSES = 64, 4
PROMPT = 64
PAIRS = 9  # of first tokens


class AnyIdTokenizer:
    """The embedded base's tokenizer for a larger vocabulary: it decodes any id as one that it knows.

    Replies never end early, for there is no token that ends them.
    """

    def __init__(self) -> None:
        self._own = load_tokenizer(embedded_base())
        self.init_kwargs: dict[str, Any] = {}
        self.all_special_ids: list[int] = []
        self.stop_token_ids: list[int] = []
        self.template = "chatglm3"

    def decode_text(self, token_ids: list[int]) -> str:
        return self._own.decode_text([300 + token_id % 4000 for token_id in token_ids])


class TimedEngine(Engine):
    """An engine that notes when steps with all rows end, and how long they have taken together."""

    def step(self) -> list[Event]:
        events = super().step()
        note(self, events)
        return events


class PacedEngine:
    """Gives everybody a token a step, and computes nothing: it sleeps as long as a device would compute.

    Args:
        steps_per_s: Its pace.
    """

    num_blocks = num_free_blocks = num_waiting = 0
    max_rows = CLIENTS

    def __init__(self, steps_per_s: float) -> None:
        self._step_s = 1 / steps_per_s
        self._running: list[RunningRequest] = []

    @property
    def num_running(self) -> int:
        return len(self._running)

    def submit(self, request: Request) -> RunningRequest:
        running = RunningRequest(request, request.sampling, 0, [], list(request.prompt_ids))
        self._running.append(running)
        return running

    def cancel(self, running: RunningRequest) -> None:
        if running in self._running:
            self._running.remove(running)

    def step(self) -> list[Event]:
        time.sleep(self._step_s)
        events = []
        for number, running in enumerate(list(self._running)):
            token_id = (977 * len(running.token_ids) + number) % 4000
            running.token_ids.append(token_id)
            if len(running.token_ids) == running.max_length:
                running.finish_reason = "length"
                self._running.remove(running)
            events.append(Event(running, [token_id], running.finish_reason))
        note(self, events)
        return events


def note(engine: Any, events: list[Event]) -> None:
    """Notes the end of a step that all clients had part in; 0 for any other."""
    engine.ends.append(time.perf_counter() if len(events) == CLIENTS else 0.0)


def full_step_ms(engine: Any) -> float:
    """The mean time from one full step to the next since the last time, in milliseconds."""
    ends, engine.ends = engine.ends, []
    times = [after - before for before, after in itertools.pairwise(ends) if before and after]
    return 1e3 * statistics.mean(times)


def prompts(count: int, length: int, seed: int) -> list[list[int]]:
    """Prompts of random tokens, no two alike."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(300, 4300, (count, length), generator=generator).tolist()


def warm_up(engine: Any) -> None:
    """Lets the number of rows fall from all to one, since each has a graph of its own."""
    for number, prompt in enumerate(prompts(CLIENTS, PROMPT, 1)):
        engine.submit(Request(prompt, Sampling(max_new_tokens=2 * (number + 1))))
    while engine.num_running or engine.num_waiting:
        engine.step()


def engine_rate(engine: Any, num_new: int, seed: int) -> float:
    """Tokens a second of all clients' requests, submitted at once, from submission to the last token."""
    sampling = Sampling(max_new_tokens=num_new)
    begin = time.perf_counter()
    running = [engine.submit(Request(prompt, sampling)) for prompt in prompts(CLIENTS, PROMPT, seed)]
    while any(one.finish_reason is None for one in running):
        engine.step()
    return CLIENTS * num_new / (time.perf_counter() - begin)


def engine_first_ms(engine: Any, length: int, seed: int, others: int) -> float:
    """Milliseconds from submission to the first token of a prompt, while so many others get theirs."""
    for prompt in prompts(others, PROMPT, seed):
        engine.submit(Request(prompt, Sampling(max_new_tokens=64 + 8 * PAIRS)))
    for _ in range(32 if others else 0):
        engine.step()
    times = []
    for prompt in prompts(PAIRS, length, seed + 1):
        begin = time.perf_counter()
        one = engine.submit(Request(prompt, Sampling(max_new_tokens=2)))
        while not one.generated_ids:
            engine.step()
        times.append(1e3 * (time.perf_counter() - begin))
        while one.finish_reason is None:
            engine.step()
    while engine.num_running:
        engine.step()
    return statistics.median(times[2:])


class ServedEngine:
    """A server of an engine on a free port, in a thread; what it logs goes nowhere."""

    def __init__(self, engine: Any, loaded: Loaded) -> None:
        opened = socket.create_server(("127.0.0.1", 0), backlog=2048)
        service = Service(
            Models(engine, loaded), Worker(engine, 4 * CLIENTS), Metrics(engine), ApiKeys(), RequestLog(io.BytesIO())
        )
        app = create_app(service)
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on"))
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [opened]}, name="loop", daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.05)
        self._clients = [ClientProcess(opened.getsockname()[1]) for _ in range(PROCESSES)]

    def rate(self, num_new: int, seed: int, is_streamed: bool) -> tuple[float, float]:
        """Tokens a second of all clients, who ask at once, and the median first token's milliseconds."""
        count = CLIENTS // PROCESSES
        for number, clients in enumerate(self._clients):
            clients.ask(count=count, prompt=PROMPT, new=num_new, is_streamed=is_streamed, seed=100 * seed + number)
        answers = [clients.answer() for clients in self._clients]
        seconds = max(one["end"] for one in answers) - min(one["begin"] for one in answers)
        return CLIENTS * num_new / seconds, statistics.median(ms for one in answers for ms in one["first_ms"])

    def first_ms(self, length: int, seed: int, others: int) -> float:
        """As `engine_first_ms`."""
        if others:
            self._clients[1].ask(count=others, prompt=PROMPT, new=64 + 8 * PAIRS, is_streamed=True, seed=seed)
            time.sleep(0.5)
        times = []
        for number in range(PAIRS):
            self._clients[0].ask(count=1, prompt=length, new=2, is_streamed=True, seed=seed + 1 + number)
            times += self._clients[0].answer()["first_ms"]
        if others:
            self._clients[1].answer()
        return statistics.median(times[2:])

    def cpu_s(self) -> dict[str, float]:
        """Processor time of the loop's thread and of the engine's, so far, and the clock."""
        threads = {thread.name: thread.ident for thread in threading.enumerate() if thread.ident}
        clocks = {name: time.pthread_getcpuclockid(threads[name]) for name in ("loop", "engine")}
        return {name: time.clock_gettime(clock) for name, clock in clocks.items()} | {"wall": time.perf_counter()}

    def stop(self) -> None:
        """Ends server and clients."""
        for clients in self._clients:
            clients.close()
        self._server.should_exit = True
        self._thread.join()


def main() -> None:
    """Measures, and appends a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a CSV file, to which a row is appended")
    parser.add_argument("--commit", default="")
    parser.add_argument("--cpu", action="store_true", help="the embedded base on the CPU")
    parser.add_argument("--paced", type=float, metavar="STEPS_PER_S", help="no model at all")
    parser.add_argument("--rounds", type=int, default=4, help="of which the first does not count")
    arguments = parser.parse_args()
    tokenizer: Any = AnyIdTokenizer()
    engine: Any
    if arguments.paced:
        model, device, length, num_new = load_base(None)[0], f"{arguments.paced:g} steps/s", 256, 400
        engine = PacedEngine(arguments.paced)
    elif arguments.cpu:
        model, device, length, num_new = load_base(None)[0].eval(), "CPU", 256, 128
        engine = TimedEngine(model, tokenizer, max_rows=CLIENTS)
    else:
        model, device, length, num_new = random_model("cuda").eval(), torch.cuda.get_device_name(), 512, 512
        engine = TimedEngine(model, tokenizer, max_rows=CLIENTS, num_blocks=4096)
    engine.ends = []
    warm_up(engine)
    rates = [engine_rate(engine, num_new, 10 + number) for number in range(arguments.rounds)]
    alone_step_ms = full_step_ms(engine)
    alone_first, alone_first_busy = (engine_first_ms(engine, length, 50, others) for others in (0, CLIENTS - 1))
    engine.ends = []
    served = ServedEngine(engine, Loaded(model, tokenizer, "chatglm3", None, "", None))
    served.rate(num_new, 20, is_streamed=True)
    full_step_ms(engine)
    before = served.cpu_s()
    streamed = [served.rate(num_new, 20 + number, is_streamed=True) for number in range(1, arguments.rounds)]
    after = served.cpu_s()
    streamed_step_ms = full_step_ms(engine)
    whole = [served.rate(num_new, 30 + number, is_streamed=False) for number in range(arguments.rounds)]
    first, first_busy = (served.first_ms(length, 60, others) for others in (0, CLIENTS - 1))
    served.stop()
    share = {name: (after[name] - before[name]) / (after["wall"] - before["wall"]) for name in ("loop", "engine")}
    rate, streamed_rate = statistics.median(rates[1:]), statistics.median(rate for rate, _ in streamed)
    whole_rate = statistics.median(rate for rate, _ in whole[1:])
    row = {
        "clients": CLIENTS,
        "new_tokens": num_new,
        "engine_tokens_per_s": round(rate, 1),
        "streamed_tokens_per_s": round(streamed_rate, 1),
        "streamed_share": round(streamed_rate / rate, 3),
        "whole_tokens_per_s": round(whole_rate, 1),
        "whole_share": round(whole_rate / rate, 3),
        "engine_step_ms": round(alone_step_ms, 3),
        "streamed_step_ms": round(streamed_step_ms, 3),
        "loop_thread_share": round(share["loop"], 3),
        "engine_thread_share": round(share["engine"], 3),
        "prompt_of_first_token": length,
        "engine_first_token_ms": round(alone_first, 2),
        "first_token_ms": round(first, 2),
        "engine_first_token_busy_ms": round(alone_first_busy, 2),
        "first_token_busy_ms": round(first_busy, 2),
        "first_of_all_ms": round(statistics.median(first for _, first in streamed), 2),
    }
    append_row(arguments.output, row, arguments.commit, device=device, transformers=transformers.__version__)
    print(
        f"streams: {row['streamed_share']:.0%} of the engine alone; a step with all rows {streamed_step_ms:.2f} ms "
        f"instead of {alone_step_ms:.2f}; of a core, the loop's thread takes {share['loop']:.0%} and the engine's "
        f"{share['engine']:.0%}"
    )


if __name__ == "__main__":
    main()
