"""Does every fast mode learn what fp32 learns? 200 steps of each from the same start, and the first step's gradients.

    python benchmarks/loss_parity.py --data huanhuan.json --commit HASH --results FOLDER [--seeds 0 1 2] [--tiny]

ChatGLM3-6B's shape with random weights on a GPU, or with `--tiny` the embedded base on the CPU; the tutorial's recipe
at dropout 0, the same samples in the same order, another order for each seed. The reference is fp32 with stock PEFT
modules; "bf16, stock" is what everybody else runs, and its distance from fp32, over the seeds, is the spread that the
fast modes are measured against.
"""

import argparse
import gc
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from padding import PaddingCollator
from rows import append_row
from torch import Tensor
from workload import load_samples, make_tokenizer, random_model

from glmtune.adapters.lora import attach_lora
from glmtune.data.packing import TokenizedSample, pack
from glmtune.data.samples import SampleDataset
from glmtune.loading.bases import load_base
from glmtune.loading.formats import quantize_layers
from glmtune.prompts import IGNORED_LABEL
from glmtune.training.flat import FlatParameters
from glmtune.training.graphs import GradientAccumulator
from glmtune.training.packed_model import PackedModel, fuse

STEPS, SAMPLES, WINDOW = 200, 8, 20
Batch = Sequence[dict[str, Any]]


def with_adapter(base: Any, targets: str, is_random: bool) -> PackedModel:
    """The same adapter whatever the base's dtype; B random for gradients, zero for training."""
    torch.manual_seed(0)
    settings = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": targets}
    model = PackedModel(attach_lora(base, settings)).train()
    generator = torch.Generator(base.device).manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name or ("lora_B" in name and is_random):
                parameter.normal_(std=0.01, generator=generator)
    return model


def stock_loss(model: PackedModel, features: Batch) -> Tensor:
    """The token mean as a stock pipeline computes it: padded, all logits, cross entropy in fp32."""
    batch = {name: values.to(model.device) for name, values in PaddingCollator(0)(features).items()}
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED_LABEL
    )


def packed_loss(is_shared: bool) -> Callable[[PackedModel, Batch], Tensor]:
    """The token mean over packed rows."""

    def loss(model: PackedModel, features: Batch) -> Tensor:
        samples = [TokenizedSample.of(feature["input_ids"], feature["labels"]) for feature in features]
        packed = pack(samples, shares_prefix=is_shared).to(model.device)
        return model(packed=packed) / sum(len(sample.labels) for sample in samples)

    return loss


def train(
    model: PackedModel, batches: Sequence[Batch], loss_of: Callable[[PackedModel, Batch], Tensor], learning_rate: float
) -> list[float]:
    """The losses of all steps."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=True)
    losses = []
    for features in batches:
        loss = loss_of(model, features)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def train_with_graphs(
    model: PackedModel, batches: Sequence[Batch], is_shared: bool, learning_rate: float
) -> list[float]:
    """The same on flat parameters, replaying graphs: the way that `glmtune train` goes."""
    flat = FlatParameters([parameter for parameter in model.parameters() if parameter.requires_grad])
    optimizer = torch.optim.AdamW([flat.flat], lr=learning_rate, weight_decay=0.0, fused=True)
    draw_seed = model.fused_layers.draw_graph_seed
    accumulator = GradientAccumulator(
        lambda packed: model(packed=packed), flat.parameters, flat.gradients, draw_seed, uses_graphs=True
    )
    losses = []
    for features in batches:
        samples = [TokenizedSample.of(feature["input_ids"], feature["labels"]) for feature in features]
        num_labels = sum(len(sample.labels) for sample in samples)
        flat.begin_step()
        packed = pack(samples, shares_prefix=is_shared, pads_to_bucket=True)
        loss = accumulator.add(packed.to("cuda"), 1 / num_labels) / num_labels
        torch.nn.utils.clip_grad_norm_([flat.flat], 1.0)
        optimizer.step()
        losses.append(loss)
    return torch.stack(losses).tolist()


def gradient(model: PackedModel, features: Batch, loss_of: Callable[[PackedModel, Batch], Tensor]) -> Tensor:
    """All adapter gradients of one step in a row."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss_of(model, features), parameters)]).double()


class Modes:
    """Runs the modes of one seed one after the other on one base at a time."""

    def __init__(self, batches: Sequence[Batch], seed: int, learning_rate: float) -> None:
        self.batches, self.seed, self.learning_rate = batches, seed, learning_rate
        self.curves: dict[str, list[float]] = {}
        self.gradients: dict[tuple[str, str], Tensor] = {}

    def run(
        self, base: Any, name: str, *, is_fused: bool, is_shared: bool | None, uses_graphs: bool = False
    ) -> dict[str, Any]:
        """Runs a mode and returns its row; `is_shared` is None for stock batches."""
        loss_of = stock_loss if is_shared is None else packed_loss(is_shared)
        if not uses_graphs:
            for targets in ("query_key_value", "all-linear"):
                model = self._start(base, targets, True, is_fused)
                self.gradients[name, targets] = gradient(model, self.batches[0], loss_of)
                self._end(model)
        model = self._start(base, "query_key_value", False, is_fused)
        if uses_graphs:
            self.curves[name] = train_with_graphs(model, self.batches, bool(is_shared), self.learning_rate)
        else:
            self.curves[name] = train(model, self.batches, loss_of, self.learning_rate)
        self._end(model)
        return self._row(name)

    def _start(self, base: Any, targets: str, is_random: bool, is_fused: bool) -> PackedModel:
        model = with_adapter(base, targets, is_random)
        if is_fused and (reason := fuse(model)) is not None:
            raise RuntimeError(reason)
        return model

    def _end(self, model: PackedModel) -> None:
        model.base_model.unload()

    def _row(self, name: str) -> dict[str, Any]:
        """Last losses, distances from fp32, and gradient errors, also against those of stock bf16."""
        curve = self.curves[name]
        difference = torch.tensor(curve) - torch.tensor(self.curves["fp32, stock"])
        row: dict[str, Any] = {
            "mode": name,
            "seed": self.seed,
            "steps": len(curve),
            f"mean_loss_of_last_{WINDOW}": round(sum(curve[-WINDOW:]) / WINDOW, 5),
            "difference_to_fp32": round(float(difference[-WINDOW:].mean()), 5),
            "mean_absolute_difference": round(float(difference.abs().mean()), 5),
            "largest_difference": round(float(difference.abs().max()), 5),
        }
        for targets in ("query_key_value", "all-linear"):
            error, stock = self._error(name, targets), self._error("bf16, stock", targets)
            row[f"gradient_error_{targets}"] = "" if error is None else round(error, 5)
            row[f"of_stock_bf16s_{targets}"] = "" if error is None or stock is None else round(error / stock, 3)
        return row

    def _error(self, name: str, targets: str) -> float | None:
        if (name, targets) not in self.gradients:
            return None
        exact = self.gradients["fp32, stock", targets]
        return float((self.gradients[name, targets] - exact).norm() / exact.norm())


def run_seed(modes: Modes, make_base: Callable[[], Any], has_graphs: bool) -> Iterator[dict[str, Any]]:
    """The rows of one seed."""
    base = make_base().float()  # of weights that bf16 holds exactly
    yield modes.run(base, "fp32, stock", is_fused=False, is_shared=None)
    yield modes.run(base, "fp32, fused", is_fused=True, is_shared=False)
    base = base.bfloat16()
    gc.collect()
    torch.cuda.empty_cache()
    yield modes.run(base, "bf16, stock", is_fused=False, is_shared=None)
    yield modes.run(base, "bf16, packed", is_fused=False, is_shared=False)
    yield modes.run(base, "bf16, fused", is_fused=True, is_shared=False)
    yield modes.run(base, "bf16, fused, shared prefix", is_fused=True, is_shared=True)
    if has_graphs:
        yield modes.run(base, "bf16, fused, graphs", is_fused=True, is_shared=False, uses_graphs=True)
        yield modes.run(base, "bf16, fused, shared prefix, graphs", is_fused=True, is_shared=True, uses_graphs=True)
    quantize_layers(base, "fp8")
    yield modes.run(base, "fp8, fused", is_fused=True, is_shared=False)


def main() -> None:
    """Runs the modes and appends their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True, help="a folder")
    parser.add_argument("--commit", required=True, help="the commit that is measured")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="an order of the samples for each")
    parser.add_argument("--tiny", action="store_true", help="the embedded base, on the CPU")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.tiny:
            tokenizer = load_base(None, "float32", "cpu")[1]
        else:
            tokenizer = make_tokenizer(arguments.data, Path(folder))
        samples = SampleDataset(load_samples(arguments.data, tokenizer))
    make_base = (lambda: load_base(None, "bfloat16", "cpu")[0]) if arguments.tiny else (lambda: random_model("cuda"))
    environment = {
        "base": "tiny" if arguments.tiny else "ChatGLM3-6B's shape",
        "device": "CPU" if arguments.tiny else torch.cuda.get_device_name(),
        "transformers": transformers.__version__,
    }
    file = arguments.results / f"loss_parity{'_tiny' if arguments.tiny else ''}.csv"
    for seed in arguments.seeds:
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
        batches = [[samples[index] for index in order[i * SAMPLES : (i + 1) * SAMPLES]] for i in range(STEPS)]
        modes = Modes(batches, seed, 1e-3 if arguments.tiny else 1e-4)  # the tiny base wants larger steps
        for row in run_seed(modes, make_base, has_graphs=not arguments.tiny):
            append_row(file, row, arguments.commit, **environment)


if __name__ == "__main__":
    main()
