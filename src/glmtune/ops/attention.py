"""Attention over segments of packed batches, with separate forward and backward functions.

On CUDA this is torch's own variable-length flash attention kernel; elsewhere, and for inputs that the kernel does not
support (fp32, unusual head sizes, GPUs before Ampere), it is a loop over the segments.

Legend of dimension suffixes: Q queries, K keys, N query heads, G key and value heads, D head size.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from glmtune.compat import flash_attention_backward, flash_attention_forward
from glmtune.ops.segments import Segments

# The CUDA compute capability from which on torch has the flash attention kernel: Ampere.
FLASH_CAPABILITY = (8, 0)


def attention_forward(
    query_QND: Tensor, key_KGD: Tensor, value_KGD: Tensor, segments: Segments, scale: float
) -> tuple[Tensor, Tensor]:
    """Grouped-query attention within segments.

    Args:
        query_QND: Queries, [Q, N, D].
        key_KGD: Keys, [K, G, D]; already gathered if `segments.key_indices` is set.
        value_KGD: Values, likewise.
        segments: Which keys each query attends to.
        scale: The factor on the attention scores.

    Returns:
        The attended values, [Q, N, D], and a tensor for `attention_backward`: from the flash kernel the log-sum-exp of
        the scores, [N, Q] fp32; from the loop an empty one, [0].
    """
    if has_flash_kernel(query_QND):
        return flash_attention_forward(query_QND, key_KGD, value_KGD, *segments.lengths, scale)
    parts = [_attend(query_QND[q], key_KGD[k], value_KGD[k], scale) for q, k in segments.bounds]
    return torch.cat(parts), query_QND.new_empty(0)


def attention_backward(
    grad_QND: Tensor,
    query_QND: Tensor,
    key_KGD: Tensor,
    value_KGD: Tensor,
    output_QND: Tensor,
    log_sum_exp: Tensor,
    segments: Segments,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `attention_forward`.

    Args:
        grad_QND: Gradient of the output, [Q, N, D].
        query_QND: As in the forward pass.
        key_KGD: As in the forward pass.
        value_KGD: As in the forward pass.
        output_QND: The attended values that the forward pass returned.
        log_sum_exp: Its second return value.
        segments: As in the forward pass.
        scale: As in the forward pass.

    Returns:
        Gradients of queries, keys and values, in their shapes and dtypes.
    """
    if has_flash_kernel(query_QND):
        return flash_attention_backward(
            grad_QND, query_QND, key_KGD, value_KGD, output_QND, log_sum_exp, *segments.lengths, scale
        )
    grads = (torch.zeros_like(query_QND), torch.zeros_like(key_KGD), torch.zeros_like(value_KGD))
    for q, k in segments.bounds:
        with torch.enable_grad():
            query, key, value = (x.detach().requires_grad_() for x in (query_QND[q], key_KGD[k], value_KGD[k]))
            output = _attend(query, key, value, scale)
        parts = torch.autograd.grad(output, (query, key, value), grad_QND[q])
        for total, span, part in zip(grads, (q, k, k), parts, strict=True):
            total[span] += part
    return grads


def has_flash_kernel(query_QND: Tensor) -> bool:
    """Whether torch's flash attention supports the device, dtype and head size of these queries."""
    return takes_flash_kernel(query_QND.device, query_QND.dtype, query_QND.shape[-1])


def takes_flash_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether a device has the flash kernel for a dtype and head size; attention then never synchronises with the host.

    On a machine without a GPU, a CUDA device is assumed to be Ampere or newer.
    """
    is_shaped = dtype in (torch.bfloat16, torch.float16) and head_dim % 8 == 0 and head_dim <= 256
    if device.type != "cuda" or not is_shaped:
        return False
    return not torch.cuda.is_available() or _is_ampere_or_newer(device.index)


@cache
def _is_ampere_or_newer(device_index: int) -> bool:
    return torch.cuda.get_device_capability(device_index) >= FLASH_CAPABILITY


def _attend(query_QND: Tensor, key_KGD: Tensor, value_KGD: Tensor, scale: float) -> Tensor:
    """Attention within one segment."""
    num_queries, num_keys = query_QND.shape[0], key_KGD.shape[0]
    groups = query_QND.shape[1] // key_KGD.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1).transpose(0, 1) for x in (key_KGD, value_KGD))
    mask = None
    if num_queries != num_keys:
        mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=key.device).tril(num_keys - num_queries)
    # With a batch dimension of 1: the CPU's fused kernel takes four-dimensional inputs only.
    output = F.scaled_dot_product_attention(
        query_QND.transpose(0, 1).unsqueeze(0),
        key.unsqueeze(0),
        value.unsqueeze(0),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
    )
    return output.squeeze(0).transpose(0, 1)
