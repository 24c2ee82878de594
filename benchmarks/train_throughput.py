"""How fast LoRA trains at ChatGLM3-6B's shape: the target cases, and what each idea adds to the tutorial's way.

    python benchmarks/train_throughput.py --data huanhuan.json --commit HASH --results FILE.csv

Every case sees the same samples in the same order, with the same adapters and the same optimiser, through transformers'
Trainer, loader and clipping included. Speeds are medians over the steps after a warm-up.
"""

import argparse
import gc
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import peft
import torch
import transformers
from datasets import Dataset
from padding import PaddingCollator
from rows import append_row
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from workload import load_samples, make_tokenizer, random_model

from glmtune.adapters.lora import attach_lora
from glmtune.adapters.run_folder import RunManifest
from glmtune.data.packing import PackingCollator, TokenizedSample, pack
from glmtune.data.samples import SampleDataset
from glmtune.loading.formats import quantize_layers
from glmtune.prompts import IGNORED_LABEL
from glmtune.training.checkpointing import checkpoint_layers
from glmtune.training.flat import FlatParameters
from glmtune.training.graphs import GradientAccumulator
from glmtune.training.lora_trainer import LoraTrainer
from glmtune.training.packed_model import PackedModel, fuse

QKV = ["query_key_value"]
SAMPLES_OF_8192_TOKENS = 157  # at 52 tokens a sample


@dataclass(frozen=True)
class Case:
    """One row of the results.

    Attributes:
        name: What is measured.
        layout: How samples lie in memory: `pad-512`, `packed-sdpa` (one row, stock attention under a
            block mask), `packed` (variable-length attention), `shared` (the same, common beginnings once).
        head: The rows whose logits are computed: `all` or `label`.
        layers: `peft` (stock modules), `fused`, or `graphs` (fused, replayed as CUDA graphs).
        samples: Samples of an optimiser step.
        targets: Adapted layers.
        dropout: LoRA's dropout.
        max_tokens: Most tokens of a forward pass.
        checkpointing: Whether all layers are checkpointed.
        quantize: How the base is held.
        attention: Attention of the stock model.
        is_bare: Whether to go without the Trainer, in the shortest loop that does the same: what it costs.
        steps: Measured steps.
    """

    name: str
    layout: str = "packed"
    head: str = "label"
    layers: str = "graphs"
    samples: int = 8
    targets: Any = "query_key_value"
    dropout: float = 0.1
    max_tokens: int | None = None
    checkpointing: bool = False
    quantize: str = "none"
    attention: str = "sdpa"
    is_bare: bool = False
    steps: int = 60


ABLATION = [
    Case("tutorial: pad to 512", "pad-512", "all", "peft", attention="eager", checkpointing=True, steps=50),
    Case("without checkpointing", "pad-512", "all", "peft", attention="eager", steps=50),
    Case("padding removed", "packed-sdpa", "all", "peft", steps=50),
    Case("variable-length attention", "packed", "all", "peft", steps=50),
    Case("logits of label rows only", "packed", "label", "peft", steps=50),
    Case("fused layers", "packed", "label", "fused"),
    Case("CUDA graphs", "packed", "label", "graphs", steps=150),
    Case("shared prefix, dropout 0", "shared", "label", "graphs", dropout=0.0, steps=150),
]
TARGETS = [
    Case("CUDA graphs, without the Trainer", is_bare=True, steps=150),
    Case("tutorial's recipe, at most 14 GB", max_tokens=447, steps=150),
    Case("tutorial's recipe, all linears", targets="all-linear", steps=100),
    Case("8,192 tokens, qkv, dropout 0.1", samples=SAMPLES_OF_8192_TOKENS, layers="fused", steps=50),
    Case("8,192 tokens, qkv, dropout 0", samples=SAMPLES_OF_8192_TOKENS, layers="fused", dropout=0.0, steps=50),
    Case(
        "8,192 tokens, all linears, dropout 0",
        samples=SAMPLES_OF_8192_TOKENS,
        layers="fused",
        targets="all-linear",
        dropout=0.0,
        steps=50,
    ),
    Case(
        "8,192 tokens, all linears, dropout 0.1",
        samples=SAMPLES_OF_8192_TOKENS,
        layers="fused",
        targets="all-linear",
        steps=50,
    ),
    Case(
        "8,192 tokens, qkv, shared prefix",
        "shared",
        samples=SAMPLES_OF_8192_TOKENS,
        layers="fused",
        dropout=0.0,
        steps=50,
    ),
]
LARGE_ABLATION = [
    Case("8,192 tokens, padding removed", "packed", "all", "peft", SAMPLES_OF_8192_TOKENS, steps=20),
    Case("8,192 tokens, label rows only", "packed", "label", "peft", SAMPLES_OF_8192_TOKENS, steps=20),
]
FP8 = [
    Case(
        "8,192 tokens, qkv, fp8 base",
        samples=SAMPLES_OF_8192_TOKENS,
        layers="fused",
        quantize="fp8",
        steps=50,
    ),
    Case("tutorial's recipe, fp8 base", quantize="fp8", steps=150),
]


class StepClock(TrainerCallback):
    """Puts a mark on the device's time line at the end of each step.

    Attributes:
        marks: The marks.
        peak_allocated: Most bytes in use up to the end of the last step.
        peak_reserved: Most bytes that the allocator held.
    """

    def __init__(self) -> None:
        self.marks: list[torch.cuda.Event] = []
        self.peak_allocated = self.peak_reserved = 0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        self.marks.append(mark)
        self.peak_allocated, self.peak_reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()

    def durations_ms(self) -> list[float]:
        torch.cuda.synchronize()
        return [first.elapsed_time(second) for first, second in pairwise(self.marks)]


class StockPackedCollator:
    """One row of samples with positions that restart, which stock attention keeps apart with a block mask."""

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = numpy.concatenate([feature["input_ids"] for feature in features])
        labels = [numpy.array(feature["labels"]) for feature in features]
        for sample in labels:
            sample[0] = IGNORED_LABEL  # or the sample before would predict it
        positions = numpy.concatenate([numpy.arange(len(feature["input_ids"])) for feature in features])
        batch = {"input_ids": ids, "labels": numpy.concatenate(labels), "position_ids": positions}
        return {name: torch.from_numpy(values.astype(numpy.int64)).unsqueeze(0) for name, values in batch.items()}


class AllRowsCollator(PackingCollator):
    """Packs with a label on every row, of no weight where there is nothing to learn: logits of all positions."""

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = super().__call__(features)
        everywhere = []
        for feature in features:
            ids = numpy.asarray(feature["input_ids"])
            everywhere.append(TokenizedSample(ids, numpy.arange(len(ids) - 1, dtype=numpy.int32), ids[1:]))
        packed = pack(everywhere)
        is_supervised = [numpy.asarray(feature["labels"])[1:] != IGNORED_LABEL for feature in features]
        packed.label_weights.copy_(torch.from_numpy(numpy.concatenate(is_supervised)))
        return {**batch, "micro_batches": [packed]}


class PadTo512(PaddingCollator):
    """Pads every sample to 512 tokens."""

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = [{"input_ids": numpy.zeros(512, int), "labels": numpy.full(512, IGNORED_LABEL)}]
        return {name: values[:-1] for name, values in super().__call__([*features, *longest]).items()}


def make_trainer(
    case: Case, model: PackedModel, samples: Dataset, folder: str, warm_up: int
) -> tuple[Trainer, StepClock, "Counting"]:
    """The trainer of a case, not yet run."""
    clock = StepClock()
    per_device = 4 if case.layout.startswith("pad") and case.samples == 8 else case.samples
    ours = case.layout in ("packed", "shared")
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=case.samples if ours else per_device,
        gradient_accumulation_steps=1 if ours else case.samples // per_device,
        max_steps=case.steps + warm_up,
        learning_rate=1e-4,
        logging_steps=20,
        log_level="error",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        accelerator_config={"non_blocking": True},
        seed=0,
    )
    options: dict[str, Any] = {
        "model": model,
        "args": arguments,
        "train_dataset": SampleDataset(samples),
        "callbacks": [clock],
    }
    if not ours:
        collators = {"pad-512": PadTo512(0), "packed-sdpa": StockPackedCollator()}
        counting = Counting(collators[case.layout])
        return Trainer(**options, data_collator=counting), clock, counting
    collator_class = PackingCollator if case.head == "label" else AllRowsCollator
    collator = collator_class(
        max_tokens=case.max_tokens, shares_prefix=case.layout == "shared", pads_to_buckets=case.layers == "graphs"
    )
    counting = Counting(collator)
    trainer = LoraTrainer(
        **options,
        data_collator=counting,
        initial_weights={},
        manifest=RunManifest(None),
        base_dtype=torch.bfloat16,
        uses_graphs=case.layers == "graphs",
    )
    return trainer, clock, counting


class Counting:
    """A collator that remembers how many tokens each batch had.

    Attributes:
        useful: The samples' own tokens.
        executed: Tokens computed, padding included and what is shared once.
    """

    def __init__(self, collator: Any) -> None:
        self.useful: list[int] = []
        self.executed: list[int] = []
        self._collator = collator

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = self._collator(features)
        self.useful.append(sum(len(feature["input_ids"]) for feature in features))
        if "micro_batches" in batch:
            self.executed.append(sum(len(packed.input_ids) for packed in batch["micro_batches"]))
        else:
            self.executed.append(batch["input_ids"].numel())
        return batch

    def per_step(self, batches_per_step: int, warm_up: int, steps: int) -> tuple[list[int], list[int]]:
        """Useful and executed tokens of the measured steps."""
        ends = range(warm_up * batches_per_step, (warm_up + steps) * batches_per_step, batches_per_step)
        useful, executed = (
            [sum(counts[i : i + batches_per_step]) for i in ends] for counts in (self.useful, self.executed)
        )
        return useful, executed


def run_bare(trainer: LoraTrainer, clock: StepClock) -> list[float]:
    """Loader, forward, backward, clipping and optimiser of a trainer's case, and nothing else; returns the losses."""
    model, arguments = trainer.model.train(), trainer.args
    flat = FlatParameters([parameter for parameter in model.parameters() if parameter.requires_grad])
    optimizer = torch.optim.AdamW([flat.flat], lr=arguments.learning_rate, fused=True)
    draw_seed = model.fused_layers.draw_graph_seed
    accumulator = GradientAccumulator(
        lambda packed: model(packed=packed), flat.parameters, flat.gradients, draw_seed, uses_graphs=True
    )
    losses, batches = [], iter(())
    for _ in range(arguments.max_steps):
        if (batch := next(batches, None)) is None:
            batches = iter(trainer.get_train_dataloader())
            batch = next(batches)
        flat.begin_step()
        for packed in batch["micro_batches"]:
            losses.append(accumulator.add(packed, 1 / batch["total_weight"]) / batch["total_weight"])
        torch.nn.utils.clip_grad_norm_([flat.flat], arguments.max_grad_norm)
        optimizer.step()
        clock.on_step_end()
    return torch.stack(losses).tolist()


def measure(case: Case, base: Any, samples: Dataset, floor_tokens_per_s: float) -> dict[str, Any]:
    """Runs a case; returns its row."""
    warm_up = 60 if case.layers == "graphs" else 8  # graphs are recorded as layouts come
    if case.layout.startswith("pad"):
        warm_up = 4
    base.set_attn_implementation(case.attention)
    torch.manual_seed(0)
    settings = {"r": 8, "lora_alpha": 32, "lora_dropout": case.dropout, "target_modules": case.targets}
    model = PackedModel(attach_lora(base, settings))
    if case.layers != "peft" and (reason := fuse(model)) is not None:
        raise RuntimeError(reason)
    if case.checkpointing:
        checkpoint_layers(model, base.config.num_layers)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        trainer, clock, counting = make_trainer(case, model, samples, folder, warm_up)
        trainer.remove_callback(PrinterCallback)
        losses = []
        if case.is_bare:
            losses = run_bare(trainer, clock)
        else:
            trainer.train()
        durations = clock.durations_ms()[warm_up - 1 :]
        peak = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        useful, executed = counting.per_step(trainer.args.gradient_accumulation_steps, warm_up, case.steps)
    losses = losses or [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    median_ms = statistics.median(durations)
    useful_per_s = statistics.median(tokens / ms * 1e3 for tokens, ms in zip(useful, durations, strict=True))
    executed_per_s = statistics.median(tokens / ms * 1e3 for tokens, ms in zip(executed, durations, strict=True))
    base.gradient_checkpointing_disable()
    model.base_model.unload()
    return {
        "case": case.name,
        "layout": case.layout,
        "logits": case.head,
        "layers": case.layers,
        "targets": case.targets if isinstance(case.targets, str) else ",".join(case.targets),
        "dropout": case.dropout,
        "base": case.quantize if case.quantize != "none" else "bf16",
        "checkpointing": case.checkpointing,
        "samples_per_step": case.samples,
        "max_tokens": case.max_tokens or "",
        "steps": case.steps,
        "samples_per_s": round(case.samples / median_ms * 1e3, 1),
        "useful_tokens_per_s": round(useful_per_s),
        "executed_tokens_per_s": round(executed_per_s),
        "share_of_floor": round(executed_per_s / floor_tokens_per_s, 3),
        "step_ms_min": round(min(durations), 2),
        "step_ms_median": round(median_ms, 2),
        "step_ms_max": round(max(durations), 2),
        "peak_allocated_gb": round(peak[0] / 1e9, 2),
        "peak_reserved_gb": round(peak[1] / 1e9, 2),
        "first_loss": round(losses[0], 4),
        "last_loss": round(losses[-1], 4),
    }


def measure_floor(num_tokens: int, repeats: int = 20) -> float:
    """Tokens a second of the layers' bf16 products alone, forward and input gradient, on random data."""
    shapes = [(4096, 4608), (4096, 4096), (4096, 27392), (13696, 4096)]
    make = lambda *shape: torch.randn(shape, device="cuda", dtype=torch.bfloat16)  # noqa: E731
    weights = [make(n, k) for k, n in shapes for _ in range(2)]  # twice, so that no cache keeps them
    inputs = [(make(num_tokens, weight.shape[1]), make(num_tokens, weight.shape[0])) for weight in weights]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    for repeat in range(repeats + 1):
        marks[repeat].record()
        for weight, (x, grad) in zip(weights, inputs, strict=True):
            x @ weight.T
            grad @ weight
    torch.cuda.synchronize()
    times = [first.elapsed_time(second) for first, second in pairwise(marks[1:])]
    return num_tokens / (statistics.median(times) / 1e3 / 2 * 28)


def main() -> None:
    """Runs the cases and appends their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="the commit that is measured")
    parser.add_argument("--only", nargs="*", help="cases whose names begin so")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = load_samples(arguments.data, make_tokenizer(arguments.data, Path(folder)))
    floors = {8: measure_floor(512), SAMPLES_OF_8192_TOKENS: measure_floor(8192)}
    print("floor, tokens/s:", {case: round(value) for case, value in floors.items()}, flush=True)
    base = random_model("cuda")
    is_quantized = False
    for case in [*ABLATION, *TARGETS, *LARGE_ABLATION, *FP8]:
        if arguments.only and not case.name.startswith(tuple(arguments.only)):
            continue
        if case.quantize != "none" and not is_quantized:
            quantize_layers(base, case.quantize)
            is_quantized = True
        row = measure(case, base, samples, floors[case.samples])
        versions = {
            "gpu": torch.cuda.get_device_name(),
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        }
        append_row(arguments.results, row, arguments.commit, **versions)


if __name__ == "__main__":
    main()
