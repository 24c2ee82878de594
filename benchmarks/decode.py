"""How fast does the engine answer at ChatGLM3-6B's shape, beside transformers' `generate` and the memory's own speed?

Random bf16 weights; prompts of random tokens; greedy, and nothing ends a reply early. The floor of one stream is the
weights that a token needs (all but the embedding) over the bandwidth of a copy in the same run.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from rows import append_row
from torch import nn
from transformers import GenerationConfig
from workload import random_model

from glmtune.inference.engine.engine import Engine
from glmtune.inference.engine.request import Request, Sampling
from glmtune.loading.formats import quantize_layers

DEVICE = torch.device("cuda")


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a large copy on the device."""
    source = torch.empty(4 * 2**30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() / statistics.median(_seconds(lambda: target.copy_(source)) for _ in range(10))


def _seconds(work: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def prompts(count: int, length: int) -> list[list[int]]:
    """Prompts of random tokens, no two alike."""
    return torch.randint(100, 60000, (count, length)).tolist()


def request(prompt: Sequence[int], num_new: int, adapter: str | None = None) -> Request:
    """A greedy request that nothing ends early."""
    return Request(prompt, Sampling(max_new_tokens=num_new), adapter)


def decoding_rate(engine: Engine, requests: Sequence[Request]) -> dict[str, float]:
    """Tokens a second of all requests together, with their prompts and without; and the median step of full batches."""
    running = [engine.submit(one) for one in requests]
    torch.cuda.synchronize()
    begin = time.perf_counter()
    steps, full = [], 0.0
    while any(one.finish_reason is None for one in running):
        before = time.perf_counter()
        events = engine.step()
        if len(events) == len(requests):
            steps.append(time.perf_counter() - before)
    full = time.perf_counter() - begin
    num_new = sum(len(one.generated_ids) for one in running)
    median = statistics.median(steps[2:])
    return {
        "tokens_per_s": round(len(requests) / median, 1),
        "with_prompts_tokens_per_s": round(num_new / full, 1),
        "step_ms_median": round(1e3 * median, 3),
        "step_ms_max": round(1e3 * max(steps[2:]), 3),
    }


def first_token_ms(engine: Engine, others: int) -> float:
    """From submission to the first token of a prompt of 512 tokens, while others decode."""
    running = [engine.submit(request(prompt, 400)) for prompt in prompts(others, 64)]
    while others and min(len(one.generated_ids) for one in running) < 8:
        engine.step()
    times = []
    for prompt in prompts(7, 512):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        one = engine.submit(request(prompt, 2))
        while not one.generated_ids:
            engine.step()
        times.append(1e3 * (time.perf_counter() - begin))
        engine.cancel(one)
    for one in running:
        engine.cancel(one)
    return round(statistics.median(times[1:]), 2)


def generate_rate(model: Any, num_streams: int, length: int, num_new: int, cache: str | None) -> float:
    """Tokens a second of transformers' `generate`, without the prompt's pass."""
    input_ids = torch.tensor(prompts(num_streams, length), device=DEVICE)
    options: dict[str, Any] = {"cache_implementation": cache} if cache else {}

    def run(count: int) -> None:
        generation = GenerationConfig(
            max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0, eos_token_id=None, **options
        )
        model.generate(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), generation_config=generation)

    run(num_new)
    if cache:
        run(num_new)
    seconds = _seconds(lambda: run(num_new)) - _seconds(lambda: run(1))
    return round(num_streams * (num_new - 1) / seconds, 1)


def add_adapters(model: Any, count: int) -> Any:
    """Puts adapters with random weights on the query-key-value projections."""
    config = LoraConfig(r=8, lora_alpha=32, target_modules=["query_key_value"])
    model = get_peft_model(model, config, adapter_name="0")
    for number in range(1, count):
        model.add_adapter(str(number), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a CSV file, to which rows are appended")
    parser.add_argument("--without-generate", action="store_true", help="leave out transformers' own")
    parser.add_argument("--formats", nargs="*", default=["int8", "nf4", "fp8"])
    parser.add_argument("--commit", required=True)
    arguments = parser.parse_args()
    bandwidth = copy_bandwidth()
    model = random_model("cuda").eval()
    embedding = model.get_input_embeddings().weight
    num_bytes = sum(p.numel() * p.element_size() for p in model.parameters() if p is not embedding)
    floor = bandwidth / num_bytes
    print(f"copy {bandwidth / 1e12:.2f} TB/s, weights {num_bytes / 1e9:.2f} GB: floor {floor:.1f} tokens/s", flush=True)
    gpu = torch.cuda.get_device_name()

    def report(case: str, streams: int, context: str, **measured: Any) -> None:
        row = {"case": case, "streams": streams, "context": context, **dict.fromkeys(_FIELDS), **measured}
        row |= {"floor_one_stream_tokens_per_s": round(floor, 1), "copy_tb_per_s": round(bandwidth / 1e12, 3)}
        append_row(arguments.output, row, arguments.commit, gpu=gpu, transformers=transformers.__version__)

    if not arguments.without_generate:
        for streams in (1, 64):
            report("generate", streams, "64 to 320", tokens_per_s=generate_rate(model, streams, 64, 256, None))
        report(
            "generate, static cache, compiled", 1, "64 to 320", tokens_per_s=generate_rate(model, 1, 64, 256, "static")
        )
    measure_base(model, report)
    report_adapters(add_adapters(model, 8), report)
    del model
    for quantize in arguments.formats:
        gc.collect()
        torch.cuda.empty_cache()
        quantized = random_model("cuda").eval()
        quantize_layers(quantized, quantize)
        engine = Engine(quantized, None, max_rows=64, num_blocks=4096)
        report(quantize, 1, "64 to 320", **decoding_rate(engine, [request(prompts(1, 64)[0], 256)]))
        report(quantize, 64, "64 to 320", **decoding_rate(engine, [request(p, 256) for p in prompts(64, 64)]))
        del engine, quantized


_FIELDS = ("tokens_per_s", "with_prompts_tokens_per_s", "step_ms_median", "step_ms_max", "first_token_ms")


def measure_base(model: Any, report: Callable[..., None]) -> None:
    """One, 64 and 256 streams, and the first token."""
    engine = Engine(model, None, max_rows=256, num_blocks=12000)
    for length in (64, 512, 1792):
        one = decoding_rate(engine, [request(prompts(1, length)[0], 256)])
        report("engine", 1, f"{length} to {length + 256}", **one)
    for streams in (8, 64, 256):
        rates = [decoding_rate(engine, [request(p, 256) for p in prompts(streams, 64)]) for _ in range(2)]
        report("engine", streams, "64 to 320", **rates[-1])  # the first records the graphs
    for others in (0, 32):
        report("engine, first token of 512", others + 1, "512", first_token_ms=first_token_ms(engine, others))
    del engine


def report_adapters(model: Any, report: Callable[..., None]) -> None:
    """One stream and 64 with one adapter, and 64 over eight."""
    engine = Engine(model, None, max_rows=64, num_blocks=4096)
    report("engine, one adapter", 1, "64 to 320", **decoding_rate(engine, [request(prompts(1, 64)[0], 256, "0")]))
    for count in (1, 8):
        requests = [request(p, 256, str(number % count)) for number, p in enumerate(prompts(64, 64))]
        rates = [decoding_rate(engine, requests) for _ in range(2)]
        report(f"engine, {count} adapters", 64, "64 to 320", **rates[-1])


if __name__ == "__main__":
    main()
