"""Optimiser steps: the size and number of their passes."""

import math

import numpy
import torch

from glmtune.config import RunConfig
from glmtune.data.packing import MOST_GRAPHED_TOKENS, PackingCollator, TokenizedSample, padded_sizes, shared_prefixes
from glmtune.data.samples import SampleDataset
from glmtune.errors import ConfigError
from glmtune.planning.memory import Pass
from glmtune.planning.planner import StepShape

# Samples that are packed to measure the size of passes.
_MEASURED_SAMPLES = 2000
# Common prefixes are searched for among this many samples, and reported from this share of the tokens on.
_MOST_COMPARED, _LEAST_NOTED_SHARE = 64, 0.1


def shares_prefix(config: RunConfig) -> bool:
    """Whether a common prefix is computed once: as configured, otherwise if that is exact."""
    configured: bool | None = config.train.get("shared_prefix")
    return bool(config.lora.get("lora_dropout", 0.0) == 0) if configured is None else configured


def prefix_note(config: RunConfig, train: SampleDataset) -> list[str]:
    """A note if computing common prefixes once would pay and only dropout prevents it."""
    if shares_prefix(config) or config.train.get("shared_prefix") is not None:
        return []
    num_compared = min(_num_samples(config), len(train), _MOST_COMPARED)
    compared = (train[index] for index in range(num_compared))
    samples = [TokenizedSample.of(sample["input_ids"], sample["labels"]) for sample in compared]
    saved = sum(group.prefix_length * (len(group.members) - 1) for group in shared_prefixes(samples))
    share = saved / sum(len(sample.input_ids) for sample in samples)
    if share < _LEAST_NOTED_SHARE:
        return []
    return [
        f"{share:.0%} of the tokens are in prefixes that samples have in common. They are computed separately "
        f"for each sample, since lora_dropout={config.lora['lora_dropout']:g} drops different values in each; "
        "train.shared_prefix=true computes them once, with the same dropout for all"
    ]


def _num_samples(config: RunConfig) -> int:
    """Samples of an optimiser step on one device."""
    return int(config.train["per_device_train_batch_size"] * config.train["gradient_accumulation_steps"])


def num_optimizer_steps(config: RunConfig, num_samples: int, num_processes: int) -> int:
    """Optimiser steps of a whole run.

    Args:
        config: The configuration.
        num_samples: Samples to train on.
        num_processes: Devices that share the samples of an epoch.

    Raises:
        ConfigError: An epoch has no step, since `train.dataloader_drop_last` drops all samples.
    """
    samples_a_step = _num_samples(config) * num_processes
    drops_last = bool(config.train.get("dataloader_drop_last"))
    if drops_last and num_samples < samples_a_step:
        raise ConfigError(
            f"train.dataloader_drop_last=true leaves nothing to train on: a step takes {samples_a_step} samples "
            f"(per_device_train_batch_size x gradient_accumulation_steps x processes), and there are {num_samples}. "
            "Leave it out, or lower the batch size"
        )
    max_steps = int(config.train.get("max_steps", -1))
    if max_steps > 0:
        return max_steps
    steps_an_epoch = num_samples // samples_a_step if drops_last else math.ceil(num_samples / samples_a_step)
    return math.ceil(steps_an_epoch * float(config.train["num_train_epochs"]))


def size_step(config: RunConfig, train: SampleDataset, max_tokens: int, uses_graphs: bool) -> StepShape:
    """Packs random samples into steps as in training, and extrapolates to the largest possible pass.

    Args:
        config: The configuration.
        train: The samples.
        max_tokens: The limit of a pass.
        uses_graphs: Whether small passes are padded for CUDA graphs.
    """
    num_samples = _num_samples(config)
    collator = PackingCollator(max_tokens=max_tokens, shares_prefix=shares_prefix(config))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    num_steps = max(min(_MEASURED_SAMPLES, len(order)) // num_samples, 1)
    steps = [
        collator([train[index] for index in order[start * num_samples : (start + 1) * num_samples]])["micro_batches"]
        for start in range(num_steps)
    ]
    passes = [packed for step in steps for packed in step]
    lengths = sorted(train.lengths)
    most_tokens = max(min(max_tokens, sum(lengths[-num_samples:])), lengths[-1])
    most_in_pass = max(packed.num_tokens for packed in passes)
    # Samples that share a prefix are computed as fewer tokens than they have.
    most_computed = max(len(packed.input_ids) for packed in passes)
    num_tokens = max(-(-most_tokens * most_computed // most_in_pass), most_computed)
    num_labels = _most_labels(train, num_samples, most_tokens)
    num_segments = max(len(packed.segments.cu_query) for packed in passes)
    mean_tokens = sum(len(packed.input_ids) for packed in passes) / len(passes)
    mean_labels = sum(len(packed.label_indices) for packed in passes) / len(passes)
    if uses_graphs and num_tokens < MOST_GRAPHED_TOKENS:
        num_tokens, num_labels, num_segments = padded_sizes(num_tokens, num_labels, num_segments)
        mean_tokens, mean_labels, _ = padded_sizes(round(mean_tokens), round(mean_labels), num_segments)
    return StepShape(
        max_tokens, Pass(num_tokens, num_labels, num_segments), len(passes) / num_steps, mean_tokens, mean_labels
    )


def _most_labels(train: SampleDataset, num_samples: int, max_tokens: int) -> int:
    """An upper bound on the labels within the limits, taking samples with the most labels per token first."""
    lengths, labels = numpy.asarray(train.lengths), train.num_labels
    by_share = numpy.argsort(-labels / lengths, kind="stable")[:num_samples]
    tokens, total = numpy.cumsum(lengths[by_share]), numpy.cumsum(labels[by_share])
    within = int(numpy.searchsorted(tokens, max_tokens, side="right"))
    # One sample more, as far as there is room for it.
    tokens_left = max_tokens - (int(tokens[within - 1]) if within else 0)
    rest = min(tokens_left, int(labels[by_share[within]])) if within < len(by_share) else 0
    in_tokens = (int(total[within - 1]) if within else 0) + rest
    return max(min(in_tokens, int(numpy.sort(labels)[-num_samples:].sum())), 1)
