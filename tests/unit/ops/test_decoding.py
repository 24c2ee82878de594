"""Without these, a decoding pass could read or write other sequences' keys and values, on every device alike."""

import itertools

import torch
from segment_twin import Random
from torch import Tensor
from torch.testing import assert_close

from glmtune.ops.reference import BLOCK_SIZE, apply_rotary, paged_attention, rotary_cos_sin, store_rotated

HEADS, GROUPS, HEAD_DIM, BLOCKS = 6, 2, 8, 7
TABLES = torch.tensor([[3, 1, 0], [2, 0, 0], [5, 4, 6], [3, 1, 0], [0, 0, 0]], dtype=torch.int32)
LENGTHS = torch.tensor([20, 16, 48, 1, 1], dtype=torch.int32)


def test_paged_attention_one_query_and_head_at_a_time(random: Random) -> None:
    query = random(len(TABLES), HEADS, HEAD_DIM)
    key, value = (random(BLOCKS * BLOCK_SIZE, GROUPS, HEAD_DIM) for _ in range(2))
    expected = torch.zeros_like(query)
    for row, head in itertools.product(range(len(TABLES)), range(HEADS)):
        slots = [int(TABLES[row, i // BLOCK_SIZE]) * BLOCK_SIZE + i % BLOCK_SIZE for i in range(int(LENGTHS[row]))]
        group = head // (HEADS // GROUPS)
        weights = (key[slots, group] @ query[row, head] * 0.3).softmax(-1)
        expected[row, head] = weights @ value[slots, group]
    assert_close(paged_attention(query, key, value, TABLES, LENGTHS, 0.3), expected)


def test_paged_attention_takes_a_part_of_wider_tables_and_heads(random: Random) -> None:
    """As a decoding pass hands them over: views of larger tensors."""
    mixed = random(len(TABLES), HEADS + 2 * GROUPS, HEAD_DIM)
    key, value = (random(BLOCKS * BLOCK_SIZE, GROUPS, HEAD_DIM) for _ in range(2))
    wide = torch.cat((TABLES, torch.full_like(TABLES, 6)), dim=1)
    expected = paged_attention(mixed[:, :HEADS].contiguous(), key, value, TABLES, LENGTHS, 0.3)
    assert_close(paged_attention(mixed[:, :HEADS], key, value, wide[:, :3], LENGTHS, 0.3), expected)


def test_store_rotated(random: Random) -> None:
    slots = torch.tensor([17, 3, 0, 40])
    mixed = random(4, HEADS + 2 * GROUPS, HEAD_DIM)
    cos, sin = (x[0] for x in rotary_cos_sin(torch.tensor([[5, 0, 9, 2]]), HEAD_DIM // 2, 100.0, torch.float64))
    key, value = (random(BLOCKS * BLOCK_SIZE, GROUPS, HEAD_DIM) for _ in range(2))
    before: list[Tensor] = [x.clone() for x in (mixed, key, value)]
    store_rotated(mixed, cos, sin, slots, key, value)
    rotated = apply_rotary(before[0][None, :, : HEADS + GROUPS], cos[None], sin[None])[0]
    assert_close(mixed[:, :HEADS], rotated[:, :HEADS])
    before[1][slots], before[2][slots] = rotated[:, HEADS:], before[0][:, HEADS + GROUPS :]
    assert_close(key, before[1])
    assert torch.equal(value, before[2])
