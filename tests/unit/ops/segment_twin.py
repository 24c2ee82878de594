"""Segments to try, and attention written out, for the tests beside this file."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from glmtune.ops import Segments

Random = Callable[..., Tensor]


def seed_of(number: int) -> Tensor:
    return torch.tensor([number])


def gathered(segments: Segments, key_indices: Sequence[int], num_rows: int) -> Segments:
    """The segments with keys taken from the given rows."""
    rows = torch.tensor(key_indices, dtype=torch.int32)
    counts = torch.bincount(rows, minlength=num_rows)
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0))).int()
    return replace(segments, key_indices=rows, slot_order=rows.argsort(stable=True).int(), slot_offsets=offsets)


def segments_of(query_lengths: Sequence[int], key_lengths: Sequence[int]) -> Segments:
    starts = [
        torch.tensor(list(itertools.accumulate(lengths, initial=0))).int() for lengths in (query_lengths, key_lengths)
    ]
    return Segments(*starts, max(query_lengths), max(key_lengths))


# A prefix of rows 0 to 2 that two samples share, rows 3 to 4 and 5 to 6, and a sample of its own, row 7.
SHARED = gathered(segments_of([3, 2, 2, 1], [3, 5, 5, 1]), [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7], 8)
SHARED_LABEL_ROWS = [3, 4, 6, 7]
SHARED_LABELS = gathered(segments_of([2, 1, 1], [5, 5, 1]), [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7], 8)
# Two samples, rows 0 to 4 and 5 to 7, of which the last two and the last one have something to predict.
PLAIN = segments_of([5, 3], [5, 3])
PLAIN_LABEL_ROWS = [3, 4, 7]
PLAIN_LABELS = segments_of([2, 1], [5, 3])


def explicit_attention(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    """One query and one head at a time."""
    output = torch.zeros_like(query)
    query_starts, key_starts = segments.cu_query.tolist(), segments.cu_key.tolist()
    groups = query.shape[1] // key.shape[1]
    for s, (begin, end) in enumerate(itertools.pairwise(query_starts)):
        for q, head in itertools.product(range(begin, end), range(query.shape[1])):
            seen = slice(key_starts[s], key_starts[s + 1] - (end - 1 - q))
            scores = (key[seen, head // groups] * query[q, head]).sum(-1) * scale
            weights = scores.exp() / scores.exp().sum()
            output[q, head] = (weights[:, None] * value[seen, head // groups]).sum(0)
    return output
