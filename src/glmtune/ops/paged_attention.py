"""Attention of single tokens over a key-value cache in blocks, in Triton.

The queries of a key-value head (16 in ChatGLM3-6B) are one tile, so that its keys and values are read once for all of
them. Keys are split over programs, so that a single long sequence fills the chip; a second kernel merges the parts by
their log-sum-exps.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from glmtune.ops.reference import BLOCK_SIZE

_KEYS_AT_ONCE = 64
_MOST_SPLITS = 32
_PROGRAMS = 256  # about two per multiprocessor


@triton.jit
def _store_kernel(
    mixed_ptr,
    cos_ptr,
    sin_ptr,
    slot_ptr,
    key_ptr,
    value_ptr,
    num_pairs,
    N: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slot_ptr + row).to(tl.int64)
    channels = tl.arange(0, BLOCK_D)
    is_channel = channels < D
    source = mixed_ptr + (row * (N + 2 * G) + head) * D + channels
    x = tl.load(source, is_channel, 0.0)
    if head < N + G:
        pairs = tl.arange(0, BLOCK_D // 2)
        cos = tl.load(cos_ptr + row * num_pairs + pairs, pairs < num_pairs, 1.0).to(tl.float32)
        sin = tl.load(sin_ptr + row * num_pairs + pairs, pairs < num_pairs, 0.0).to(tl.float32)
        even, odd = tl.split(tl.reshape(x.to(tl.float32), (BLOCK_D // 2, 2)))
        turned = tl.reshape(tl.join(even * cos - odd * sin, odd * cos + even * sin), (BLOCK_D,))
        x = turned.to(mixed_ptr.dtype.element_ty)
        tl.store(source, x, is_channel)
    if head >= N + G:
        tl.store(value_ptr + (slot * G + head - N - G) * D + channels, x, is_channel)
    elif head >= N:
        tl.store(key_ptr + (slot * G + head - N) * D + channels, x, is_channel)


def store_rotated(
    mixed_TMD: Tensor, cos_Tr: Tensor, sin_Tr: Tensor, slots_T: Tensor, key_SGD: Tensor, value_SGD: Tensor
) -> None:
    """As `reference.store_rotated`."""
    num_rows, num_mixed, head_dim = mixed_TMD.shape
    num_groups = key_SGD.shape[1]
    _store_kernel[(num_rows, num_mixed)](
        mixed_TMD,
        cos_Tr,
        sin_Tr,
        slots_T,
        key_SGD,
        value_SGD,
        cos_Tr.shape[1],
        N=num_mixed - 2 * num_groups,
        G=num_groups,
        D=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        num_warps=1,
    )


@triton.jit
def _attend_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    table_ptr,
    length_ptr,
    part_ptr,
    log_sum_ptr,
    row_stride,
    table_stride,
    scale,
    num_splits,
    G: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row, group, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    num_keys = tl.load(length_ptr + row)
    per_split = tl.cdiv(tl.cdiv(num_keys, num_splits), KEYS) * KEYS
    begin = split * per_split
    end = tl.minimum(begin + per_split, num_keys)
    queries, channels = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_D)
    is_query, is_channel = queries < GROUP, channels < D
    head = group * GROUP + queries
    query = tl.load(
        query_ptr + row * row_stride + head[:, None] * D + channels[None, :],
        is_query[:, None] & is_channel[None, :],
        0.0,
    )
    largest = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    attended = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for start in range(begin, end, KEYS):
        keys = start + tl.arange(0, KEYS)
        is_key = keys < end
        block = tl.load(table_ptr + row * table_stride + keys // BLOCK_SIZE, is_key, 0).to(tl.int64)
        offset = (block * BLOCK_SIZE + keys % BLOCK_SIZE) * G * D + group * D
        pointers, mask = offset[:, None] + channels[None, :], is_key[:, None] & is_channel[None, :]
        key = tl.load(key_ptr + pointers, mask, 0.0)
        value = tl.load(value_ptr + pointers, mask, 0.0)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * (scale * 1.4426950408889634)
        scores = tl.where(is_key[None, :], scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_largest[:, None])
        shrink = tl.exp2(largest - new_largest)
        total = total * shrink + tl.sum(weights, axis=1)
        attended = tl.dot(weights.to(value.dtype), value, attended * shrink[:, None], input_precision=PRECISION)
        largest = new_largest
    part = (row * num_splits + split) * G * GROUP + head
    is_empty = begin >= end
    attended = attended / tl.where(is_empty, 1.0, total)[:, None]
    pointers = part_ptr + part[:, None] * D + channels[None, :]
    tl.store(pointers, attended.to(part_ptr.dtype.element_ty), is_query[:, None] & is_channel[None, :])
    tl.store(log_sum_ptr + part, tl.where(is_empty, float("-inf"), largest + tl.log2(total)), is_query)


@triton.jit
def _merge_kernel(
    part_ptr,
    log_sum_ptr,
    output_ptr,
    num_splits,
    N: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLITS: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    splits, channels = tl.arange(0, SPLITS), tl.arange(0, BLOCK_D)
    part = (row * num_splits + splits) * N + head
    log_sums = tl.load(log_sum_ptr + part, splits < num_splits, float("-inf"))
    largest = tl.max(log_sums, axis=0)
    weights = tl.where(log_sums == float("-inf"), 0.0, tl.exp2(log_sums - largest))
    mask = (splits < num_splits)[:, None] & (channels < D)[None, :]
    parts = tl.load(part_ptr + part[:, None] * D + channels[None, :], mask, 0.0)
    attended = tl.sum(parts * weights[:, None], axis=0) / tl.maximum(tl.sum(weights, axis=0), 1e-30)
    tl.store(output_ptr + (row * N + head) * D + channels, attended.to(output_ptr.dtype.element_ty), channels < D)


def paged_attention(
    query_RND: Tensor,
    key_SGD: Tensor,
    value_SGD: Tensor,
    block_tables_RW: Tensor,
    lengths_R: Tensor,
    scale: float,
) -> Tensor:
    """As `reference.paged_attention`."""
    num_rows, num_heads, head_dim = query_RND.shape
    num_groups = key_SGD.shape[1]
    num_splits = max(1, min(_MOST_SPLITS, _PROGRAMS // (num_rows * num_groups)))
    output = query_RND.new_empty(num_rows, num_heads, head_dim)
    parts = output
    if num_splits > 1:
        parts = query_RND.new_empty(num_rows, num_splits, num_heads, head_dim, dtype=torch.float32)
    log_sums = query_RND.new_empty(num_rows, num_splits, num_heads, dtype=torch.float32)
    block_d = triton.next_power_of_2(head_dim)
    _attend_kernel[(num_rows, num_groups, num_splits)](
        query_RND,
        key_SGD,
        value_SGD,
        block_tables_RW,
        lengths_R,
        parts,
        log_sums,
        query_RND.stride(0),
        block_tables_RW.stride(0),
        scale,
        num_splits,
        G=num_groups,
        GROUP=num_heads // num_groups,
        D=head_dim,
        BLOCK_SIZE=BLOCK_SIZE,
        BLOCK_Q=max(16, triton.next_power_of_2(num_heads // num_groups)),
        BLOCK_D=max(16, block_d),
        KEYS=_KEYS_AT_ONCE,
        PRECISION="ieee" if query_RND.dtype == torch.float32 else "tf32",
        num_warps=4,
    )
    if num_splits > 1:
        _merge_kernel[(num_rows, num_heads)](
            parts,
            log_sums,
            output,
            num_splits,
            N=num_heads,
            D=head_dim,
            BLOCK_D=block_d,
            SPLITS=triton.next_power_of_2(num_splits),
            num_warps=1,
        )
    return output
