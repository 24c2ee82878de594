"""Which rows of a packed batch ask which: the layout that variable-length attention works on."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Stretches of queries, each with the stretch of keys that it sees.

    Segment s asks with queries `cu_query[s] : cu_query[s + 1]` and sees keys `cu_key[s] : cu_key[s + 1]`. Its last
    query sees all of them, the one before it all but the last, and so on: causal, aligned at the end.

        sample of 4 tokens            queries 0 1 2 3      keys 0 1 2 3
        own 2 tokens behind 3 shared  queries 3 4          keys 0 1 2 3 4

    Attributes:
        cu_query: Where queries of the segments begin, and the end of the last, [S + 1] int32.
        cu_key: The same of keys.
        max_query: The most queries of a segment.
        max_key: The most keys of a segment.
        key_rows: The row of each key, [K] integer, where keys have to be gathered; None where keys are the rows.
        slot_order: Positions in `key_rows`, sorted by row, [K]; None without `key_rows`.
        slot_offsets: Where in `slot_order` each row's positions begin, [T + 1]; likewise.
    """

    cu_query: Tensor
    cu_key: Tensor
    max_query: int
    max_key: int
    key_rows: Tensor | None = None
    slot_order: Tensor | None = None
    slot_offsets: Tensor | None = None

    @cached_property
    def bounds(self) -> list[tuple[slice, slice]]:
        """Queries and keys of each segment that has any. The host waits for the device."""
        query, key = self.cu_query.tolist(), self.cu_key.tolist()
        return [
            (slice(query[s], query[s + 1]), slice(key[s], key[s + 1]))
            for s in range(len(query) - 1)
            if query[s] < query[s + 1]
        ]

    @classmethod
    def of_lengths(cls, lengths: list[int], device: torch.device | str = "cpu") -> "Segments":
        """Samples of the given lengths one after the other, each seeing itself alone."""
        bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(device)
        return cls(bounds, bounds, max(lengths), max(lengths))
