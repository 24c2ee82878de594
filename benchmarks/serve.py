"""How much of the engine's speed reaches the clients of the server, beside the engine alone?

    python benchmarks/serve.py results/serve.csv --commit COMMIT           on a GPU: ChatGLM3-6B's shape, random weights
    python benchmarks/serve.py results/serve.csv --commit COMMIT --cpu     the embedded base

Server and engine are in one process, as with `glmtune serve`; the clients are in another one. Greedy, and nothing ends
a reply early.
"""

import argparse
import asyncio
import io
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import uvicorn
from rows import append_row
from stream_client import Received, post
from workload import random_model

from glmtune.config import embedded_base
from glmtune.inference.engine.engine import Engine
from glmtune.inference.engine.request import Request, Sampling
from glmtune.loading.bases import load_base, load_tokenizer
from glmtune.loading.runs import Loaded
from glmtune.server.app import create_app
from glmtune.server.auth import ApiKeys
from glmtune.server.metrics import Metrics
from glmtune.server.models import Models
from glmtune.server.requests import write_to
from glmtune.server.running import SWITCH_INTERVAL_S
from glmtune.server.service import Service
from glmtune.server.worker import Worker

CLIENTS = 64
PROMPT, NEW = 64, 256


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


def prompts(count: int, length: int, seed: int) -> list[list[int]]:
    """Prompts of random tokens, no two alike."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(300, 4300, (count, length), generator=generator).tolist()


def engine_alone(engine: Engine, num_new: int, seed: int) -> dict[str, float]:
    """Tokens a second of all clients' requests, submitted at once, from submission to the last token."""
    sampling = Sampling(max_new_tokens=num_new)
    begin = time.perf_counter()
    running = [engine.submit(Request(prompt, sampling)) for prompt in prompts(CLIENTS, PROMPT, seed)]
    while any(one.finish_reason is None for one in running):
        engine.step()
    return {"tokens_per_s": CLIENTS * num_new / (time.perf_counter() - begin)}


def first_token_alone(engine: Engine, length: int) -> float:
    """Milliseconds from submission to the first token of a prompt, nobody else being there."""
    times = []
    for prompt in prompts(9, length, 99):
        begin = time.perf_counter()
        one = engine.submit(Request(prompt, Sampling(max_new_tokens=2)))
        while not one.generated_ids:
            engine.step()
        times.append(1e3 * (time.perf_counter() - begin))
        engine.cancel(one)
    return statistics.median(times[2:])


def start_server(engine: Engine, loaded: Loaded) -> tuple[int, uvicorn.Server]:
    """Serves on a free port, in a thread; what it logs goes nowhere."""
    opened = socket.create_server(("127.0.0.1", 0), backlog=2048)
    models = Models(engine, loaded)
    service = Service(models, Worker(engine, 4 * CLIENTS), Metrics(engine), ApiKeys())
    app = create_app(service, write_to(io.StringIO()))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on"))
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    return opened.getsockname()[1], server


def run_clients(port: int, length: int, num_new: int, rounds: int) -> dict[str, Any]:
    """The clients' numbers, from a process of their own."""
    command = [sys.executable, __file__, "--clients", port, length, num_new, rounds]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


async def clients(port: int, length: int, num_new: int, rounds: int) -> dict[str, Any]:
    """Rounds of all clients at once, streamed and not, and the first token of one alone; the first round warms up."""

    async def ask(prompt: list[int], is_streamed: bool, num_new: int = num_new) -> Received:
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": num_new, "stream": is_streamed}
        if is_streamed:
            body["stream_options"] = {"include_usage": True}
        received = await post(port, "/v1/completions", body)
        if received.status != 200:
            raise SystemExit(f"status {received.status}: {received.text}")
        return received

    measured: dict[str, Any] = {}
    for is_streamed in (True, False):
        rates, firsts = [], []
        for number in range(rounds):
            begin = time.perf_counter()
            asked = [ask(p, is_streamed) for p in prompts(CLIENTS, PROMPT, 1 + number + rounds * is_streamed)]
            received = await asyncio.gather(*asked)
            rates.append(CLIENTS * num_new / (time.perf_counter() - begin))
            firsts.append(1e3 * statistics.median(one.first_s for one in received))
        name = "streamed" if is_streamed else "whole"
        measured[f"{name}_tokens_per_s"] = statistics.median(rates[1:])
        if is_streamed:
            measured["first_of_all_ms"] = statistics.median(firsts[1:])
    alone = [1e3 * (await ask(prompt, True, 2)).first_s for prompt in prompts(9, length, 77)]
    measured["first_token_ms"] = statistics.median(alone[2:])
    return measured


def main() -> None:
    """Measures, and appends a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, nargs="?", help="a CSV file, to which a row is appended")
    parser.add_argument("--commit", default="")
    parser.add_argument("--cpu", action="store_true", help="the embedded base on the CPU")
    parser.add_argument("--rounds", type=int, default=4, help="of which the first does not count")
    parser.add_argument("--clients", type=int, nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.clients:
        print(json.dumps(asyncio.run(clients(*arguments.clients))))
        return
    if arguments.cpu:
        model, length, num_new, device = load_base(None)[0].eval(), 256, 64, "CPU"
    else:
        model, length, num_new = random_model("cuda").eval(), 512, NEW
        device = torch.cuda.get_device_name()
    tokenizer: Any = AnyIdTokenizer()
    engine = Engine(model, tokenizer, max_rows=CLIENTS, num_blocks=None if arguments.cpu else 4096)
    alone = [engine_alone(engine, num_new, 1000 + number)["tokens_per_s"] for number in range(arguments.rounds)]
    first_alone = first_token_alone(engine, length)
    port, server = start_server(engine, Loaded(model, tokenizer, "chatglm3", None, "", None))
    measured = run_clients(port, length, num_new, arguments.rounds)
    server.should_exit = True
    rate = statistics.median(alone[1:])
    row = {
        "clients": CLIENTS,
        "new_tokens": num_new,
        "engine_tokens_per_s": round(rate, 1),
        "streamed_tokens_per_s": round(measured["streamed_tokens_per_s"], 1),
        "streamed_share": round(measured["streamed_tokens_per_s"] / rate, 3),
        "whole_tokens_per_s": round(measured["whole_tokens_per_s"], 1),
        "whole_share": round(measured["whole_tokens_per_s"] / rate, 3),
        "prompt_of_first_token": length,
        "engine_first_token_ms": round(first_alone, 2),
        "first_token_ms": round(measured["first_token_ms"], 2),
        "first_of_all_ms": round(measured["first_of_all_ms"], 2),
    }
    append_row(arguments.output, row, arguments.commit, device=device, transformers=transformers.__version__)


if __name__ == "__main__":
    main()
