"""Without these, a run could be planned for smaller passes than it has, and run out of memory in one of them."""

import numpy
import pytest
import torch
from datasets import Dataset

from glmtune.data.packing import PackingCollator
from glmtune.data.samples import SampleDataset
from glmtune.planning.steps import size_step

SHORT_AND_LONG = [(10, 9)] * 50 + [(400, 200)] * 50


def make_samples(sizes: list[tuple[int, int]]) -> SampleDataset:
    """Samples of so many tokens, of which so many at the end are supervised."""
    rows = [{"input_ids": [1] * n, "labels": [-100] * (n - learnt) + [1] * learnt, "length": n} for n, learnt in sizes]
    return SampleDataset(Dataset.from_list(rows))


def random_sizes(seed: int, longest: int) -> list[tuple[int, int]]:
    draw = numpy.random.default_rng(seed)
    lengths = draw.integers(2, longest, size=150)
    return [(int(length), int(draw.integers(1, length))) for length in lengths]


@pytest.mark.parametrize(
    ("sizes", "max_tokens"),
    [
        (SHORT_AND_LONG, 1600),
        (SHORT_AND_LONG, 3200),
        (SHORT_AND_LONG, 300),
        *((random_sizes(seed, longest), max_tokens) for seed, longest, max_tokens in [
            (0, 60, 120), (1, 60, 480), (2, 300, 1200), (3, 300, 400), (4, 900, 3600), (5, 900, 500), (6, 12, 48),
        ]),
    ],
)  # fmt: skip
def test_no_pass_has_more_labels_or_tokens_than_planned(sizes: list[tuple[int, int]], max_tokens: int) -> None:
    """Steps of random samples, and of those with the most labels."""
    data = make_samples(sizes)
    planned = size_step(data, 8, max_tokens, shares_prefix=False, uses_graphs=False).largest
    collator = PackingCollator(max_tokens=max_tokens)
    shuffled = torch.Generator().manual_seed(1)
    steps = [torch.randperm(len(data), generator=shuffled)[:8].tolist() for _ in range(200)]
    steps.append(numpy.argsort(data.num_labels)[-8:].tolist())
    passes = [packed for step in steps for packed in collator([data[index] for index in step])["micro_batches"]]
    assert max(len(packed.labels) for packed in passes) <= planned.num_labels
    assert max(len(packed.input_ids) for packed in passes) <= planned.num_tokens


def test_labels_are_not_planned_for_that_no_pass_can_have() -> None:
    """A plan that is too large would quantise or checkpoint for nothing."""
    data = make_samples(SHORT_AND_LONG)
    assert size_step(data, 8, 3200, shares_prefix=False, uses_graphs=False).largest.num_labels == 8 * 200
    assert size_step(data, 8, 500, shares_prefix=False, uses_graphs=False).largest.num_labels == 50 * 9
    every = make_samples([(20, 5)] * 30)
    assert size_step(every, 8, 100, shares_prefix=False, uses_graphs=False).largest.num_labels == 25
