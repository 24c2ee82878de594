"""Matrix-vector products with nf4 weights in Triton; what stands beside the product is as in `gemv`.

Weights are looked up in registers: a `prmt` instruction picks four bytes out of eight by four nibbles, so that nine
instructions turn four nibbles into bfloat16 values of a table of 16, which is held as its high and its low bytes. The
limit is still arithmetic, not memory: on an H100, nf4 decodes more slowly than int8, although it reads half as much
(benchmarks/results/decode.csv).
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from glmtune.ops.gemv import finish, or_else
from glmtune.ops.reference import NF4_TABLE, Nf4Weight


def _words(table: Sequence[float]) -> tuple[list[str], ...]:
    """The high and the low bytes of a table of 16 bfloat16 values, four to a word."""
    values = torch.tensor(table).bfloat16().view(torch.uint8).view(4, 4, 2)  # little-endian
    low, high = values.unbind(-1)
    return tuple([f"0x{bytes(reversed(word)).hex()}" for word in part.tolist()] for part in (high, low))


def _lookup(table: Sequence[float]) -> str:
    """Assembly that turns four bytes ($4) into the bfloat16 values of their high ($0, $1) and low nibbles ($2, $3)."""
    high, low = _words(table)
    four_nibbles = f"""
        prmt.b32 high0, {high[0]}, {high[1]}, nibble;
        prmt.b32 high1, {high[2]}, {high[3]}, nibble;
        prmt.b32 low0, {low[0]}, {low[1]}, nibble;
        prmt.b32 low1, {low[2]}, {low[3]}, nibble;
        prmt.b32 second, 0xff00, 0, is_second;
        lop3.b32 high0, second, high1, high0, 0xCA;
        lop3.b32 low0, second, low1, low0, 0xCA;"""
    return f"""{{
        .reg .b32 nibble, is_second, high0, high1, low0, low1, second;
        and.b32 nibble, $4, 0x77777777;
        shr.b32 is_second, $4, 3;
        and.b32 is_second, is_second, 0x11111111;
        {four_nibbles}
        prmt.b32 $0, low0, high0, 0x7351;
        prmt.b32 $2, low0, high0, 0x6240;
        shr.b32 nibble, nibble, 16;
        shr.b32 is_second, is_second, 16;
        {four_nibbles}
        prmt.b32 $1, low0, high0, 0x7351;
        prmt.b32 $3, low0, high0, 0x6240;
    }}"""


_LOOKUP = tl.constexpr(_lookup(NF4_TABLE))


@triton.jit(do_not_specialize=["num_outputs"])
def _kernel(
    x_ptr,
    values_ptr,
    scale_ptr,
    scale_code_ptr,
    scale_scale_ptr,
    offset_ptr,
    bias_ptr,
    norm_ptr,
    low_ptr,
    b_ptr,
    residual_ptr,
    output_ptr,
    num_outputs,
    eps,
    K: tl.constexpr,
    C: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IS_GATED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_output = outputs < num_outputs
    inputs, pairs, groups = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_K // 2), tl.arange(0, BLOCK_K // 64)
    total = tl.zeros((BLOCK_N, BLOCK_K // 64), tl.float32)
    up_total = tl.zeros((BLOCK_N, BLOCK_K // 64), tl.float32)
    squares = tl.zeros((BLOCK_K,), tl.float32)
    offset = tl.load(offset_ptr)
    for start in range(0, K, BLOCK_K):
        is_input, is_pair, is_group = start + inputs < K, start // 2 + pairs < K // 2, start // 64 + groups < K // 64
        x = tl.load(x_ptr + start + inputs, is_input, 0.0).to(tl.float32)
        if HAS_NORM:
            squares += x * x
            x *= tl.load(norm_ptr + start + inputs, is_input, 0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(x, (BLOCK_K // 2, 2)))
        for part in tl.static_range(2 if IS_GATED else 1):
            rows = (outputs + part * num_outputs).to(tl.int64)[:, None]
            pointers = values_ptr + rows * (K // 2) + start // 2 + pairs[None, :]
            values = tl.load(pointers, is_output[:, None] & is_pair[None, :], 0, eviction_policy="evict_first")
            high, low = tl.inline_asm_elementwise(
                _LOOKUP, "=r,=r,=r,=r,r", [values], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
            )
            products = high.to(tl.float32) * first[None, :] + low.to(tl.float32) * second[None, :]
            by_group = tl.sum(tl.reshape(products, (BLOCK_N, BLOCK_K // 64, 32)), axis=2)
            group = rows * (K // 64) + start // 64 + groups[None, :]
            is_there = is_output[:, None] & is_group[None, :]
            scale = tl.load(scale_code_ptr + tl.load(scale_ptr + group, is_there, 0).to(tl.int32))
            scale = scale * tl.load(scale_scale_ptr + group // 256, is_there, 0.0) + offset
            if part == 0:
                total += by_group * scale
            else:
                up_total += by_group * scale
    inverse_rms = tl.rsqrt(tl.sum(squares, axis=0) / K + eps) if HAS_NORM else 1.0
    y = finish(total, inverse_rms, outputs, is_output, x_ptr, bias_ptr, low_ptr, b_ptr, C, False, HAS_BIAS)
    if IS_GATED:
        up_rows = outputs + num_outputs
        up = finish(up_total, inverse_rms, up_rows, is_output, x_ptr, bias_ptr, low_ptr, b_ptr, C, False, HAS_BIAS)
        y = y * tl.sigmoid(y) * up
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + outputs, is_output, 0.0).to(tl.float32)
    tl.store(output_ptr + outputs, y.to(output_ptr.dtype.element_ty), is_output)


def gemv_nf4(
    x_1K: Tensor,
    weight: Nf4Weight,
    *,
    bias: Tensor | None = None,
    norm: tuple[Tensor, float] | None = None,
    adapter: tuple[Tensor, Tensor] | None = None,
    residual_1N: Tensor | None = None,
    is_gated: bool = False,
) -> Tensor:
    """As `reference.gemv_nf4`; the values of nf4 are rounded to bfloat16."""
    num_inputs = x_1K.shape[1]
    num_outputs = 2 * weight.values.numel() // num_inputs // (2 if is_gated else 1)
    output = x_1K.new_empty(1, num_outputs)
    norm_weight, eps = norm if norm is not None else (x_1K, 0.0)
    low, b = adapter if adapter is not None else (x_1K, x_1K)
    block_n, block_k, num_warps = (4, 4096, 4) if num_inputs <= 4096 else (8, 2048, 2)
    _kernel[(triton.cdiv(num_outputs, block_n),)](
        x_1K,
        weight.values,
        weight.scales,
        weight.scale_code,
        weight.scale_scales,
        weight.offset,
        or_else(bias, x_1K),
        norm_weight,
        low,
        b,
        or_else(residual_1N, x_1K),
        output,
        num_outputs,
        eps,
        K=num_inputs,
        C=0 if adapter is None else b.shape[1],
        HAS_BIAS=bias is not None,
        HAS_NORM=norm is not None,
        HAS_RESIDUAL=residual_1N is not None,
        IS_GATED=is_gated,
        BLOCK_N=block_n,
        BLOCK_K=min(triton.next_power_of_2(num_inputs), block_k),
        num_warps=num_warps,
    )
    return output
