"""Does the engine stay right, and its memory flat, while many threads ask, cancel and load adapters?

    python benchmarks/soak.py --commit HASH --results benchmarks/results/soak.csv

Requests of random length, adapter and sampling on the embedded tiny base, some of them cancelled, a cache that is too
small for all rows, and one of the adapters loaded anew whenever nobody uses it. Afterwards each request is asked again
by itself, of a second engine with one row, and the replies are compared.
"""

import argparse
import os
import random
import tempfile
import threading
import time
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rows import append_row
from torch import nn

from glmtune.adapters.adapter_files import save_adapter
from glmtune.adapters.lora import attach_lora
from glmtune.errors import AdapterError
from glmtune.inference.engine.engine import Engine
from glmtune.inference.engine.request import Request, RunningRequest, Sampling
from glmtune.loading.bases import load_base

THREADS, IN_FLIGHT = 4, 6  # threads that ask, and requests that each keeps going
NUM_BLOCKS, MAX_ROWS, MAX_PREFILL_TOKENS = 120, 16, 48
ADAPTERS: dict[str, dict[str, Any]] = {
    "attention": {"r": 8, "target_modules": ["query_key_value"]},
    "all": {"r": 4, "target_modules": "all-linear"},
    "mlp": {"r": 5, "target_modules": ["dense_h_to_4h", "dense_4h_to_h"]},
}


def save_adapters(folder: Path) -> None:
    """Saves adapters with random weights that change the replies, each in a folder of its name."""
    for name, lora in ADAPTERS.items():
        model = attach_lora(load_base(None, "float32", "cpu")[0], {"lora_alpha": 16, **lora})
        for path, parameter in model.named_parameters():
            if "lora_B" in path:
                nn.init.normal_(parameter, std=0.05)
        save_adapter(model, folder / name)


def random_request(chance: random.Random, beginnings: list[list[int]]) -> Request:
    """A request; the ids of half the prompts begin as others do."""
    length = chance.choice((1, 15, 16, 17, 33, chance.randint(2, 150)))
    prompt = [chance.randint(100, 4000) for _ in range(length)]
    if chance.random() < 0.5:
        prompt = chance.choice(beginnings) + prompt
    options: dict[str, Any] = {"do_sample": chance.random() < 0.5, "seed": chance.randrange(2**40)}
    if chance.random() < 0.3:
        options["repetition_penalty"] = chance.uniform(1, 1.5)
    if chance.random() < 0.2:
        options |= {"presence_penalty": chance.uniform(-1, 1), "frequency_penalty": chance.uniform(-1, 1)}
    if options["do_sample"]:
        options |= {"temperature": chance.uniform(0.3, 1.5), "top_k": chance.choice((0, 5, 50))}
        options |= {"top_p": chance.choice((1.0, 0.8)), "min_p": chance.choice((None, 0.05))}
    if chance.random() < 0.5:
        options |= {"stop_token_ids": (2, *(chance.randint(100, 4000) for _ in range(50)))}
        options |= {"min_new_tokens": chance.choice((0, 0, 5))}
    sampling = Sampling(chance.choice((1, 2, 16, chance.randint(3, 80))), **options)
    [adapter] = chance.choices((None, *ADAPTERS), (10, 10, 10, 1))  # the last is free now and then, to be loaded anew
    return Request(prompt, sampling, adapter)


class Ended(NamedTuple):
    """A reply, kept small, since memory is measured.

    Attributes:
        request: What was asked.
        reason: Why it ended.
        token_ids: The reply.
    """

    request: Request
    reason: str | None
    token_ids: array

    @classmethod
    def of(cls, running: RunningRequest) -> "Ended":
        """What is compared of a request that has ended."""
        return cls(running.request, running.finish_reason, array("i", running.generated_ids))


class Soak:
    """What the threads share.

    Args:
        engine: The engine.
        num_requests: Requests to be made in all.

    Attributes:
        ended: Those that have ended.
        rss: Resident memory in bytes, after each 1/40 of the requests.
        num_loaded: How often an adapter was loaded anew.
    """

    def __init__(self, engine: Engine, num_requests: int) -> None:
        self.ended: list[Ended] = []
        self.rss: list[int] = []
        self.num_loaded = 0
        self._engine = engine
        self._num_requests = num_requests

    def step(self) -> None:
        """Drives the engine until all requests have ended."""
        while len(self.ended) < self._num_requests:
            self._engine.step()
            if len(self.ended) * 40 >= self._num_requests * (len(self.rss) + 1):
                self.rss.append(resident_bytes())

    def ask(self, requests: list[Request], chance: random.Random) -> None:
        """Asks, a few at a time, and cancels some."""
        going: list[RunningRequest] = []
        for number, request in enumerate(requests, start=1):
            going.append(self._engine.submit(request))
            if chance.random() < 0.2:
                time.sleep(chance.expovariate(20))
                self._engine.cancel(chance.choice(going))
            while len(going) >= (IN_FLIGHT if number < len(requests) else 1):
                time.sleep(0.005)
                ended = [one for one in going if one.finish_reason is not None]
                self.ended += map(Ended.of, ended)
                going = [one for one in going if one not in ended]

    def load(self, name: str, folder: Path) -> None:
        """Loads an adapter anew as often as it can."""
        while len(self.ended) < self._num_requests:
            try:
                self._engine.load_adapter(name, folder)
                self.num_loaded += 1
            except AdapterError:  # in use
                pass
            time.sleep(0.05)


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(engine: Engine, requests: list[Request], reloaded: tuple[str, Path]) -> tuple[Soak, float]:
    """Makes all requests from several threads; returns their state, and the seconds it took."""
    soak = Soak(engine, len(requests))
    askers = [
        threading.Thread(target=soak.ask, args=(requests[number::THREADS], random.Random(number)))
        for number in range(THREADS)
    ]
    threads = [threading.Thread(target=soak.step), threading.Thread(target=soak.load, args=reloaded), *askers]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return soak, time.monotonic() - began


def num_wrong(alone: Engine, ended: list[Ended]) -> int:
    """Replies that differ from those to the same requests by themselves; cancelled ones must be their beginnings."""
    wrong = 0
    for one in ended:
        [again] = [Ended.of(event.request) for event in alone.run([one.request]) if event.finish_reason is not None]
        expected = again._replace(token_ids=again.token_ids[: len(one.token_ids)], reason=one.reason)
        is_right = one == (expected if one.reason == "cancelled" else again)
        if not is_right:
            print(f"wrong: {one}\n  alone: {again}")
        wrong += not is_right
    return wrong


def main() -> None:
    """Runs it and appends a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="the commit that is measured")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    torch.manual_seed(arguments.seed)
    model, tokenizer = load_base(None, "float32", "cpu")
    engine = Engine(model, tokenizer, max_rows=MAX_ROWS, num_blocks=NUM_BLOCKS, max_prefill_tokens=MAX_PREFILL_TOKENS)
    alone = Engine(model, tokenizer, max_rows=1)
    with tempfile.TemporaryDirectory() as folder:
        save_adapters(Path(folder))
        for each in (engine, alone):
            for name in ADAPTERS:
                each.load_adapter(name, Path(folder, name))
        beginnings = [[chance.randint(100, 4000) for _ in range(length)] for length in (16, 40, 100)]
        requests = [random_request(chance, beginnings) for _ in range(arguments.requests)]
        soak, seconds = run(engine, requests, ("mlp", Path(folder, "mlp")))
    num_blocks, num_free = engine.num_blocks, engine.num_free_blocks
    half = len(soak.rss) // 2
    row = {
        "requests": len(soak.ended),
        "threads": THREADS + 2,
        "cancelled": sum(one.reason == "cancelled" for one in soak.ended),
        "adapter_loaded_anew": soak.num_loaded,
        "new_tokens": engine.num_generated,
        "seconds": round(seconds, 1),
        "wrong": num_wrong(alone, soak.ended),
        "blocks": num_blocks,
        "blocks_free_at_the_end": num_free,
        "rss_mib_half": round(soak.rss[half] / 2**20, 1),
        "rss_mib_max_second_half": round(max(soak.rss[half:]) / 2**20, 1),
        "rss_mib_end": round(soak.rss[-1] / 2**20, 1),
    }
    append_row(arguments.results, row, arguments.commit, cpu_cores=os.cpu_count())


if __name__ == "__main__":
    main()
