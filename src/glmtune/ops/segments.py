"""The segments of a packed batch, as cumulative sequence lengths of queries and keys for variable-length attention."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Ranges of queries, each with the range of keys that it attends to.

    In segment s, queries `cu_query[s] : cu_query[s + 1]` attend to keys `cu_key[s] : cu_key[s + 1]`, with a causal mask
    aligned at the end: the last query attends to all keys, the one before it to all but the last, and so on.

        sample of 4 tokens            queries 0 1 2 3      keys 0 1 2 3
        own 2 tokens after 3 shared   queries 3 4          keys 0 1 2 3 4

    Attributes:
        cu_query: Cumulative sequence lengths of the queries, [S + 1] int32.
        cu_key: Cumulative sequence lengths of the keys, [S + 1] int32.
        max_query: The largest number of queries in a segment.
        max_key: The largest number of keys in a segment.
        key_indices: The token of each key, [K] integer, if keys have to be gathered; None if they are all in order.
        slot_order: Positions in `key_indices`, sorted by token, [K]; None without `key_indices`.
        slot_offsets: Offsets of each token's positions in `slot_order`, [T + 1]; None without `key_indices`.
    """

    cu_query: Tensor
    cu_key: Tensor
    max_query: int
    max_key: int
    key_indices: Tensor | None = None
    slot_order: Tensor | None = None
    slot_offsets: Tensor | None = None

    @property
    def lengths(self) -> tuple[Tensor, Tensor, int, int]:
        """What kernels for variable-length attention are given: cumulative and largest lengths, of queries and keys."""
        return self.cu_query, self.cu_key, self.max_query, self.max_key

    @cached_property
    def bounds(self) -> list[tuple[slice, slice]]:
        """Query and key slices of each segment that has queries. Reading them makes the host wait for the device."""
        query, key = self.cu_query.tolist(), self.cu_key.tolist()
        return [
            (slice(query[s], query[s + 1]), slice(key[s], key[s + 1]))
            for s in range(len(query) - 1)
            if query[s] < query[s + 1]
        ]
