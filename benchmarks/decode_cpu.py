"""How fast does the engine answer on the CPU, beside transformers' `generate`?

    python benchmarks/decode_cpu.py --base FOLDER --commit HASH --results benchmarks/results/decode_cpu.csv

Greedy replies of a fixed length after prompts of random tokens, in fp32. Both take turns, and their medians are
compared, since others may use the machine as well; so is the time of the processor.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from rows import append_row
from transformers import GenerationConfig

from glmtune.demo import read_held_out
from glmtune.inference.answering import release
from glmtune.inference.engine.engine import Engine
from glmtune.inference.engine.request import Request, Sampling
from glmtune.inference.generate import answer, fit_prompts, generate_batches, generate_ids, max_prompt_tokens
from glmtune.inference.options import build_generation_config
from glmtune.loading.bases import load_base
from glmtune.prompts import Conversation, Message

PROMPT_TOKENS, WARM_UP = 32, 1
DEMO_TOKENS = 48
Replies = list[list[int]]


def timed(work: Callable[[], Replies]) -> tuple[Replies, float, float]:
    """What it returns, the seconds it took, and the processor's seconds."""
    began, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - began, time.process_time() - processor


def compared(turns: Iterator[tuple[Callable[[], Replies], Callable[[], Replies]]]) -> dict[str, Any]:
    """Medians of both, which take turns: first `generate`, then the engine."""
    times: list[list[tuple[float, float]]] = [[], []]
    num_different = num_tokens = 0
    for works in turns:
        (expected, *generate), (replies, *engine) = map(timed, works)
        num_tokens = sum(map(len, replies))
        for name_times, (wall, processor) in zip(times, (generate, engine), strict=True):
            name_times.append((wall / num_tokens, processor / num_tokens))
        num_different += sum(map(list.__ne__, replies, expected))
    row: dict[str, Any] = {}
    for name, measured in zip(("generate", "engine"), times, strict=True):
        wall, processor = (statistics.median(values) for values in zip(*measured[WARM_UP:], strict=True))
        row[f"{name}_tokens_per_s"] = round(1 / wall, 1)
        row[f"{name}_processor_ms_per_token"] = round(1e3 * processor, 3)
    return {**row, "replies_that_differ": num_different}


def random_prompts(model: Any, streams: int, num_new: int, repeats: int) -> dict[str, Any]:
    """A row of prompts of random tokens and replies of a fixed length."""
    engine = Engine(model, None, max_rows=streams)
    generation = GenerationConfig(
        max_new_tokens=num_new, min_new_tokens=num_new, do_sample=False, pad_token_id=0, eos_token_id=[2]
    )
    sampling = Sampling(num_new, min_new_tokens=num_new, stop_token_ids=(2,))

    def run_engine(prompts: Replies) -> Replies:
        running = [engine.submit(Request(prompt, sampling)) for prompt in prompts]
        while any(one.finish_reason is None for one in running):
            engine.step()
        return [one.generated_ids for one in running]

    def turns() -> Iterator[tuple[Callable[[], Replies], Callable[[], Replies]]]:
        for _ in range(WARM_UP + repeats):
            prompts = torch.randint(10, model.config.padded_vocab_size - 20, (streams, PROMPT_TOKENS)).tolist()
            yield partial(generate_ids, model, prompts, generation), partial(run_engine, prompts)

    return {"streams": streams, "new_tokens": num_new, "repeats": repeats, **compared(turns())}


def demo_questions(model: Any, tokenizer: Any, repeats: int) -> dict[str, Any]:
    """A row of what `glmtune demo` asks, an engine made each time included."""
    conversations = [Conversation((Message("user", question),)) for question in read_held_out()]
    generation = build_generation_config(tokenizer, model.config.seq_length, {"max_new_tokens": DEMO_TOKENS})
    prompts, _ = fit_prompts(conversations, tokenizer, tokenizer.template, max_prompt_tokens(model, generation))

    def in_order(pairs: list[tuple[int, list[int]]]) -> Replies:
        return [token_ids for _, token_ids in sorted(pairs)]

    def run_generate() -> Replies:
        return in_order(
            [pair for batch in generate_batches(model, prompts, generation, len(prompts)) for pair in batch]
        )

    def run_engine() -> Replies:
        release(model)
        steps = answer(model, tokenizer, prompts, generation, len(prompts))
        return in_order([pair for ended, _ in steps for pair in ended])

    row = compared((run_generate, run_engine) for _ in range(WARM_UP + repeats))
    return {"streams": len(prompts), "new_tokens": DEMO_TOKENS, "repeats": repeats, **row}


def main() -> None:
    """Measures and appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="a base folder; the embedded one if not given")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, torch.get_num_threads()])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="the commit that is measured")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model, tokenizer = load_base(arguments.base and str(arguments.base), "float32", "cpu")
    name = arguments.base.name if arguments.base else "embedded"

    def report(case: str, row: dict[str, Any]) -> None:
        row = {"case": case, "threads": torch.get_num_threads(), **row}
        machine = {"cpu_cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 1)}
        append_row(arguments.results, row, arguments.commit, **machine, transformers=transformers.__version__)

    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for streams in (1, 8):
            report(name, random_prompts(model, streams, arguments.new_tokens, arguments.repeats))
        if not arguments.base:
            report("embedded, the demo's questions", demo_questions(model, tokenizer, arguments.repeats))


if __name__ == "__main__":
    main()
