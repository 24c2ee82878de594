"""Optimiser steps: the size and number of their passes."""

import math
from collections.abc import Mapping
from typing import Any

import numpy
import torch

from glmtune.data.packing import MOST_GRAPHED_TOKENS, PackingCollator, TokenizedSample, padded_sizes, shared_prefixes
from glmtune.data.samples import SampleDataset
from glmtune.errors import ConfigError
from glmtune.planning.memory import Pass, StepShape

# Samples that are packed to measure the size of passes.
_MEASURED_SAMPLES = 2000
# Common prefixes are searched for among this many samples, and reported from this share of the tokens on.
_MOST_COMPARED, _LEAST_NOTED_SHARE = 64, 0.1


def samples_a_step(train: Mapping[str, Any]) -> int:
    """Samples of an optimiser step on one device.

    Args:
        train: The `train` section of the configuration.
    """
    return int(train["per_device_train_batch_size"] * train["gradient_accumulation_steps"])


def num_optimizer_steps(train: Mapping[str, Any], num_samples: int, num_processes: int) -> int:
    """Optimiser steps of a whole run.

    Args:
        train: The `train` section of the configuration.
        num_samples: Samples to train on.
        num_processes: Devices that share the samples of an epoch.

    Raises:
        ConfigError: An epoch has no step, since `train.dataloader_drop_last` drops all samples.
    """
    in_a_step = samples_a_step(train) * num_processes
    drops_last = bool(train.get("dataloader_drop_last"))
    if drops_last and num_samples < in_a_step:
        raise ConfigError(
            f"train.dataloader_drop_last=true leaves nothing to train on: a step takes {in_a_step} samples "
            f"(per_device_train_batch_size x gradient_accumulation_steps x processes), and there are {num_samples}. "
            "Leave it out, or lower the batch size"
        )
    max_steps = int(train.get("max_steps", -1))
    if max_steps > 0:
        return max_steps
    steps_an_epoch = num_samples // in_a_step if drops_last else math.ceil(num_samples / in_a_step)
    return math.ceil(steps_an_epoch * float(train["num_train_epochs"]))


def prefix_note(samples: SampleDataset, num_samples: int, dropout: float) -> list[str]:
    """A note if computing common prefixes once would pay and only dropout prevents it.

    Args:
        samples: The samples to train on.
        num_samples: Samples of a step.
        dropout: The adapter's dropout.
    """
    compared = (samples[index] for index in range(min(num_samples, len(samples), _MOST_COMPARED)))
    tokenized = [TokenizedSample.of(sample["input_ids"], sample["labels"]) for sample in compared]
    saved = sum(group.prefix_length * (len(group.members) - 1) for group in shared_prefixes(tokenized))
    share = saved / sum(len(sample.input_ids) for sample in tokenized)
    if share < _LEAST_NOTED_SHARE:
        return []
    return [
        f"{share:.0%} of the tokens are in prefixes that samples have in common. They are computed separately "
        f"for each sample, since lora_dropout={dropout:g} drops different values in each; "
        "train.shared_prefix=true computes them once, with the same dropout for all"
    ]


def size_step(
    samples: SampleDataset, num_samples: int, max_tokens: int, *, shares_prefix: bool, uses_graphs: bool
) -> StepShape:
    """Packs random samples into steps as in training, and extrapolates to the largest possible pass.

    Args:
        samples: The samples to train on.
        num_samples: Samples of a step.
        max_tokens: The limit of a pass.
        shares_prefix: Whether a prefix common to several samples is computed once.
        uses_graphs: Whether small passes are padded for CUDA graphs.
    """
    collator = PackingCollator(max_tokens=max_tokens, shares_prefix=shares_prefix)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    num_steps = max(min(_MEASURED_SAMPLES, len(order)) // num_samples, 1)
    steps = [
        collator([samples[index] for index in order[start * num_samples : (start + 1) * num_samples]])["micro_batches"]
        for start in range(num_steps)
    ]
    passes = [packed for step in steps for packed in step]
    lengths = sorted(samples.lengths)
    most_tokens = max(min(max_tokens, sum(lengths[-num_samples:])), lengths[-1])
    most_in_pass = max(packed.num_tokens for packed in passes)
    # Samples that share a prefix are computed as fewer tokens than they have.
    most_computed = max(len(packed.input_ids) for packed in passes)
    num_tokens = max(-(-most_tokens * most_computed // most_in_pass), most_computed)
    num_labels = _most_labels(samples, num_samples, most_tokens)
    num_segments = max(len(packed.segments.cu_query) for packed in passes)
    mean_tokens = sum(len(packed.input_ids) for packed in passes) / len(passes)
    mean_labels = sum(len(packed.label_indices) for packed in passes) / len(passes)
    if uses_graphs and num_tokens < MOST_GRAPHED_TOKENS:
        num_tokens, num_labels, num_segments = padded_sizes(num_tokens, num_labels, num_segments)
        mean_tokens, mean_labels, _ = padded_sizes(round(mean_tokens), round(mean_labels), num_segments)
    return StepShape(
        max_tokens, Pass(num_tokens, num_labels, num_segments), len(passes) / num_steps, mean_tokens, mean_labels
    )


def _most_labels(samples: SampleDataset, num_samples: int, max_tokens: int) -> int:
    """An upper bound on the labels of a pass.

    As many as `num_samples` samples can have, and as `max_tokens` tokens can have where the samples with the most
    labels per token come first and only a part of the last one counts.
    """
    lengths, labels = numpy.asarray(samples.lengths), samples.num_labels
    by_share = numpy.argsort(-labels / lengths, kind="stable")
    tokens, total = numpy.cumsum(lengths[by_share]), numpy.cumsum(labels[by_share])
    in_tokens = math.ceil(numpy.interp(max_tokens, [0, *tokens], [0, *total]))
    in_samples = int(numpy.sort(labels)[-num_samples:].sum())
    return max(min(in_tokens, in_samples), 1)
