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
        dense_h_to_4h: H -> 2 F, gate and up.
        dense_4h_to_h: F -> H.
        num_heads: N.
        num_key_value_heads: G.
        head_dim: D.
    """

    input_norm: Tensor
    post_attention_norm: Tensor
    eps: float
    query_key_value: AdaptedLinear
    dense: AdaptedLinear
    dense_h_to_4h: AdaptedLinear
    dense_4h_to_h: AdaptedLinear
    num_heads: int
    num_key_value_heads: int
    head_dim: int

    @property
    def projections(self) -> tuple[AdaptedLinear, ...]:
        """The four linear layers, in the order of the forward pass."""
        return self.query_key_value, self.dense, self.dense_h_to_4h, self.dense_4h_to_h


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
    """

    weights: LayerWeights
    cos: Tensor
    sin: Tensor
    segments: Segments
    rows: Tensor | None
    seed: Tensor | None
    stream: int
    is_checkpointed: bool


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
            ctx.save_for_backward(hidden_TH, low_down)
        else:
            ctx.save_for_backward(hidden_TH, low_down, *activations)
        return output

    @staticmethod
    def backward(ctx: Any, grad_QH: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        call: LayerCall = ctx.call
        hidden_TH, low_down, *kept = ctx.saved_tensors
        activations = _Activations(*kept) if kept else _attend_and_widen(call, hidden_TH)
        hidden_grad, *adapter_grads = _Backward(call).run(
            hidden_TH, activations, low_down, grad_QH.contiguous(), ctx.needs_input_grad[0]
        )
        return hidden_grad, None, *adapter_grads


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
    gate_up = _product(weights.dense_h_to_4h, normed_QH, low_up)
    return _Activations(query, key_value, attended, log_sum_exp, middle, gate_up, low, low_dense, low_up)


def _narrow(call: LayerCall, activations: _Activations) -> tuple[Tensor, Tensor]:
    """The rest of the forward pass; returns the output and `low` of the last projection."""
    activation = back_end(activations.gate_up_QF).swiglu(activations.gate_up_QF)
    low = _low(call, 3, activation)
    return _product(call.weights.dense_4h_to_h, activation, low, activations.middle_QH), low


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
    adapter = call.weights.projections[index].adapter
    if adapter is None:
        return x_TK.new_empty(x_TK.shape[0], 0)
    return _scaled_mm(_dropped(call, index, adapter, x_TK), adapter.a.T, adapter.scaling)


def _dropped(call: LayerCall, index: int, adapter: Adapter, x_TK: Tensor) -> Tensor:
    if call.seed is None or adapter.dropout == 0:
        return x_TK
    dropped: Tensor = back_end(x_TK).dropout(x_TK, adapter.dropout, call.seed, call.stream + index)
    return dropped


def _product(projection: AdaptedLinear, x_TK: Tensor, low_TR: Tensor, residual_TN: Tensor | None = None) -> Tensor:
    """What the projection with its adapter gives, plus a residual."""
    result = projection.linear.product(x_TK, residual_TN)
    return result if projection.adapter is None else result.addmm_(low_TR, projection.adapter.b.T)


def _scaled_mm(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """`scale * left @ right` in one go."""
    return torch.addmm(left.new_empty(1), left, right, beta=0, alpha=scale)


class _Backward:
    """The backward pass of one call; nothing is computed below the first gradient that somebody wants."""

    def __init__(self, call: LayerCall) -> None:
        self.call = call
        self.weights = call.weights
        self.adapter_grads: dict[int, tuple[Tensor, Tensor]] = {}

    def run(
        self,
        hidden_TH: Tensor,
        activations: _Activations,
        low_down: Tensor,
        grad_QH: Tensor,
        needs_hidden: bool,
    ) -> tuple[Tensor | None, ...]:
        """The gradient of the hidden states, and of A and B of each adapted projection."""
        hidden_grad = self._run(hidden_TH, activations, low_down, grad_QH, needs_hidden)
        return hidden_grad, *(grad for index in sorted(self.adapter_grads) for grad in self.adapter_grads[index])

    def _run(
        self, hidden_TH: Tensor, kept: _Activations, low_down: Tensor, grad_QH: Tensor, needs_hidden: bool
    ) -> Tensor | None:
        weights, ops = self.weights, back_end(hidden_TH)
        # Whether the input of each projection needs a gradient, for itself or for an adapter further down.
        needs = [needs_hidden]
        for projection in weights.projections[:3]:
            needs.append(needs[-1] or projection.adapter is not None)

        grad, low = self._through(3, grad_QH, low_down, needs[3])
        if grad is None:
            self._finish(3, low, None if low is None else ops.swiglu(kept.gate_up_QF))
            return None
        grad, activation = ops.swiglu_backward(grad, kept.gate_up_QF, low is not None)
        self._finish(3, low, activation)
        del activation

        grad, low = self._through(2, grad, kept.low_up, needs[2])
        if low is not None:
            normed = ops.rms_norm(kept.middle_QH, weights.post_attention_norm, weights.eps)
            self._finish(2, low, normed)
        if grad is None:
            return None
        middle_grad = ops.rms_norm_backward(grad, kept.middle_QH, weights.post_attention_norm, weights.eps, grad_QH)

        grad, low = self._through(1, middle_grad, kept.low_dense, needs[1])
        self._finish(1, low, kept.attended_QND.flatten(1))
        if grad is None:
            return None
        query_grad, key_value_grad = self._attention(grad.view_as(kept.attended_QND), kept)

        grad, low = self._heads(query_grad, key_value_grad, kept.low_query_key_value, needs[0])
        if low is not None:
            self._finish(0, low, ops.rms_norm(hidden_TH, weights.input_norm, weights.eps))
        if grad is None:
            return None
        residual = middle_grad
        if self.call.rows is not None:
            # Added, not copied: padding may name a row again, with a gradient of zero.
            residual = torch.zeros_like(hidden_TH).index_add_(0, self.call.rows, middle_grad)
        hidden_grad: Tensor = ops.rms_norm_backward(grad, hidden_TH, weights.input_norm, weights.eps, residual)
        return hidden_grad

    def _through(
        self, index: int, grad_TN: Tensor, low_TR: Tensor, needs_input: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Back through a projection: gradients of its input and of `low`; that of B is noted."""
        linear, adapter = self.weights.projections[index].linear, self.weights.projections[index].adapter
        input_grad = linear.input_gradient(grad_TN) if needs_input else None
        if adapter is None:
            return input_grad, None
        low_grad = _scaled_mm(grad_TN, adapter.b, adapter.scaling)
        self._note_b(index, back_end(grad_TN).wide_product(grad_TN.T, low_TR))
        self._add_low(index, adapter, low_grad, input_grad)
        return input_grad, low_grad

    def _add_low(self, index: int, adapter: Adapter, low_grad_TR: Tensor, input_grad_TK: Tensor | None) -> None:
        """Adds what reaches a projection's input through its adapter, in place."""
        if input_grad_TK is None:
            return
        if self.call.seed is None or adapter.dropout == 0:
            input_grad_TK.addmm_(low_grad_TR, adapter.a)
        else:
            through_a = low_grad_TR @ adapter.a
            stream = self.call.stream + index
            back_end(through_a).dropout_add_(input_grad_TK, through_a, adapter.dropout, self.call.seed, stream)

    def _note_b(self, index: int, b_grad: Tensor) -> None:
        self.adapter_grads[index] = (b_grad, b_grad)  # the first is A's place; `_finish` fills it

    def _finish(self, index: int, low_grad_TR: Tensor | None, x_TK: Tensor | None) -> None:
        """The gradient of A, which needs the projection's input `x` once more."""
        adapter = self.weights.projections[index].adapter
        if adapter is None or low_grad_TR is None or x_TK is None:
            return
        a_grad = back_end(x_TK).wide_product(low_grad_TR.T, _dropped(self.call, index, adapter, x_TK))
        self.adapter_grads[index] = (a_grad, self.adapter_grads[index][1])

    def _attention(self, grad_QND: Tensor, kept: _Activations) -> tuple[Tensor, Tensor]:
        """Gradients of queries, [Q, N, D], and of keys beside values, [T, 2 G, D], before rotation was applied."""
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

    def _heads(
        self, query_grad_QND: Tensor, key_value_grad_TGD: Tensor, low_TR: Tensor, needs_input: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Back through rotation and the query-key-value projection, as `_through`."""
        call, weights, ops = self.call, self.weights, back_end(query_grad_QND)
        heads, groups = weights.num_heads, weights.num_key_value_heads
        if call.rows is None:
            mixed = torch.cat((query_grad_QND, key_value_grad_TGD), dim=1)
            ops.rotate_(mixed, call.cos, call.sin, heads + groups, inverse=True)
            return self._through(0, mixed.flatten(1), low_TR, needs_input)
        rows = call.rows
        query_grad = query_grad_QND.contiguous()
        ops.rotate_(query_grad, call.cos.index_select(0, rows), call.sin.index_select(0, rows), heads, inverse=True)
        ops.rotate_(key_value_grad_TGD, call.cos, call.sin, groups, inverse=True)
        return self._through_parts(query_grad.flatten(1), key_value_grad_TGD.flatten(1), low_TR, needs_input)

    def _through_parts(
        self, query_grad: Tensor, key_value_grad: Tensor, low_TR: Tensor, needs_input: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """`_through` for the last layer, where only some rows ask."""
        rows = self.call.rows
        assert rows is not None
        for_query, for_key_value = _split(self.weights)
        input_grad = None
        if needs_input:
            input_grad = for_key_value.linear.input_gradient(key_value_grad)
            input_grad.index_add_(0, rows, for_query.linear.input_gradient(query_grad))
        adapter, query_adapter = for_key_value.adapter, for_query.adapter
        if adapter is None or query_adapter is None:
            return input_grad, None
        low_grad = _scaled_mm(key_value_grad, adapter.b, adapter.scaling)
        low_grad.index_add_(0, rows, _scaled_mm(query_grad, query_adapter.b, adapter.scaling))
        product = back_end(low_grad).wide_product
        parts = (product(query_grad.T, low_TR.index_select(0, rows)), product(key_value_grad.T, low_TR))
        self._note_b(0, torch.cat(parts))
        self._add_low(0, adapter, low_grad, input_grad)
        return input_grad, low_grad
