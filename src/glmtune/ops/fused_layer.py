"""A transformer layer with its LoRA adapters as one autograd function that keeps the least and computes nothing twice.

Kept for the backward pass are the layer's input, queries, keys and values after rotation, the attended values, the
log-sum-exp of the scores, the residual stream between attention and MLP, and gate and up: 88.7 KB a token and layer at
ChatGLM3-6B's shape in 16 bits. Norms and activation are computed again from these, dropout masks from their seeds. A
checkpointed layer keeps its input alone, 8.2 KB, and runs forward again up to gate and up.

Legend of dimension suffixes: T rows (tokens, packed), Q rows that ask (all, or in the last layer the label rows), K
gathered keys, N query heads, G key and value heads, D head size, H hidden size, R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glmtune.ops.attention import attention_backward, attention_forward
from glmtune.ops.back_end import back_end
from glmtune.ops.frozen_linear import FrozenLinear
from glmtune.ops.reference import Mask
from glmtune.ops.segments import Segments


class Adapter(NamedTuple):
    """A LoRA adapter: `scaling * dropout(x) @ a.T @ b.T` is added to what a frozen linear layer gives.

    Attributes:
        a: [R, in], in the dtype that is computed in.
        b: [out, R], likewise.
        scaling: Usually `lora_alpha / r`.
        dropout: Probability of the dropout on the input.
    """

    a: Tensor
    b: Tensor
    scaling: float
    dropout: float


@dataclass(frozen=True)
class AdaptedLinear:
    """A frozen linear layer and its adapter, if it has one."""

    linear: FrozenLinear
    adapter: Adapter | None = None


@dataclass(frozen=True)
class LayerWeights:
    """A layer's weights and sizes.

    Attributes:
        input_norm: Scale of the norm before attention, [H].
        post_attention_norm: Scale of the norm before the MLP, [H].
        eps: The norms' epsilon.
        query_key_value: H -> (N + 2 G) D: queries, keys, values, one after the other.
        dense: N D -> H.
        up: H -> 2 F, gate and up.
        down: F -> H.
        num_heads: N.
        num_key_value_heads: G.
        head_dim: D.
    """

    input_norm: Tensor
    post_attention_norm: Tensor
    eps: float
    query_key_value: AdaptedLinear
    dense: AdaptedLinear
    up: AdaptedLinear
    down: AdaptedLinear
    num_heads: int
    num_key_value_heads: int
    head_dim: int

    @property
    def projections(self) -> tuple[AdaptedLinear, ...]:
        """The four linear layers, in the order of the forward pass."""
        return self.query_key_value, self.dense, self.up, self.down


@dataclass(frozen=True)
class LayerCall:
    """What a layer is run on, beside the hidden states.

    Attributes:
        weights: The layer.
        cos: Cosines of the rotary positions, [T, rotated / 2].
        sin: Sines.
        segments: Who sees what.
        rows: The rows that ask, [Q], in the last layer; None for all.
        seed: The dropout masks follow from it, [1] int64; None for no dropout.
        stream: Tells the layer's masks from those of other layers; the next three numbers are the layer's too.
        is_checkpointed: Whether to keep the input alone.
        offloads_checkpoint: Whether to keep it in the host's memory, pinned.
    """

    weights: LayerWeights
    cos: Tensor
    sin: Tensor
    segments: Segments
    rows: Tensor | None
    seed: Tensor | None
    stream: int
    is_checkpointed: bool
    offloads_checkpoint: bool = False


def fused_layer(hidden_TH: Tensor, call: LayerCall, adapter_parameters: Sequence[Tensor]) -> Tensor:
    """Runs a layer; differentiable in the hidden states and in the adapters.

    Args:
        hidden_TH: The residual stream, [T, H].
        call: The layer and what it is run on.
        adapter_parameters: What the gradients of the adapters go to: A [R, in] and B [out, R] of each adapted
            projection, in the order of `LayerWeights.projections`. Their values are taken from `call.weights`.

    Returns:
        The residual stream for the next layer, [Q, H].
    """
    with torch.autocast(hidden_TH.device.type, enabled=False):
        output: Tensor = _FusedLayer.apply(hidden_TH, call, *adapter_parameters)
    return output


class _Activations(NamedTuple):
    """What the backward pass needs beside the input; `low_*` are `scaling * dropout(x) @ a.T`, [., R], or empty."""

    query_QND: Tensor
    key_value_TGD: Tensor
    attended_QND: Tensor
    log_sum_exp: Tensor
    middle_QH: Tensor
    gate_up_QF: Tensor
    low_query_key_value: Tensor
    low_dense: Tensor
    low_up: Tensor


class _FusedLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TH: Tensor, call: LayerCall, *adapter_parameters: Tensor) -> Tensor:
        activations = _attend_and_widen(call, hidden_TH)
        output, low_down = _narrow(call, activations)
        ctx.call = call
        if call.is_checkpointed:
            is_kept_on_host = call.offloads_checkpoint and any(ctx.needs_input_grad)
            ctx.save_for_backward(_to_host(hidden_TH) if is_kept_on_host else hidden_TH, low_down)
        else:
            ctx.save_for_backward(hidden_TH, low_down, *activations)
        return output

    @staticmethod
    def backward(ctx: Any, grad_QH: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        call: LayerCall = ctx.call
        hidden_TH, low_down, *kept = ctx.saved_tensors
        hidden_TH = hidden_TH.to(grad_QH.device, non_blocking=True)
        activations = _Activations(*kept) if kept else _attend_and_widen(call, hidden_TH)
        hidden_grad, *adapter_grads = _Backward(call).run(
            hidden_TH, activations, low_down, grad_QH.contiguous(), ctx.needs_input_grad[0]
        )
        return hidden_grad, None, *adapter_grads


def _to_host(x: Tensor) -> Tensor:
    """A copy in pinned memory, which the device makes in its own time: in order with whatever else it is asked for."""
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda).copy_(x, non_blocking=True)


def _attend_and_widen(call: LayerCall, hidden_TH: Tensor) -> _Activations:
    """The forward pass up to gate and up."""
    weights, ops = call.weights, back_end(hidden_TH)
    normed_TH = ops.rms_norm(hidden_TH, weights.input_norm, weights.eps)
    low = _low(call, 0, normed_TH)
    query, key_value = _project_heads(call, normed_TH, low)
    key, value = _gathered(call, key_value)
    attended, log_sum_exp = attention_forward(query, key, value, call.segments, weights.head_dim**-0.5)
    residual = hidden_TH if call.rows is None else hidden_TH.index_select(0, call.rows)
    low_dense = _low(call, 1, attended.flatten(1))
    middle = _product(weights.dense, attended.flatten(1), low_dense, residual)
    normed_QH = ops.rms_norm(middle, weights.post_attention_norm, weights.eps)
    low_up = _low(call, 2, normed_QH)
    gate_up = _product(weights.up, normed_QH, low_up)
    return _Activations(query, key_value, attended, log_sum_exp, middle, gate_up, low, low_dense, low_up)


def _narrow(call: LayerCall, activations: _Activations) -> tuple[Tensor, Tensor]:
    """The rest of the forward pass; returns the output and `low` of the last projection."""
    activation = back_end(activations.gate_up_QF).swiglu(activations.gate_up_QF)
    low = _low(call, 3, activation)
    return _product(call.weights.down, activation, low, activations.middle_QH), low


def _project_heads(call: LayerCall, normed_TH: Tensor, low_TR: Tensor) -> tuple[Tensor, Tensor]:
    """Queries, [Q, N, D], and keys beside values, [T, 2 G, D], rotated."""
    weights, ops = call.weights, back_end(normed_TH)
    heads, groups, size = weights.num_heads, weights.num_key_value_heads, weights.head_dim
    if call.rows is None:
        mixed = _product(weights.query_key_value, normed_TH, low_TR).view(-1, heads + 2 * groups, size)
        ops.rotate_(mixed, call.cos, call.sin, heads + groups)
        return mixed[:, :heads], mixed[:, heads:]
    for_query, for_key_value = _split(weights)
    rows = call.rows
    query = _product(for_query, normed_TH.index_select(0, rows), low_TR.index_select(0, rows)).view(-1, heads, size)
    ops.rotate_(query, call.cos.index_select(0, rows), call.sin.index_select(0, rows), heads)
    key_value = _product(for_key_value, normed_TH, low_TR).view(-1, 2 * groups, size)
    ops.rotate_(key_value, call.cos, call.sin, groups)
    return query, key_value


def _split(weights: LayerWeights) -> tuple[AdaptedLinear, AdaptedLinear]:
    """The query-key-value projection as one for queries and one for keys and values."""
    linear, adapter = weights.query_key_value.linear, weights.query_key_value.adapter
    end = (weights.num_heads + 2 * weights.num_key_value_heads) * weights.head_dim
    cut = weights.num_heads * weights.head_dim
    parts = (linear.part(0, cut), linear.part(cut, end))
    if adapter is None:
        return AdaptedLinear(parts[0]), AdaptedLinear(parts[1])
    return (
        AdaptedLinear(parts[0], adapter._replace(b=adapter.b[:cut])),
        AdaptedLinear(parts[1], adapter._replace(b=adapter.b[cut:])),
    )


def _gathered(call: LayerCall, key_value_TGD: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values, [K, G, D] each, as the segments want them."""
    rows = call.segments.key_rows
    gathered = key_value_TGD if rows is None else key_value_TGD.index_select(0, rows)
    key, value = gathered.chunk(2, dim=1)
    return key, value


def _low(call: LayerCall, index: int, x_TK: Tensor) -> Tensor:
    """`scaling * dropout(x) @ a.T` of projection number `index`, [T, R]; [T, 0] without an adapter."""
    adapter, mask = call.weights.projections[index].adapter, _mask(call, index)
    if adapter is None:
        return x_TK.new_empty(x_TK.shape[0], 0)
    dropped = x_TK if mask is None else back_end(x_TK).dropout(x_TK, mask)
    return _scaled_mm(dropped, adapter.a.T, adapter.scaling)


def _mask(call: LayerCall, index: int) -> Mask | None:
    """The dropout on the input of an adapter; None where there is none."""
    adapter = call.weights.projections[index].adapter
    if adapter is None or adapter.dropout == 0 or call.seed is None:
        return None
    return Mask(adapter.dropout, call.seed, call.stream + index)


def _product(projection: AdaptedLinear, x_TK: Tensor, low_TR: Tensor, residual_TN: Tensor | None = None) -> Tensor:
    """What the projection with its adapter gives, plus a residual."""
    result = projection.linear.product(x_TK, residual_TN)
    return result if projection.adapter is None else result.addmm_(low_TR, projection.adapter.b.T)


def _scaled_mm(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """`scale * left @ right` in one go."""
    return torch.addmm(left.new_empty(1), left, right, beta=0, alpha=scale)


class _Through(NamedTuple):
    """What comes back through a projection.

    Attributes:
        input: The gradient of its input, without what came through a dropout; None where nobody wants it.
        masked: What came through its adapter's dropout, the dropout itself not yet applied; None for nothing.
        low: The gradient of `low`, which that of A is made from; None without an adapter.
    """

    input: Tensor | None
    masked: Tensor | None = None
    low: Tensor | None = None


class _Backward:
    """The backward pass of one call; nothing is computed below the first gradient that somebody wants."""

    def __init__(self, call: LayerCall) -> None:
        self.call = call
        self.weights = call.weights
        self.a_grads: dict[int, Tensor] = {}
        self.b_grads: dict[int, Tensor] = {}

    def run(
        self, hidden_TH: Tensor, kept: _Activations, low_down: Tensor, grad_QH: Tensor, needs_hidden: bool
    ) -> tuple[Tensor | None, ...]:
        """The gradient of the hidden states, and of A and B of each adapted projection."""
        hidden_grad = self._run(hidden_TH, kept, low_down, grad_QH, needs_hidden)
        return hidden_grad, *(grads[index] for index in sorted(self.a_grads) for grads in (self.a_grads, self.b_grads))

    def _run(
        self, hidden_TH: Tensor, kept: _Activations, low_down: Tensor, grad_QH: Tensor, needs_hidden: bool
    ) -> Tensor | None:
        weights, eps, ops = self.weights, self.weights.eps, back_end(hidden_TH)
        # Whether the input of each projection needs a gradient, for itself or for an adapter further down.
        needs = [needs_hidden]
        for projection in weights.projections[:3]:
            needs.append(needs[-1] or projection.adapter is not None)
        masks = [_mask(self.call, index) for index in range(4)]

        down = self._through(3, grad_QH, low_down, needs[3])
        if down.input is None:
            activation = ops.swiglu(kept.gate_up_QF)
            self._finish(3, down.low, activation if masks[3] is None else ops.dropout(activation, masks[3]))
            return None
        is_adapted = down.low is not None
        grad, dropped = ops.swiglu_backward(down.input, kept.gate_up_QF, is_adapted, down.masked, masks[3])
        self._finish(3, down.low, dropped)
        del down, dropped

        up = self._through(2, grad, kept.low_up, needs[2])
        del grad
        if up.low is not None:
            self._finish(2, up.low, ops.rms_norm(kept.middle_QH, weights.post_attention_norm, eps, masks[2]))
        if up.input is None:
            return None
        middle_grad = ops.rms_norm_backward(
            up.input, kept.middle_QH, weights.post_attention_norm, eps, grad_QH, up.masked, masks[2]
        )
        del up

        dense = self._through(1, middle_grad, kept.low_dense, needs[1])
        if dense.low is not None:
            attended = kept.attended_QND.flatten(1)
            self._finish(1, dense.low, attended if masks[1] is None else ops.dropout(attended, masks[1]))
        if dense.input is None:
            return None
        if dense.masked is not None:
            ops.dropout_add_(dense.input, dense.masked, masks[1])
        query_grad, key_value_grad = self._attention(dense.input.view_as(kept.attended_QND), kept)

        mixed = self._heads(query_grad, key_value_grad, kept.low_query_key_value, needs[0])
        if mixed.low is not None:
            self._finish(0, mixed.low, ops.rms_norm(hidden_TH, weights.input_norm, eps, masks[0]))
        if mixed.input is None:
            return None
        residual = middle_grad
        if self.call.rows is not None:
            # Added, not copied: padding may name a row again, with a gradient of zero.
            residual = torch.zeros_like(hidden_TH).index_add_(0, self.call.rows, middle_grad)
        hidden_grad: Tensor = ops.rms_norm_backward(
            mixed.input, hidden_TH, weights.input_norm, eps, residual, mixed.masked, masks[0]
        )
        return hidden_grad

    def _through(self, index: int, grad_TN: Tensor, low_TR: Tensor, needs_input: bool) -> _Through:
        """Back through projection number `index`; the gradient of its B is noted."""
        linear, adapter = self.weights.projections[index].linear, self.weights.projections[index].adapter
        input_grad = linear.input_gradient(grad_TN) if needs_input else None
        if adapter is None:
            return _Through(input_grad)
        self.b_grads[index] = back_end(grad_TN).wide_product(grad_TN.T, low_TR)
        return self._through_a(index, adapter, _scaled_mm(grad_TN, adapter.b, adapter.scaling), input_grad)

    def _through_a(self, index: int, adapter: Adapter, low_grad_TR: Tensor, input_grad_TK: Tensor | None) -> _Through:
        """From the gradient of `low` to that of the input, which it is added to where no dropout lies between."""
        masked = None
        if input_grad_TK is not None and _mask(self.call, index) is not None:
            masked = low_grad_TR @ adapter.a
        elif input_grad_TK is not None:
            input_grad_TK.addmm_(low_grad_TR, adapter.a)
        return _Through(input_grad_TK, masked, low_grad_TR)

    def _finish(self, index: int, low_grad_TR: Tensor | None, dropped_TK: Tensor | None) -> None:
        """Notes the gradient of A, from the projection's input after dropout."""
        if low_grad_TR is not None and dropped_TK is not None:
            self.a_grads[index] = back_end(dropped_TK).wide_product(low_grad_TR.T, dropped_TK)

    def _attention(self, grad_QND: Tensor, kept: _Activations) -> tuple[Tensor, Tensor]:
        """Gradients of queries, [Q, N, D], and of keys beside values, [T, 2 G, D], as rotated."""
        call, groups = self.call, self.weights.num_key_value_heads
        key, value = _gathered(call, kept.key_value_TGD)
        query_grad, key_grad, value_grad = attention_backward(
            grad_QND,
            kept.query_QND,
            key,
            value,
            kept.attended_QND,
            kept.log_sum_exp,
            call.segments,
            self.weights.head_dim**-0.5,
        )
        key_value_grad = torch.cat((key_grad, value_grad), dim=1)
        order, offsets = call.segments.slot_order, call.segments.slot_offsets
        if order is not None and offsets is not None:
            summed = back_end(grad_QND).sum_slots(key_value_grad.flatten(1), order, offsets)
            key_value_grad = summed.view(-1, 2 * groups, self.weights.head_dim)
        return query_grad, key_value_grad

    def _heads(self, query_grad_QND: Tensor, key_value_grad_TGD: Tensor, low_TR: Tensor, needs_input: bool) -> _Through:
        """Back through rotation and the query-key-value projection."""
        call, weights, ops = self.call, self.weights, back_end(query_grad_QND)
        heads, groups = weights.num_heads, weights.num_key_value_heads
        if call.rows is None:
            mixed = torch.cat((query_grad_QND, key_value_grad_TGD), dim=1)
            ops.rotate_(mixed, call.cos, call.sin, heads + groups, inverse=True)
            return self._through(0, mixed.flatten(1), low_TR, needs_input)
        cos, sin = (angles.index_select(0, call.rows) for angles in (call.cos, call.sin))
        query_grad = query_grad_QND.contiguous()
        ops.rotate_(query_grad, cos, sin, heads, inverse=True)
        ops.rotate_(key_value_grad_TGD, call.cos, call.sin, groups, inverse=True)
        return self._through_parts(query_grad.flatten(1), key_value_grad_TGD.flatten(1), low_TR, call.rows, needs_input)

    def _through_parts(
        self, query_grad: Tensor, key_value_grad: Tensor, low_TR: Tensor, rows: Tensor, needs_input: bool
    ) -> _Through:
        """`_through` for the last layer, where only some rows ask."""
        for_query, for_key_value = _split(self.weights)
        input_grad = None
        if needs_input:
            input_grad = for_key_value.linear.input_gradient(key_value_grad)
            input_grad.index_add_(0, rows, for_query.linear.input_gradient(query_grad))
        if for_key_value.adapter is None or for_query.adapter is None:
            return _Through(input_grad)
        adapter, query_adapter = for_key_value.adapter, for_query.adapter
        low_grad = _scaled_mm(key_value_grad, adapter.b, adapter.scaling)
        low_grad.index_add_(0, rows, _scaled_mm(query_grad, query_adapter.b, adapter.scaling))
        product = back_end(low_grad).wide_product
        parts = (product(query_grad.T, low_TR.index_select(0, rows)), product(key_value_grad.T, low_TR))
        self.b_grads[0] = torch.cat(parts)
        return self._through_a(0, adapter, low_grad, input_grad)
