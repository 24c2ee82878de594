"""Matrix-vector products with nf4 weights in Triton; what stands beside the product is as in `gemv`.

Each lane of a warp holds one entry of nf4's table of 16, and `shfl` takes a weight from the lane that its nibble names:
two instructions a weight, a shift and the shuffle. The limit is the rate of shuffles, not memory: nf4 decodes hardly
faster than int8, although it reads half as much (benchmarks/results/decode.csv).
"""

import struct
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from glmtune.ops.gemv import finish, or_else
from glmtune.ops.reference import NF4_TABLE, Nf4Weight


def _table_entry(table: Sequence[float]) -> str:
    """Assembly that gives each lane its entry of a table of 16 ($0); lanes 16 to 31 have the same again."""
    first, *others = [f"0f{struct.pack('>f', value).hex()}" for value in table]
    choices = [f"setp.eq.u32 mine, lane, {lane}; @mine mov.b32 $0, {value};" for lane, value in enumerate(others, 1)]
    return f"""{{
        .reg .pred mine;
        .reg .b32 lane;
        mov.u32 lane, %laneid;
        and.b32 lane, lane, 15;
        mov.b32 $0, {first};
        {" ".join(choices)}
    }}"""


def _lookup() -> str:
    """Assembly that looks up the high ($0 to $3) and the low nibbles ($4 to $7) of four bytes ($8) in a table ($9)."""
    # 0x101f: the warp as two halves, so that the lowest four bits of the index alone count.
    shuffles = [
        f"shr.u32 index, $8, {8 * byte + 4 * is_high}; "
        f"shfl.sync.idx.b32 ${byte if is_high else 4 + byte}, $9, index, 0x101f, 0xffffffff;"
        for byte in range(4)
        for is_high in (False, True)
    ]
    return "{ .reg .b32 index; " + " ".join(shuffles) + " }"


_TABLE_ENTRY = tl.constexpr(_table_entry(NF4_TABLE))
_LOOKUP = tl.constexpr(_lookup())


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
    zeros = tl.zeros((BLOCK_N, BLOCK_K // 2), tl.int32)
    table = tl.inline_asm_elementwise(_TABLE_ENTRY, "=f,r", [zeros], dtype=tl.float32, is_pure=True, pack=1)
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
                _LOOKUP,
                "=f,=f,=f,=f,=f,=f,=f,=f,r,f,f,f,f",
                [values, table],
                dtype=(tl.float32, tl.float32),
                is_pure=True,
                pack=4,
            )
            products = high * first[None, :] + low * second[None, :]
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
    """As `reference.gemv_nf4`."""
    num_inputs = x_1K.shape[1]
    num_outputs = 2 * weight.values.numel() // num_inputs // (2 if is_gated else 1)
    output = x_1K.new_empty(1, num_outputs)
    norm_weight, eps = norm if norm is not None else (x_1K, 0.0)
    low, b = adapter if adapter is not None else (x_1K, x_1K)
    block_n = 8
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
        BLOCK_K=min(triton.next_power_of_2(num_inputs), 4096),
        num_warps=4,
    )
    return output
