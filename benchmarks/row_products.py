"""How near to the memory's rate are the matrix-vector products that decode a single stream?

    python benchmarks/row_products.py OUTPUT.csv --commit HASH

The four products of a layer of ChatGLM3-6B on random bf16, int8 and nf4 weights: each alone over as many weights as do
not fit the cache, then the four of 28 layers one after another. Each is recorded in a CUDA graph.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from decode import copy_bandwidth
from rows import append_row
from torch import nn

from glmtune.loading.quantized_linear import Int8Weights, Nf4Weights
from glmtune.ops import DenseLinear, FrozenLinear, Scratch

HIDDEN, FFN, LAYERS = 4096, 13696, 28
INPUTS = {"query_key_value": HIDDEN, "dense": HIDDEN, "dense_h_to_4h": HIDDEN, "dense_4h_to_h": FFN}
OUTPUTS = {"query_key_value": 4608, "dense": HIDDEN, "dense_h_to_4h": 2 * FFN, "dense_4h_to_h": HIDDEN}
CACHE_BYTES = 300e6  # several times the last level of an H100


def product(name: str, linear: FrozenLinear) -> Callable[[], torch.Tensor]:
    """The product of a row with what is beside it in a layer: norm, residual, SwiGLU."""
    x, norm = torch.randn(1, INPUTS[name], device="cuda").bfloat16(), torch.ones(HIDDEN, device="cuda").bfloat16()
    residual = torch.randn(1, HIDDEN, device="cuda").bfloat16()
    if name in ("query_key_value", "dense_h_to_4h"):
        return partial(linear.row_product, x, norm=(norm, 1e-5), is_gated=name == "dense_h_to_4h")
    return partial(linear.row_product, x, residual_1N=residual)


def microseconds(products: list[Callable[[], torch.Tensor]]) -> float:
    """Of all products, one after another: the median of nine replays of a graph."""
    for each in products[:4]:
        each()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for each in products:
            each()
    times = []
    for _ in range(9):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * begin.elapsed_time(end))
    return statistics.median(times)


def main() -> None:
    """Measures and appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a CSV file, to which rows are appended")
    parser.add_argument("--commit", required=True)
    arguments = parser.parse_args()
    bandwidth, scratch = copy_bandwidth(), Scratch()

    def linear(name: str, held: str) -> FrozenLinear:
        layer = nn.Linear(INPUTS[name], OUTPUTS[name], bias=False, device="cuda", dtype=torch.bfloat16)
        if held == "bf16":
            return DenseLinear(layer.weight.detach(), None)
        return (Int8Weights if held == "int8" else Nf4Weights)(layer, layer.weight, scratch).frozen

    def report(held: str, what: str, num_bytes: float, measured: float) -> None:
        floor = 1e6 * num_bytes / bandwidth
        row = {"weights": held, "product": what, "microseconds": round(measured, 2), "floor": round(floor, 2)}
        append_row(arguments.output, row, arguments.commit, gpu=torch.cuda.get_device_name())

    for held, weight_bytes in {"bf16": 2, "int8": 1, "nf4": 0.5 + 1 / 64}.items():
        num_bytes = {name: weight_bytes * INPUTS[name] * OUTPUTS[name] for name in INPUTS}
        for name in INPUTS:
            count = int(CACHE_BYTES / num_bytes[name]) + 1
            products = [product(name, linear(name, held)) for _ in range(count)]
            report(held, name, num_bytes[name], microseconds(2 * products) / len(2 * products))
        products = [product(name, linear(name, held)) for _ in range(LAYERS) for name in INPUTS]
        report(held, "the four, 28 layers", sum(num_bytes.values()), microseconds(products) / LAYERS)


if __name__ == "__main__":
    main()
