"""What packing and fused layers gain on a CPU: the demo's steps, one idea at a time.

    python benchmarks/cpu_steps.py --commit HASH --results benchmarks/results/cpu_steps.csv

The embedded tiny base, the example persona and the settings of `glmtune demo`.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from padding import PaddingCollator
from rows import append_row

from glmtune.adapters.lora import attach_lora
from glmtune.config import embedded_data, load_config
from glmtune.data.dataset import load_dataset
from glmtune.data.packing import PackingCollator
from glmtune.data.samples import SampleDataset
from glmtune.loading.bases import load_base
from glmtune.prompts import IGNORED_LABEL
from glmtune.training.packed_model import PackedModel, fuse

STEPS, WARM_UP = 50, 3
Features = Sequence[dict[str, Any]]


def pad_to_512(features: Features) -> dict[str, torch.Tensor]:
    """The tutorial's batch: every sample padded to 512 tokens."""
    longest = {"input_ids": numpy.zeros(512, int), "labels": numpy.full(512, IGNORED_LABEL)}
    return {name: values[:-1] for name, values in PaddingCollator(0)([*features, longest]).items()}


def steps(loss_of: Callable[[Features], torch.Tensor], parameters: Any, batches: Sequence[Features]) -> list[float]:
    """Milliseconds of each step: batch, forward, backward, clipping and optimiser."""
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, fused=True)
    times = []
    for features in batches:
        began = time.perf_counter()
        loss_of(features).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append((time.perf_counter() - began) * 1e3)
    return times[WARM_UP:]


def measure() -> Iterator[dict[str, object]]:
    """The rows."""
    config = load_config(embedded_data().with_name("demo.yaml"))
    base, tokenizer = load_base(None, "float32", "cpu")
    samples = SampleDataset(load_dataset(embedded_data(), tokenizer, max_length=config.data.max_length)[0])
    size = config.train["per_device_train_batch_size"]
    order = torch.randint(len(samples), (STEPS + WARM_UP, size), generator=torch.Generator().manual_seed(0))
    batches = [[samples[index] for index in rows] for rows in order.tolist()]
    for name in ("pad to 512", "pad to the longest", "packing", "packing, fused layers", "the same, shared prefix"):
        torch.manual_seed(0)
        model = PackedModel(attach_lora(base, config.lora)).train()
        if "fused" in name or "shared" in name:
            fuse(model)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        collator: Any = PackingCollator(shares_prefix="shared" in name)
        if name.startswith("pad to"):
            collator = pad_to_512 if "512" in name else PaddingCollator(0)

        def loss_of(features: Features, model: Any = model, collator: Any = collator) -> torch.Tensor:
            batch = collator(features)
            if "micro_batches" in batch:
                return sum(model(packed=packed) for packed in batch["micro_batches"]) / batch["total_weight"]
            return model(**batch).loss

        times = steps(loss_of, parameters, batches)
        model.base_model.unload()
        yield {
            "layout": name,
            "step_ms_min": round(min(times), 1),
            "step_ms_median": round(statistics.median(times), 1),
            "step_ms_max": round(max(times), 1),
        }


def main() -> None:
    """Measures and appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="the commit that is measured")
    arguments = parser.parse_args()
    for row in measure():
        machine = {"cpu_cores": os.cpu_count(), "processor": platform.machine()}
        append_row(arguments.results, row, arguments.commit, **machine)


if __name__ == "__main__":
    main()
