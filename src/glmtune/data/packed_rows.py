"""Whole samples packed into one row of tokens: what a training loss is computed on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from glmtune.ops import Segments

_WHOLE_NUMBERS = (
    "input_ids",
    "position_ids",
    "cu_query",
    "cu_key",
    "key_rows",
    "slot_order",
    "slot_offsets",
    "label_rows",
    "labels",
    "label_cu_query",
    "label_cu_key",
    "label_key_rows",
    "label_slot_order",
    "label_slot_offsets",
    "label_weights",  # fp32, bit for bit
)


@dataclass(frozen=True)
class PackedRows:
    """The whole samples of one forward pass, concatenated.

    All tensors are views of one buffer, so that pinning and copying to a device are one call each.

    Attributes:
        buffer: All fields concatenated, int32.
        sizes: The length of each field of `_WHOLE_NUMBERS` in the buffer; 0 for a field that is absent.
        max_lengths: The most queries and keys of a segment, first over all rows, then over the label rows.
        num_tokens: Tokens of the samples; a shared prefix counts once for each sample.
        num_samples: The number of samples.
        is_padded: Whether the rows are padded to one of a few fixed layouts.
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
        fields: Mapping[str, Tensor],
        *,
        max_lengths: tuple[int, int, int, int],
        num_tokens: int,
        num_samples: int,
        is_padded: bool = False,
    ) -> "PackedRows":
        """Puts the fields into one buffer.

        Args:
            fields: int32 tensors by the names of `_WHOLE_NUMBERS`, and `label_weights` in fp32; `key_rows`,
                `slot_order` and `slot_offsets` may be left out where the keys are simply all rows.
            max_lengths: As the attribute.
            num_tokens: As the attribute.
            num_samples: As the attribute.
            is_padded: As the attribute.
        """
        empty = torch.empty(0, dtype=torch.int32)
        parts = [fields.get(name, empty).view(torch.int32) for name in _WHOLE_NUMBERS]
        sizes = tuple(len(part) for part in parts)
        return cls(torch.cat(parts), sizes, max_lengths, num_tokens, num_samples, is_padded)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedRows":
        """The same on another device."""
        return replace(self, buffer=self.buffer.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PackedRows":
        """The same in pinned memory, from which copies to a device are asynchronous."""
        return replace(self, buffer=self.buffer.pin_memory())

    @property
    def layout(self) -> tuple[int, ...]:
        """A key that is equal for rows whose tensors all have the same sizes."""
        return *self.sizes, *self.max_lengths

    @cached_property
    def _fields(self) -> dict[str, Tensor]:
        return dict(zip(_WHOLE_NUMBERS, self.buffer.split(self.sizes), strict=True))

    @property
    def input_ids(self) -> Tensor:
        """Token ids, [T]."""
        return self._fields["input_ids"]

    @property
    def position_ids(self) -> Tensor:
        """Positions within the samples, [T]."""
        return self._fields["position_ids"]

    @cached_property
    def segments(self) -> Segments:
        """Cumulative sequence lengths of queries and keys, with every row as a query."""
        return self._segments("", self.max_lengths[:2])

    @cached_property
    def label_segments(self) -> Segments:
        """Cumulative sequence lengths of queries and keys, with only the label rows as queries."""
        return self._segments("label_", self.max_lengths[2:])

    @property
    def label_rows(self) -> Tensor:
        """The rows that have something to predict, [L], ascending."""
        return self._fields["label_rows"]

    @property
    def labels(self) -> Tensor:
        """The token that each label row is to predict, [L]."""
        return self._fields["labels"]

    @property
    def label_weights(self) -> Tensor:
        """The loss weight of each label row, [L] fp32."""
        return self._fields["label_weights"].view(torch.float32)

    def _segments(self, prefix: str, max_lengths: tuple[int, ...]) -> Segments:
        names = ("key_rows", "slot_order", "slot_offsets")
        gathering = {name: self._fields[prefix + name] for name in names}
        return Segments(
            self._fields[f"{prefix}cu_query"],
            self._fields[f"{prefix}cu_key"],
            max_query=max_lengths[0],
            max_key=max_lengths[1],
            **(gathering if len(gathering["key_rows"]) else {}),
        )
