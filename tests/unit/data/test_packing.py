"""Without these, samples packed into one row could see each other, or count more or less than they should."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy
import pytest
import torch

from glmtune.data.packed_batch import PackedBatch
from glmtune.data.packing import (
    MOST_GRAPHED_TOKENS,
    PackingCollator,
    TokenizedSample,
    pack,
    shared_prefixes,
    split,
)
from glmtune.ops import Segments

NONE = -100

# Two turns: after 12 and 13, and after 16, the assistant speaks.
TURNS = {"input_ids": [11, 12, 13, 14, 15, 16, 17], "labels": [NONE, NONE, 13, 14, NONE, NONE, 17]}
SHORT = {"input_ids": [21, 22, 23], "labels": [NONE, NONE, 23]}


def sample(ids: Sequence[int], num_context: int) -> TokenizedSample:
    """A sample that learns everything behind its context."""
    return TokenizedSample.of(ids, [NONE] * num_context + list(ids[num_context:]))


def keys_seen(segments: Segments) -> list[list[int]]:
    """The rows that each query sees, in order of the queries."""
    seen = []
    cu_key = segments.cu_key.tolist()
    rows = list(range(cu_key[-1])) if segments.key_indices is None else segments.key_indices.tolist()
    for s, (begin, end) in enumerate(itertools.pairwise(segments.cu_query.tolist())):
        seen += [rows[cu_key[s] : cu_key[s + 1] - num_later] for num_later in reversed(range(end - begin))]
    return seen


# Samples


def test_a_row_learns_the_token_after_it() -> None:
    ids, rows, labels = TokenizedSample.of(**TURNS)
    assert ids.tolist() == TURNS["input_ids"]
    assert rows.tolist() == [1, 2, 5]
    assert labels.tolist() == [13, 14, 17]
    assert {array.dtype for array in (ids, rows, labels)} == {numpy.dtype("int32")}


def test_a_label_on_the_first_token_cannot_be_learnt() -> None:
    assert TokenizedSample.of([5, 6], [5, 6]).labels.tolist() == [6]


def test_context_ends_before_the_first_row_that_predicts() -> None:
    assert TokenizedSample.of(**TURNS).context.tolist() == [11]
    assert TokenizedSample.of(**SHORT).context.tolist() == [21]
    assert sample([1, 2, 3], 1).context.tolist() == []


# Layout by hand


def test_two_samples_by_hand() -> None:
    packed = pack([TokenizedSample.of(**TURNS), TokenizedSample.of(**SHORT)])
    assert packed.input_ids.tolist() == [11, 12, 13, 14, 15, 16, 17, 21, 22, 23]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    assert packed.label_indices.tolist() == [1, 2, 5, 8]
    assert packed.labels.tolist() == [13, 14, 17, 23]
    assert packed.label_weights.tolist() == [1, 1, 1, 1]
    assert (packed.num_tokens, packed.num_samples, packed.is_padded) == (10, 2, False)
    segments, asking = packed.segments, packed.label_segments
    assert segments.key_indices is None
    assert segments.cu_query.tolist() == segments.cu_key.tolist() == [0, 7, 10]
    assert (segments.max_query, segments.max_key) == (7, 7)
    assert asking.cu_query.tolist() == [0, 2, 3, 4]
    assert asking.cu_key.tolist() == [0, 3, 9, 11]
    assert asking.key_indices.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 7, 8]
    assert (asking.max_query, asking.max_key) == (2, 6)


def test_a_shared_prefix_by_hand() -> None:
    """Groups lie in the order of their contexts, of which the last sample's is empty."""
    packed = pack([sample([1, 2, 3, 4, 5], 4), sample([1, 2, 6, 7], 3), sample([9, 8], 1)], shares_prefix=True)
    assert packed.input_ids.tolist() == [9, 8, 1, 2, 6, 7, 3, 4, 5]
    assert packed.position_ids.tolist() == [0, 1, 0, 1, 2, 3, 2, 3, 4]
    assert packed.label_indices.tolist() == [0, 4, 7]
    assert packed.labels.tolist() == [8, 7, 5]
    assert keys_seen(packed.segments) == [
        *([0], [0, 1]),
        *([2], [2, 3]),
        *([2, 3, 4], [2, 3, 4, 5]),
        *([2, 3, 6], [2, 3, 6, 7], [2, 3, 6, 7, 8]),
    ]
    assert keys_seen(packed.label_segments) == [[0], [2, 3, 4], [2, 3, 6, 7]]
    assert packed.num_tokens == 11  # as the user counts


@pytest.mark.parametrize("shares_prefix", [False, True])
def test_slots_are_the_keys_sorted_by_row(shares_prefix: bool) -> None:
    packed = pack([sample([1, 2, 3, 4], 3), sample([1, 2, 5], 2), sample([7, 7], 1)], shares_prefix=shares_prefix)
    for segments in (packed.segments, packed.label_segments):
        if segments.key_indices is None:
            continue
        offsets = segments.slot_offsets.tolist()
        assert len(offsets) == len(packed.input_ids) + 1
        for row, (begin, end) in enumerate(itertools.pairwise(offsets)):
            slots = segments.slot_order[begin:end]
            assert slots.tolist() == (segments.key_indices == row).nonzero()[:, 0].tolist()
    assert (packed.segments.key_indices is None) == (not shares_prefix)


# The collator


def test_a_batch_holds_what_the_trainer_asks_for() -> None:
    batch = PackingCollator()([{**TURNS, "length": 7}, SHORT])
    assert batch.keys() == {"lengths", "total_weight", "micro_batches"}
    assert batch["lengths"].tolist() == [7, 3]
    assert batch["lengths"].dtype == torch.int64
    assert [packed.num_samples for packed in batch["micro_batches"]] == [2]


def test_by_token_each_label_counts_the_same() -> None:
    batch = PackingCollator(max_tokens=8)([TURNS, SHORT])
    assert batch["total_weight"] == 4.0
    assert [packed.label_weights.tolist() for packed in batch["micro_batches"]] == [[1, 1, 1], [1]]


def test_by_sample_each_sample_counts_the_same() -> None:
    batch = PackingCollator(max_tokens=8, loss_weight="sample")([TURNS, SHORT])
    assert batch["total_weight"] == 2.0
    weights = [packed.label_weights for packed in batch["micro_batches"]]
    torch.testing.assert_close(weights, [torch.full((3,), 1 / 3), torch.ones(1)])


# Splitting


def test_splitting_keeps_every_sample_in_order() -> None:
    samples = [sample(range(length), 1) for length in (4, 3, 2, 9, 30, 1, 1, 8)]
    parts = split(samples, 10)
    assert [[len(each.input_ids) for each in part] for part in parts] == [[4, 3, 2], [9], [30], [1, 1, 8]]
    assert all(one is other for one, other in zip(itertools.chain(*parts), samples, strict=True))


@pytest.mark.parametrize("lengths", [[30], [30, 1], [1, 30], [30, 30]])
def test_a_long_sample_is_a_part_of_its_own(lengths: list[int]) -> None:
    parts = split([sample(range(length), 1) for length in lengths], 10)
    assert [[len(each.input_ids) for each in part] for part in parts] == [[length] for length in lengths]


def test_without_a_limit_nothing_is_split() -> None:
    samples = [sample(range(100), 1)] * 3
    assert [len(part) for part in split(samples, None)] == [3]


# Prefixes


def groups_of(*samples: TokenizedSample) -> list[tuple[int, list[int]]]:
    return sorted((length, sorted(members)) for length, members in shared_prefixes(samples))


def test_samples_that_begin_alike_form_a_group() -> None:
    groups = groups_of(sample([1, 2, 3, 4, 5], 4), sample([9, 9, 9], 2), sample([1, 2, 8, 9], 3))
    assert groups == [(0, [1]), (2, [0, 2])]


def test_one_sample_is_a_group_of_its_own() -> None:
    assert shared_prefixes([sample([1, 2, 3], 2)]) == [(0, [0])]


def test_a_prefix_ends_before_the_first_row_that_predicts() -> None:
    """All four tokens are alike, but row 1 predicts in one of them."""
    assert groups_of(sample([1, 2, 3, 4], 2), sample([1, 2, 3, 4], 3)) == [(1, [0, 1])]


def test_identical_samples_share_their_context_alone() -> None:
    same = sample([1, 2, 3, 4, 5], 4)
    assert groups_of(same, same, same) == [(3, [0, 1, 2])]
    packed = pack([same, same, same], shares_prefix=True)
    assert packed.input_ids.tolist() == [1, 2, 3, 4, 5, 4, 5, 4, 5]
    assert packed.labels.tolist() == [5, 5, 5]


def test_longer_prefixes_of_fewer_samples_where_these_save_more() -> None:
    """All four share 1 token (saves 3); pairs share 6 and 5 (saves 11)."""
    first = [sample([1, 2, 2, 2, 2, 2, n, 99], 7) for n in (10, 11)]
    second = [sample([1, 3, 3, 3, 3, n, 99], 6) for n in (10, 11)]
    assert groups_of(first[0], second[0], first[1], second[1]) == [(5, [1, 3]), (6, [0, 2])]


def test_a_shorter_prefix_of_more_samples_where_that_saves_more() -> None:
    """All four share 5 tokens (saves 15); one pair shares 7 (saves 7)."""
    samples = [sample([*range(1, 6), *own, 99], 5 + len(own)) for own in ([7, 7, 1], [7, 7, 2], [8, 3], [9, 4])]
    assert groups_of(*samples) == [(5, [0, 1, 2, 3])]


def test_large_ids_are_compared_as_a_whole() -> None:
    """Ids above 255 and 65,535 take several bytes."""
    samples = [sample([70_000, n, 1, 99], 3) for n in (256, 1, 65_536, 256, 1)]
    assert groups_of(*samples) == [(1, [0, 1, 2, 3, 4])]
    longer = [sample([70_000, n, n, n, n, n, own, 1, 99], 8) for n in (256, 1, 65_536) for own in (5, 6)]
    assert groups_of(*longer) == [(6, [0, 1]), (6, [2, 3]), (6, [4, 5])]


# What each row sees, over random batches

MODES: dict[str, dict[str, bool]] = {
    "plain": {},
    "shared": {"shares_prefix": True},
    "padded": {"pads_to_bucket": True},
    "shared and padded": {"shares_prefix": True, "pads_to_bucket": True},
}
PADDED = {"plain": "padded", "shared": "shared and padded"}
Random = numpy.random.Generator


def random_samples(random: Random) -> list[TokenizedSample]:
    """One to ten samples of few different ids, of which many begin alike; labels in one or many runs."""
    beginnings = [random.integers(0, 3, random.integers(0, 12)) for _ in range(3)]
    samples = []
    for _ in range(random.integers(1, 11)):
        beginning, own = beginnings[random.integers(3)], random.integers(0, 3, random.integers(2, 20))
        ids = numpy.concatenate((beginning, own))
        is_supervised = random.random(len(ids)) < random.random()
        if random.random() < 0.7:  # else labels may be anywhere
            is_supervised[: len(beginning)] = False
        is_supervised[random.integers(len(beginning) + 1, len(ids))] = True
        samples.append(TokenizedSample.of(ids, numpy.where(is_supervised, ids, NONE)))
    return samples


def cases(mode: str, num_cases: int = 200) -> list[tuple[list[TokenizedSample], PackedBatch]]:
    random = numpy.random.default_rng(0)
    batches = [random_samples(random) for _ in range(num_cases)]
    return [(samples, pack(samples, loss_weight="sample", **MODES[mode])) for samples in batches]


def is_real(packed: PackedBatch) -> list[bool]:
    return packed.label_weights.gt(0).tolist()


@pytest.mark.parametrize("mode", MODES)
def test_every_label_row_sees_its_own_sample_up_to_itself(mode: str) -> None:
    for samples, packed in cases(mode):
        expected = sorted(
            (each.input_ids[: row + 1].tolist(), label, 1 / len(each.labels))
            for each in samples
            for row, label in zip(each.label_indices.tolist(), each.labels.tolist(), strict=True)
        )
        seen = keys_seen(packed.label_segments)
        found = sorted(
            (packed.input_ids[rows].tolist(), label, weight)
            for rows, label, weight in zip(seen, packed.labels.tolist(), packed.label_weights.tolist(), strict=True)
            if weight > 0
        )
        assert [case[:2] for case in found] == [case[:2] for case in expected]
        numpy.testing.assert_allclose([case[2] for case in found], [case[2] for case in expected], rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_tokens_with_labels_see_the_same_keys_as_queries_of_their_own(mode: str) -> None:
    for _, packed in cases(mode):
        as_rows, as_labels = keys_seen(packed.segments), keys_seen(packed.label_segments)
        for row, rows, is_asking in zip(packed.label_indices.tolist(), as_labels, is_real(packed), strict=True):
            assert not is_asking or rows == as_rows[row]


@pytest.mark.parametrize("mode", MODES)
def test_every_row_sees_itself_last_and_positions_count_up(mode: str) -> None:
    for samples, packed in cases(mode):
        seen = keys_seen(packed.segments)
        num_real = packed.label_indices[torch.tensor(is_real(packed))].max().item() + 1
        assert len(seen) == len(packed.input_ids)
        assert [rows[-1] for rows in seen[:num_real]] == list(range(num_real))
        for rows in seen[:num_real]:
            assert packed.position_ids[rows].tolist() == list(range(len(rows)))
        assert packed.num_tokens == sum(len(each.input_ids) for each in samples)


@pytest.mark.parametrize("mode", MODES)
def test_segments_hold_what_kernels_rely_on(mode: str) -> None:
    for _, packed in cases(mode):
        num_rows = len(packed.input_ids)
        for segments, num_queries in ((packed.segments, num_rows), (packed.label_segments, len(packed.label_indices))):
            queries, keys = segments.cu_query.diff(), segments.cu_key.diff()
            assert segments.cu_query[-1] == num_queries
            assert (queries <= keys).all()
            assert queries.max() <= segments.max_query
            assert keys.max() <= segments.max_key
            if segments.key_indices is None:
                assert segments.cu_key[-1] == num_rows
                continue
            assert segments.cu_key[-1] == len(segments.key_indices) == segments.slot_offsets[-1]
            rows = segments.key_indices[segments.slot_order]
            assert rows.tolist() == sorted(rows.tolist())
            assert sorted(segments.slot_order.tolist()) == list(range(len(rows)))
            counts = torch.bincount(segments.key_indices, minlength=num_rows)
            assert torch.equal(segments.slot_offsets.diff(), counts.int())


def test_sharing_saves_rows() -> None:
    plain, shared = cases("plain"), cases("shared")
    sizes = [(len(one.input_ids), len(other.input_ids)) for (_, one), (_, other) in zip(plain, shared, strict=True)]
    assert all(other <= one for one, other in sizes)
    assert sum(other for _, other in sizes) < 0.9 * sum(one for one, _ in sizes)


# Padding


@pytest.mark.parametrize("mode", PADDED)
def test_padding_has_no_weight_and_nobody_sees_it(mode: str) -> None:
    for (samples, packed), (_, bare) in zip(cases(PADDED[mode]), cases(mode), strict=True):
        num_rows, num_labels = len(bare.input_ids), len(bare.labels)
        assert packed.is_padded
        assert not bare.is_padded
        assert torch.equal(packed.input_ids[:num_rows], bare.input_ids)
        assert torch.equal(packed.position_ids[:num_rows], bare.position_ids)
        assert torch.equal(packed.label_indices[:num_labels], bare.label_indices)
        assert torch.equal(packed.labels[:num_labels], bare.labels)
        assert torch.equal(packed.label_weights[:num_labels], bare.label_weights)
        assert len(packed.label_weights) > num_labels
        assert packed.label_weights[num_labels:].eq(0).all()
        assert packed.label_indices[num_labels:].ge(num_rows).all()
        assert keys_seen(packed.segments)[:num_rows] == keys_seen(bare.segments)
        assert keys_seen(packed.label_segments)[:num_labels] == keys_seen(bare.label_segments)
        assert packed.num_samples == len(samples)


@pytest.mark.parametrize("mode", PADDED)
def test_padded_sizes_fall_into_few_layouts(mode: str) -> None:
    """Two hundred steps of eight questions and answers behind one system prompt."""
    random = numpy.random.default_rng(0)
    steps = [
        [sample([*range(20), *random.integers(0, 600, n)], 20 + n // 2) for n in random.integers(10, 60, 8).tolist()]
        for _ in range(200)
    ]
    num_bare = len({pack(step, **MODES[mode]).bucket for step in steps})
    padded = [pack(step, **MODES[PADDED[mode]]) for step in steps]
    assert num_bare > 190
    assert len({packed.bucket for packed in padded}) < 20
    assert {len(packed.input_ids) % 64 for packed in padded} == {0}


def test_the_same_layout_means_the_same_sizes() -> None:
    by_bucket: dict[tuple[int, ...], list[Any]] = {}
    for _, packed in cases("shared and padded"):
        segments = (packed.segments, packed.label_segments)
        sizes = [
            len(packed.buffer),
            len(packed.input_ids),
            len(packed.labels),
            *map(len, (s.cu_query for s in segments)),
        ]
        limits = [limit for s in segments for limit in (s.max_query, s.max_key)]
        by_bucket.setdefault(packed.bucket, []).append((sizes, limits))
    assert any(len(alike) > 1 for alike in by_bucket.values())
    assert all(one == alike[0] for alike in by_bucket.values() for one in alike)
    assert len({str(alike[0]) for alike in by_bucket.values()}) > 1


def test_long_rows_are_not_padded() -> None:
    long = pack([sample(range(MOST_GRAPHED_TOKENS), 1)], pads_to_bucket=True)
    assert not long.is_padded
    assert len(long.input_ids) == MOST_GRAPHED_TOKENS
    shorter = pack([sample(range(MOST_GRAPHED_TOKENS - 1), 1)], pads_to_bucket=True)
    assert shorter.is_padded
    assert len(shorter.input_ids) == MOST_GRAPHED_TOKENS


# Moving


@pytest.mark.parametrize("mode", MODES)
def test_moving_keeps_everything(mode: str) -> None:
    for _, packed in cases(mode, 5):
        moved = packed.to("cpu")
        assert moved.bucket == packed.bucket
        assert (moved.num_tokens, moved.num_samples, moved.is_padded) == (
            packed.num_tokens,
            packed.num_samples,
            packed.is_padded,
        )
        for name in ("input_ids", "position_ids", "label_indices", "labels", "label_weights"):
            assert torch.equal(getattr(moved, name), getattr(packed, name))
        assert keys_seen(moved.segments) == keys_seen(packed.segments)
        assert keys_seen(moved.label_segments) == keys_seen(packed.label_segments)


def test_all_fields_are_views_of_one_buffer() -> None:
    """Moved to another device, nothing is left behind."""
    packed = pack([sample([1, 2, 3, 4], 3), sample([1, 2, 5], 2)], shares_prefix=True).to("meta")
    tensors = [packed.input_ids, packed.position_ids, packed.label_indices, packed.labels, packed.label_weights]
    for segments in (packed.segments, packed.label_segments):
        tensors += [
            segments.cu_query,
            segments.cu_key,
            segments.key_indices,
            segments.slot_order,
            segments.slot_offsets,
        ]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
