"""Matrix-vector products with nf4 weights in Triton; what stands beside the product is as in `gemv`.

A byte holds two weights, so a table of all 256 bytes gives two at once, ready for the tensor cores: a permutation to
take the byte, an address, a load from shared memory. Each lane of a warp has a copy of the table in its own memory
bank, since lanes with different bytes would otherwise wait for each other.

The tensor cores multiply tiles, not vectors. Here lane 4 g + t holds weights of a block of 64, the scale of which
covers the four lanes of g, as row g of the left operand, and the inputs for these weights as column g of the right
one. On the diagonal of the result stand the sums over the blocks; the rest is not used. Row g + 8 of the left operand
belongs to a second output. Sums are fp32; the values of nf4 and the normed inputs are rounded to the inputs' dtype, as
they are where the weight is dequantised first.

On an H100 a layer's four products read their weights at 0.6 of the memory's rate (benchmarks/results/row_products.csv);
what limits them is the rate of accesses to shared memory and L1.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from glmtune.ops.gemv import finish, or_else
from glmtune.ops.reference import NF4_TABLE, Nf4Weight
from glmtune.ops.rms_norm import rms_norm

_NUM_WARPS = 4
_PROGRAMS_PER_PROCESSOR = 5
_MAX_REGISTERS = 96  # so that as many programs fit
_TABLE_BYTES = 256 * 32 * 4
_MAX_NORMED_INPUTS = 8192  # beside the table within 48 KiB


def _products_assembly(dtype: str) -> str:
    """Assembly for a block of 64 weights of two outputs.

    Operands: the sums of the two outputs, which count in lane 4 g + g // 2 ($0, $1), the lane's column of the table
    ($2), whether g is odd ($3), eight bytes of each output ($4, $5), and the sixteen inputs for them ($6 to $13).
    """
    steps = ""
    for step in range(4):
        for fragment in range(4):
            word, byte = step // 2 + 2 * (fragment % 2), 2 * (step % 2) + fragment // 2
            steps += f"""
                prmt.b32 a{fragment}, w{word}, 0, 0x444{byte};
                mad.lo.u32 a{fragment}, a{fragment}, 128, $2;
                ld.shared.b32 a{fragment}, [a{fragment}];"""
        steps += f"""
            mma.sync.aligned.m16n8k16.row.col.f32.{dtype}.{dtype}.f32
                {{c0, c1, c2, c3}}, {{a0, a1, a2, a3}}, {{${6 + 2 * step}, ${7 + 2 * step}}}, {{c0, c1, c2, c3}};"""
    return f"""{{
        .reg .pred is_odd;
        .reg .b32 a<4>, w<4>;
        .reg .f32 c<4>;
        mov.b64 {{w0, w1}}, $4;
        mov.b64 {{w2, w3}}, $5;
        mov.f32 c0, 0f00000000; mov.f32 c1, c0; mov.f32 c2, c0; mov.f32 c3, c0;
        {steps}
        setp.ne.u32 is_odd, $3, 0;
        selp.f32 $0, c1, c0, is_odd;
        selp.f32 $1, c3, c2, is_odd;
    }}"""


_PRODUCTS = {torch.bfloat16: _products_assembly("bf16"), torch.float16: _products_assembly("f16")}
_STORE = tl.constexpr("{ st.shared.b32 [$1], $2; mov.u32 $0, 0; }")
_STORE_4_COPIES = tl.constexpr("{ st.shared.v4.b32 [$1], {$2, $2, $2, $2}; mov.u32 $0, 0; }")
_LOAD_NORMED = tl.constexpr(
    "{ ld.shared.v4.b32 {$0, $1, $2, $3}, [$8]; ld.shared.v4.b32 {$4, $5, $6, $7}, [$8 + 512]; }"
)
_LOAD_INPUTS = tl.constexpr(
    "{ ld.global.v4.b32 {$0, $1, $2, $3}, [$8]; ld.global.v4.b32 {$4, $5, $6, $7}, [$8 + 16]; }"
)
_FROM_LANE = tl.constexpr("shfl.sync.idx.b32 $0, $1, $2, 0x1c1f, 0xffffffff;")  # of the same four lanes


@triton.jit
def _from_lane(value, lane):
    return tl.inline_asm_elementwise(_FROM_LANE, "=f,f,r", [value, lane], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _store_table(table_ptr, table, thread, NUM_THREADS: tl.constexpr):
    """Writes 32 copies of each of the 256 entries to shared memory, four at once."""
    for start in tl.static_range(0, 256 * 8, NUM_THREADS):
        place = start + thread
        entry = tl.load(table_ptr + place // 8)
        tl.inline_asm_elementwise(
            _STORE_4_COPIES, "=r,r,r", [table + 16 * place, entry], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def _store_normed(x_ptr, norm_ptr, row, eps, K: tl.constexpr):
    """Writes the normed inputs to shared memory: of each 512, first the first eight of every sixteen."""
    SIZE: tl.constexpr = triton.next_power_of_2(K) if K > 512 else 512
    inputs, pairs = tl.arange(0, SIZE), tl.arange(0, SIZE // 2)
    x = tl.load(x_ptr + inputs, inputs < K, 0.0).to(tl.float32)
    norm = tl.load(norm_ptr + inputs, inputs < K, 0.0).to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, axis=0) / K + eps) * norm
    bits = x.to(x_ptr.dtype.element_ty).to(tl.uint16, bitcast=True).to(tl.uint32)
    first, second = tl.split(tl.reshape(bits, (SIZE // 2, 2)))
    address = row + pairs // 256 * 1024 + pairs % 8 // 4 * 512 + pairs % 256 // 8 * 16 + pairs % 4 * 4
    tl.inline_asm_elementwise(
        _STORE, "=r,r,r", [address, first | (second << 16)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _load_4_rows(pointers, stride: tl.constexpr):
    return tl.load(pointers), tl.load(pointers + stride), tl.load(pointers + 2 * stride), tl.load(pointers + 3 * stride)


@triton.jit
def _load_scale(scale_ptr, scale_code_ptr, scale_scale_ptr, offset, output, block, K: tl.constexpr):
    """The scale of an output's block; 0 for a block beyond the last."""
    at = (output * (K // 64) + tl.minimum(block, K // 64 - 1)).to(tl.uint32)
    code = tl.load(scale_code_ptr + tl.load(scale_ptr + at).to(tl.uint32))
    return tl.where(block < K // 64, code * tl.load(scale_scale_ptr + at // 256) + offset, 0.0)


@triton.jit
def _add_products(
    total, other, bytes_a, bytes_b, scale_a, scale_b, lane, column, is_odd,
    x0, x1, x2, x3, x4, x5, x6, x7, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """Adds a block's products of two outputs to their sums; the scales are those of a lane of the four."""
    a, b = tl.inline_asm_elementwise(
        PRODUCTS,
        "=f,=f,r,r,l,l,r,r,r,r,r,r,r,r",
        [column, is_odd, bytes_a, bytes_b, x0, x1, x2, x3, x4, x5, x6, x7],
        dtype=(tl.float32, tl.float32),
        is_pure=False,
        pack=1,
    )
    return total + a * _from_lane(scale_a, lane), other + b * _from_lane(scale_b, lane)


@triton.jit
def _by_output(sum_0, sum_1, sum_2, sum_3, four, lane):
    """Sums of four outputs, from the diagonals: [4, NUM_THREADS // 4]."""
    diagonal = four % 8 // 2
    first = tl.where(lane == 0, _from_lane(sum_0, diagonal), _from_lane(sum_1, diagonal))
    second = tl.where(lane == 2, _from_lane(sum_2, diagonal), _from_lane(sum_3, diagonal))
    mine = tl.where(lane < 2, first, second)
    return tl.trans(tl.reshape(mine, (mine.shape[0] // 4, 4)))


@triton.jit
def _store_outputs(y, residual_ptr, output_ptr, outputs, HAS_RESIDUAL: tl.constexpr):
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + outputs).to(tl.float32)
    tl.store(output_ptr + outputs, y.to(output_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["num_outputs"])
def _kernel(
    x_ptr,
    values_ptr,
    scale_ptr,
    scale_code_ptr,
    scale_scale_ptr,
    offset_ptr,
    table_ptr,
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
    SHARED_MEMORY: tl.constexpr,
    PRODUCTS: tl.constexpr,
    NUM_THREADS: tl.constexpr,
):
    thread = tl.arange(0, NUM_THREADS)
    four, lane = thread // 4, thread % 4
    is_odd = four % 2
    table = tl.inline_asm_elementwise(SHARED_MEMORY, "=r,r", [num_outputs], dtype=tl.int32, is_pure=False, pack=1)
    _store_table(table_ptr, table, thread, NUM_THREADS)
    column, row = table + 4 * (thread % 32), table + 256 * 32 * 4
    if HAS_NORM:
        _store_normed(x_ptr, norm_ptr, row, eps, K)
    offset = tl.load(offset_ptr)
    tl.debug_barrier()
    # A tile is eight outputs: four and the next four, or four gates and what they gate.
    TILE: tl.constexpr = 4 if IS_GATED else 8
    gap = num_outputs if IS_GATED else 4
    for tile in range(tl.program_id(0), tl.cdiv(num_outputs, TILE), tl.num_programs(0)):
        output = tl.minimum(tile * TILE, num_outputs - TILE)
        a_ptr = values_ptr + output.to(tl.int64) * (K // 16)
        b_ptrs = a_ptr + tl.cast(gap, tl.int64) * (K // 16)
        a0 = tl.zeros((NUM_THREADS,), tl.float32)
        a1, a2, a3, b0, b1, b2, b3 = a0, a0, a0, a0, a0, a0, a0
        for start in range(0, K // 64, NUM_THREADS // 4):
            block = start + four
            at = tl.minimum(4 * block + lane, K // 16 - 1)
            v0, v1, v2, v3 = _load_4_rows(a_ptr + at, K // 16)
            w0, w1, w2, w3 = _load_4_rows(b_ptrs + at, K // 16)
            a_scale = _load_scale(scale_ptr, scale_code_ptr, scale_scale_ptr, offset, output + lane, block, K)
            b_scale = _load_scale(scale_ptr, scale_code_ptr, scale_scale_ptr, offset, output + gap + lane, block, K)
            if HAS_NORM:
                x0, x1, x2, x3, x4, x5, x6, x7 = tl.inline_asm_elementwise(
                    _LOAD_NORMED,
                    "=r,=r,=r,=r,=r,=r,=r,=r,r",
                    [row + at // 32 * 1024 + at % 32 * 16],
                    dtype=(tl.int32,) * 8,
                    is_pure=False,
                    pack=1,
                )
            else:
                x0, x1, x2, x3, x4, x5, x6, x7 = tl.inline_asm_elementwise(
                    _LOAD_INPUTS,
                    "=r,=r,=r,=r,=r,=r,=r,=r,l",
                    [(x_ptr + 16 * at).to(tl.int64)],
                    dtype=(tl.int32,) * 8,
                    is_pure=False,
                    pack=1,
                )
            a0, b0 = _add_products(
                a0, b0, v0, w0, a_scale, b_scale, 0, column, is_odd, x0, x1, x2, x3, x4, x5, x6, x7, PRODUCTS
            )
            a1, b1 = _add_products(
                a1, b1, v1, w1, a_scale, b_scale, 1, column, is_odd, x0, x1, x2, x3, x4, x5, x6, x7, PRODUCTS
            )
            a2, b2 = _add_products(
                a2, b2, v2, w2, a_scale, b_scale, 2, column, is_odd, x0, x1, x2, x3, x4, x5, x6, x7, PRODUCTS
            )
            a3, b3 = _add_products(
                a3, b3, v3, w3, a_scale, b_scale, 3, column, is_odd, x0, x1, x2, x3, x4, x5, x6, x7, PRODUCTS
            )
        outputs = output + tl.arange(0, 4)
        is_output = outputs < num_outputs
        a = _by_output(a0, a1, a2, a3, four, lane)
        b = _by_output(b0, b1, b2, b3, four, lane)
        y = finish(a, 1.0, outputs, is_output, x_ptr, bias_ptr, low_ptr, b_ptr, C, False, HAS_BIAS)
        z = finish(b, 1.0, outputs + gap, is_output, x_ptr, bias_ptr, low_ptr, b_ptr, C, False, HAS_BIAS)
        if IS_GATED:
            y = y * tl.sigmoid(y) * z
        else:
            _store_outputs(z, residual_ptr, output_ptr, outputs + gap, HAS_RESIDUAL)
        _store_outputs(y, residual_ptr, output_ptr, outputs, HAS_RESIDUAL)


@cache
def _table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The two weights of each byte, the first in the lower half, [256] int32."""
    values = torch.tensor(NF4_TABLE, device=device, dtype=dtype)
    return torch.cartesian_prod(values, values).view(torch.int32).flatten()


@cache
def _num_programs(device: torch.device) -> int:
    return _PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


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
    if norm is not None and num_inputs > _MAX_NORMED_INPUTS:
        x_1K, norm = rms_norm(x_1K, *norm), None
    output = x_1K.new_empty(1, num_outputs)
    norm_weight, eps = norm if norm is not None else (x_1K, 0.0)
    low, b = adapter if adapter is not None else (x_1K, x_1K)
    row_bytes = 0 if norm is None else 2 * max(512, triton.next_power_of_2(num_inputs))
    _kernel[(min(triton.cdiv(num_outputs, 4 if is_gated else 8), _num_programs(x_1K.device)),)](
        x_1K,
        weight.values.view(-1).view(torch.int64),
        weight.scales,
        weight.scale_code,
        weight.scale_scales,
        weight.offset,
        _table(x_1K.dtype, x_1K.device),
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
        SHARED_MEMORY=f"{{ .shared .align 16 .b8 memory[{_TABLE_BYTES + row_bytes}]; mov.u32 $0, memory; }}",
        PRODUCTS=_PRODUCTS[x_1K.dtype],
        NUM_THREADS=32 * _NUM_WARPS,
        num_warps=_NUM_WARPS,
        maxnreg=_MAX_REGISTERS,
    )
    return output
