"""Packs the samples of an optimiser step into one sequence without padding, and lets samples share a common prefix.

    samples            A A A A a a      B B b      A A A C c         upper case: context; lower case: supervised
    packed             A A A A a a B B b A A A C c
    shared prefix      A A A | A a a | C c | B B b                   "A A A" computed once, seen by both behind it

Each sample attends only to itself, and its positions start at 0. The sampler decides which samples a step has; their
order in memory makes no difference to the loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy
import torch
from numpy.typing import NDArray

from glmtune.data.packed_batch import PackedBatch
from glmtune.prompts import IGNORED_LABEL

LossWeight = Literal["token", "sample"]
Ints = NDArray[numpy.int32]

# Above this many tokens the device takes longer than the host needs to launch its kernels, so CUDA graphs gain nothing.
MOST_GRAPHED_TOKENS = 2048

# The fewest segments of a bucket.
_LEAST_SEGMENTS = 16

# The most times that a group is split into smaller ones with longer prefixes.
_MOST_SPLITS = 64


class TokenizedSample(NamedTuple):
    """A sample as token ids and labels, ready to be packed.

    Attributes:
        input_ids: Token ids, [T].
        label_indices: The positions whose next token is supervised, [L], ascending.
        labels: The token to predict at each of them, [L].
    """

    input_ids: Ints
    label_indices: Ints
    labels: Ints

    @classmethod
    def of(cls, input_ids: Sequence[int] | Ints, labels: Sequence[int] | Ints) -> "TokenizedSample":
        """From ids and labels of equal length; labels are -100 where not supervised."""
        shifted = numpy.asarray(labels, dtype=numpy.int32)[1:]
        indices = numpy.flatnonzero(shifted != IGNORED_LABEL).astype(numpy.int32)
        return cls(numpy.asarray(input_ids, dtype=numpy.int32), indices, shifted[indices])

    @property
    def context(self) -> Ints:
        """The ids that other samples may share: all before the first token with a label."""
        return self.input_ids[: self.label_indices[0]] if len(self.label_indices) else self.input_ids[:-1]


@dataclass(frozen=True)
class PackingCollator:
    """A data collator for transformers' Trainer: the samples of an optimiser step, packed.

    Attributes:
        max_tokens: The most tokens of one forward pass; a larger step is split between samples. None for no limit.
        shares_prefix: Whether a prefix common to several samples is computed once.
        loss_weight: Whether each token has the same weight, or each sample.
        pads_to_buckets: Whether to pad small forward passes to one of a few buckets of fixed sizes, for CUDA graphs.
    """

    max_tokens: int | None = None
    shares_prefix: bool = False
    loss_weight: LossWeight = "token"
    pads_to_buckets: bool = False

    def __call__(self, features: Sequence[Mapping[str, Sequence[int] | Ints]]) -> dict[str, Any]:
        """Makes a batch.

        Args:
            features: B samples, each with `input_ids` and `labels` of equal length; other keys are ignored.

        Returns:
            `lengths`, the samples' lengths, [B] int64; `total_weight`, the sum of all label weights; `micro_batches`, a
            list of `PackedBatch`.
        """
        samples = [TokenizedSample.of(feature["input_ids"], feature["labels"]) for feature in features]
        micro_batches = [
            pack(
                part,
                shares_prefix=self.shares_prefix,
                loss_weight=self.loss_weight,
                pads_to_bucket=self.pads_to_buckets,
            )
            for part in split(samples, self.max_tokens)
        ]
        is_by_sample = self.loss_weight == "sample"
        return {
            "lengths": torch.tensor([len(sample.input_ids) for sample in samples]),
            "total_weight": float(sum(1 if is_by_sample else len(sample.labels) for sample in samples)),
            "micro_batches": micro_batches,
        }


def split(samples: Sequence[TokenizedSample], max_tokens: int | None) -> list[Sequence[TokenizedSample]]:
    """Splits samples, in order, into parts of at most `max_tokens` tokens; a longer sample is a part of its own."""
    if max_tokens is None:
        return [samples]
    starts, num_tokens = [0], 0
    for index, sample in enumerate(samples):
        if num_tokens and num_tokens + len(sample.input_ids) > max_tokens:
            starts.append(index)
            num_tokens = 0
        num_tokens += len(sample.input_ids)
    return [samples[start:stop] for start, stop in zip(starts, [*starts[1:], len(samples)], strict=True)]


def pack(
    samples: Sequence[TokenizedSample],
    *,
    shares_prefix: bool = False,
    loss_weight: LossWeight = "token",
    pads_to_bucket: bool = False,
) -> PackedBatch:
    """Packs samples into one sequence.

    Args:
        samples: At least one, each with at least one label.
        shares_prefix: As for `PackingCollator`.
        loss_weight: Likewise.
        pads_to_bucket: Whether to pad up to the next of a few buckets of fixed sizes, if there are at most
            `MOST_GRAPHED_TOKENS` tokens. Padding is a segment of its own, which no sample attends to and which has no
            weight in the loss.

    Returns:
        The batch, on the CPU.
    """
    builder = _BatchBuilder()
    groups = shared_prefixes(samples) if shares_prefix else [_Group(0, [index]) for index in range(len(samples))]
    for group in groups:
        members = [samples[index] for index in group.members]
        prefix = builder.add_prefix(members[0].input_ids[: group.prefix_length])
        for sample in members:
            builder.add_sample(sample, prefix, 1 / len(sample.labels) if loss_weight == "sample" else 1.0)
    if pads_to_bucket:
        builder.pad()
    return builder.finish(num_tokens=sum(len(sample.input_ids) for sample in samples), num_samples=len(samples))


class _Group(NamedTuple):
    """Samples that share their first tokens.

    Attributes:
        prefix_length: The number of tokens that they share.
        members: The indices of the samples.
    """

    prefix_length: int
    members: list[int]


def shared_prefixes(samples: Sequence[TokenizedSample]) -> list[_Group]:
    """Groups samples by common prefix; a sample may be in a group of its own.

    Prefixes do not nest: either a whole group shares its common prefix, or it is split into smaller groups with longer
    prefixes, whichever saves more tokens.
    """
    contexts = [sample.context for sample in samples]
    keys = [context.astype(">i4").tobytes() for context in contexts]  # big-endian bytes sort like the ids
    order = sorted(range(len(samples)), key=keys.__getitem__)
    common = [_common_length(contexts[a], contexts[b]) for a, b in pairwise(order)]
    return _best_groups(order, common, _MOST_SPLITS)[1]


def _best_groups(order: list[int], common: list[int], splits_left: int) -> tuple[int, list[_Group]]:
    """The most tokens that can be saved, and by which groups; `common` holds the tokens that neighbours share."""
    if len(order) == 1:
        return 0, [_Group(0, order)]
    length = min(common)
    saved_together = length * (len(order) - 1)
    if splits_left == 0 or max(common) == length:
        return saved_together, [_Group(length, order)]
    stops = [index + 1 for index, shared in enumerate(common) if shared == length]
    parts = [
        _best_groups(order[start:stop], common[start : stop - 1], splits_left - 1)
        for start, stop in zip([0, *stops], [*stops, len(order)], strict=True)
    ]
    saved_apart = sum(saved for saved, _ in parts)
    if saved_together >= saved_apart:
        return saved_together, [_Group(length, order)]
    return saved_apart, [group for _, groups in parts for group in groups]


def _common_length(first: Ints, second: Ints) -> int:
    shortest = min(len(first), len(second))
    different = numpy.flatnonzero(first[:shortest] != second[:shortest])
    return int(different[0]) if len(different) else shortest


class _Segments:
    """Collects segments: lengths of queries and keys, and the indices of the keys."""

    def __init__(self) -> None:
        self.query_lengths: list[int] = []
        self.key_lengths: list[int] = []
        self.key_indices: list[Ints] = []

    def add(self, num_queries: int, *key_indices: Ints) -> None:
        self.query_lengths.append(num_queries)
        self.key_lengths.append(sum(map(len, key_indices)))
        self.key_indices.extend(key_indices)

    def pad(self, num_queries: int, index: Ints, multiple: int) -> None:
        """Adds a segment of padding, whose keys repeat one token until their number is a multiple of `multiple`."""
        num_keys = sum(self.key_lengths) + num_queries
        self.add(num_queries, index.repeat(num_queries + -num_keys % multiple))

    def add_empty(self) -> None:
        """Adds empty segments until their number is a power of two."""
        for _ in range(_power_of_two(len(self.key_lengths), _LEAST_SEGMENTS) - len(self.key_lengths)):
            self.add(0)

    def tensors(self, prefix: str, num_tokens: int) -> dict[str, Ints]:
        """The tensors of `Segments` by name; without the indices of the keys where these are simply all tokens."""
        indices = numpy.concatenate(self.key_indices)
        tensors = {"cu_query": _starts(self.query_lengths), "cu_key": _starts(self.key_lengths)}
        if len(indices) != num_tokens or (indices != numpy.arange(num_tokens)).any():
            tensors["key_indices"] = indices
            tensors["slot_order"] = numpy.argsort(indices, kind="stable").astype(numpy.int32)
            tensors["slot_offsets"] = _starts(numpy.bincount(indices, minlength=num_tokens))
        return {prefix + name: values for name, values in tensors.items()}

    def max_lengths(self, is_padded: bool) -> tuple[int, int]:
        longest = max(self.query_lengths), max(self.key_lengths)
        return (_power_of_four(longest[0]), _power_of_four(longest[1])) if is_padded else longest


class _BatchBuilder:
    """Concatenates prefixes and samples."""

    def __init__(self) -> None:
        self._num_packed = 0
        self._ids: list[Ints] = []
        self._positions: list[Ints] = []
        self._label_indices: list[Ints] = []
        self._labels: list[Ints] = []
        self._weights: list[NDArray[numpy.float32]] = []
        self._segments, self._label_segments = _Segments(), _Segments()
        self._is_padded = False

    def add_prefix(self, ids: Ints) -> Ints:
        """Adds tokens that several samples share; returns their indices, which may be none."""
        indices = self._append(ids, 0)
        if len(indices):
            self._segments.add(len(indices), indices)
        return indices

    def add_sample(self, sample: TokenizedSample, prefix: Ints, weight: float) -> None:
        """Adds the tokens of a sample behind its prefix."""
        indices = self._append(sample.input_ids[len(prefix) :], len(prefix))
        self._segments.add(len(indices), prefix, indices)
        label_positions = sample.label_indices - len(prefix)
        self._label_indices.append(indices[label_positions])
        self._labels.append(sample.labels)
        self._weights.append(numpy.full(len(sample.labels), weight, dtype=numpy.float32))
        # Each run of consecutive labels is one segment of queries; its keys end with its last token.
        for run in numpy.split(label_positions, numpy.flatnonzero(numpy.diff(label_positions) > 1) + 1):
            if len(run):
                self._label_segments.add(len(run), prefix, indices[: run[-1] + 1])

    def pad(self) -> None:
        """Pads everything up to the next of a few sizes; there is always at least one token of padding."""
        if self._num_packed >= MOST_GRAPHED_TOKENS:
            return
        self._is_padded = True
        num_labels = sum(map(len, self._labels))
        num_packed, num_padded_labels, _ = padded_sizes(self._num_packed, num_labels, 0)
        is_gathered = sum(self._segments.key_lengths) != self._num_packed
        padding = self._append(numpy.zeros(num_packed - self._num_packed, dtype=numpy.int32), 0)
        if is_gathered:
            self._segments.pad(len(padding), padding[-1:], num_packed)
        else:
            self._segments.add(len(padding), padding)
        num_padding = num_padded_labels - num_labels
        self._label_indices.append(padding[-1:].repeat(num_padding))
        self._labels.append(numpy.zeros(num_padding, dtype=numpy.int32))
        self._weights.append(numpy.zeros(num_padding, dtype=numpy.float32))
        self._label_segments.pad(num_padding, padding[-1:], 2 * num_packed)
        for segments in (self._segments, self._label_segments):
            segments.add_empty()

    def _append(self, ids: Ints, first_position: int) -> Ints:
        indices = numpy.arange(self._num_packed, self._num_packed + len(ids), dtype=numpy.int32)
        self._num_packed += len(ids)
        self._ids.append(ids)
        self._positions.append(numpy.arange(first_position, first_position + len(ids), dtype=numpy.int32))
        return indices

    def finish(self, *, num_tokens: int, num_samples: int) -> PackedBatch:
        """Everything as one `PackedBatch`."""
        tensors = {
            "input_ids": numpy.concatenate(self._ids),
            "position_ids": numpy.concatenate(self._positions),
            "label_indices": numpy.concatenate(self._label_indices),
            "labels": numpy.concatenate(self._labels),
            "label_weights": numpy.concatenate(self._weights),
            **self._segments.tensors("", self._num_packed),
            **self._label_segments.tensors("label_", self._num_packed),
        }
        return PackedBatch.make(
            {name: torch.from_numpy(values) for name, values in tensors.items()},
            max_lengths=(
                *self._segments.max_lengths(self._is_padded),
                *self._label_segments.max_lengths(self._is_padded),
            ),
            num_tokens=num_tokens,
            num_samples=num_samples,
            is_padded=self._is_padded,
        )


def padded_sizes(num_tokens: int, num_labels: int, num_segments: int) -> tuple[int, int, int]:
    """Tokens, labels and segments after padding to a bucket."""
    padded = _round_up(num_tokens + 1, 64 if num_tokens < 1024 else 128)
    segments = _power_of_two(num_segments + 1, _LEAST_SEGMENTS)
    return padded, _round_up(num_labels + 1, padded // 2), segments


def _starts(lengths: Sequence[int] | NDArray[numpy.int64]) -> Ints:
    """Cumulative lengths: the start of each segment, and the end of the last."""
    return numpy.concatenate(([0], numpy.cumsum(lengths))).astype(numpy.int32)


def _power_of_two(number: int, least: int) -> int:
    """The smallest power of two that is at least `number` and at least `least`, itself a power of two."""
    return max(1 << (number - 1).bit_length(), least)


def _power_of_four(length: int) -> int:
    """The next of 128, 512, 2,048 ...: the longest segment as passed to a kernel, whose surplus blocks exit at once."""
    return 128 << 2 * max(-(-((length - 1) // 128).bit_length() // 2), 0)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
