"""Whole samples packed into one sequence: what a training loss is computed on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from glmtune.ops import Segments

_TENSORS = (
    "input_ids",
    "position_ids",
    "cu_query",
    "cu_key",
    "key_indices",
    "slot_order",
    "slot_offsets",
    "label_indices",
    "labels",
    "label_cu_query",
    "label_cu_key",
    "label_key_indices",
    "label_slot_order",
    "label_slot_offsets",
    "label_weights",  # fp32, bit for bit
)


@dataclass(frozen=True)
class PackedBatch:
    """The whole samples of one forward pass, concatenated.

    All tensors are views of one buffer, so that pinning and copying to a device are one call each.

    Attributes:
        buffer: All tensors concatenated, int32.
        sizes: The length of each tensor of `_TENSORS` in the buffer; 0 for one that is absent.
        max_lengths: The most queries and keys of a segment, first for all tokens, then for
            those with labels.
        num_tokens: Tokens of the samples; a shared prefix counts once for each sample.
        num_samples: The number of samples.
        is_padded: Whether it is padded to one of a few buckets of fixed sizes.
    """

    buffer: Tensor
    sizes: tuple[int, ...]
    max_lengths: tuple[int, int, int, int]
    num_tokens: int
    num_samples: int
    is_padded: bool = False

    @classmethod
    def make(
        cls,
        tensors: Mapping[str, Tensor],
        *,
        max_lengths: tuple[int, int, int, int],
        num_tokens: int,
        num_samples: int,
        is_padded: bool = False,
    ) -> "PackedBatch":
        """Puts the tensors into one buffer.

        Args:
            tensors: int32 tensors by the names of `_TENSORS`, and `label_weights` in fp32; `key_indices`,
                `slot_order` and `slot_offsets` may be left out where the keys are simply all tokens.
            max_lengths: As the attribute.
            num_tokens: As the attribute.
            num_samples: As the attribute.
            is_padded: As the attribute.
        """
        empty = torch.empty(0, dtype=torch.int32)
        parts = [tensors.get(name, empty).view(torch.int32) for name in _TENSORS]
        sizes = tuple(len(part) for part in parts)
        return cls(torch.cat(parts), sizes, max_lengths, num_tokens, num_samples, is_padded)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedBatch":
        """The same on another device."""
        return replace(self, buffer=self.buffer.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PackedBatch":
        """The same in pinned memory, from which copies to a device are asynchronous."""
        return replace(self, buffer=self.buffer.pin_memory())

    @property
    def bucket(self) -> tuple[int, ...]:
        """A key that is equal for batches whose tensors all have the same sizes."""
        return *self.sizes, *self.max_lengths

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        return dict(zip(_TENSORS, self.buffer.split(self.sizes), strict=True))

    @property
    def input_ids(self) -> Tensor:
        """Token ids, [T]."""
        return self._tensors["input_ids"]

    @property
    def position_ids(self) -> Tensor:
        """Positions within the samples, [T]."""
        return self._tensors["position_ids"]

    @cached_property
    def segments(self) -> Segments:
        """Cumulative sequence lengths of queries and keys, with every token as a query."""
        return self._segments("", self.max_lengths[:2])

    @cached_property
    def label_segments(self) -> Segments:
        """Cumulative sequence lengths of queries and keys, with only the tokens with labels as queries."""
        return self._segments("label_", self.max_lengths[2:])

    @property
    def label_indices(self) -> Tensor:
        """The indices of the tokens that have a next token to predict, [L], ascending."""
        return self._tensors["label_indices"]

    @property
    def labels(self) -> Tensor:
        """The token to predict at each of them, [L]."""
        return self._tensors["labels"]

    @property
    def label_weights(self) -> Tensor:
        """The loss weight of each label, [L] fp32."""
        return self._tensors["label_weights"].view(torch.float32)

    def _segments(self, prefix: str, max_lengths: tuple[int, ...]) -> Segments:
        names = ("key_indices", "slot_order", "slot_offsets")
        gathering = {name: self._tensors[prefix + name] for name in names}
        return Segments(
            self._tensors[f"{prefix}cu_query"],
            self._tensors[f"{prefix}cu_key"],
            max_query=max_lengths[0],
            max_key=max_lengths[1],
            **(gathering if len(gathering["key_indices"]) else {}),
        )
