"""Do tokenising and packing keep up? Samples a second of each, on the CPU alone.

    python benchmarks/data_rate.py --data huanhuan.json --commit HASH --results benchmarks/results/data_rate.csv

The yardstick is the fastest training rate measured, with a factor of 20 to spare.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
from rows import append_row
from torch.utils.data import DataLoader
from train_throughput import SAMPLES_OF_8192_TOKENS
from workload import load_samples, make_tokenizer

from glmtune.data.packing import PackingCollator
from glmtune.data.samples import SampleDataset

REPEATS = 5


def seconds(action: Callable[[], None]) -> float:
    """The median time of an action over some repeats."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def measure(data: Path) -> Iterator[dict[str, object]]:
    """The rows: tokenising from file to data set, then loading and packing in the layouts of the target cases."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_tokenizer(data, Path(folder) / "tokenizer")
        samples = load_samples(data, tokenizer)
        count = iter(range(REPEATS))

        def tokenize() -> None:
            datasets.config.HF_DATASETS_CACHE = Path(folder) / f"cache-{next(count)}"  # or it is only read again
            load_samples(data, tokenizer)

        yield {"what": "reading and tokenising", "samples_per_s": round(len(samples) / seconds(tokenize))}
    dataset = SampleDataset(samples)
    for name, size, shares, pads in (
        ("packing 8 samples", 8, False, True),
        ("packing 8 samples, shared prefix", 8, True, True),
        ("packing 8,192 tokens", SAMPLES_OF_8192_TOKENS, False, False),
        ("packing 8,192 tokens, shared prefix", SAMPLES_OF_8192_TOKENS, True, False),
    ):
        collator = PackingCollator(shares_prefix=shares, pads_to_buckets=pads)
        loader = DataLoader(dataset, batch_size=size, shuffle=True, collate_fn=collator)
        rate = len(dataset) / seconds(lambda loader=loader: [None for _ in loader])  # type: ignore[misc]
        yield {"what": name, "samples_per_s": round(rate)}


def main() -> None:
    """Measures and appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="the commit that is measured")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    for row in measure(arguments.data):
        machine = {"cpu_cores": os.cpu_count(), "processor": platform.machine(), "datasets": datasets.__version__}
        append_row(arguments.results, row, arguments.commit, **machine)


if __name__ == "__main__":
    main()
