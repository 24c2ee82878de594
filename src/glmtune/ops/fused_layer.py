"""A transformer layer with its LoRA adapters as one autograd function that saves as few activations as it can.

Saved for the backward pass are the layer's input, queries, keys and values after rotation, the attended values, the
log-sum-exp of the scores, the residual stream between attention and MLP, and gate and up: 88.7 KB per token and layer
at ChatGLM3-6B's shape in 16 bits. Norms and activation are recomputed from these, dropout masks from their seeds. A
checkpointed layer saves only its input, 8.2 KB, and repeats the forward pass up to gate and up.

Legend of dimension suffixes: T tokens of a packed batch, Q queries (all tokens, or in the last layer those with
labels), K gathered keys, N query heads, G key and value heads, D head size, H hidden size, R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glmtune.ops.attention import attention_backward, attention_forward
from glmtune.ops.back_end import back_end
from glmtune.ops.projection import InputGradients, Projection
from glmtune.ops.segments import Segments


@dataclass(frozen=True)
class LayerWeights:
    """A layer's weights and sizes.

    Attributes:
        input_norm: Scale of the norm before attention, [H].
        post_attention_norm: Scale of the norm before the MLP, [H].
        eps: The norms' epsilon.
        query_key_value: H -> (N + 2 G) D: all queries, then all keys, then all values.
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
    query_key_value: Projection
    dense: Projection
    up: Projection
    down: Projection
    num_heads: int
    num_key_value_heads: int
    head_dim: int

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The four linear layers, in the order of the forward pass."""
        return self.query_key_value, self.dense, self.up, self.down


@dataclass(frozen=True)
class LayerCall:
    """The inputs of a layer other than the hidden states.

    Attributes:
        weights: The layer.
        cos: Cosines of the rotary positions, [T, rotated / 2].
        sin: Sines.
        segments: Which keys each query attends to.
        query_indices: The tokens that are queries, [Q], in the last layer; None for all.
        seed: The seed of the dropout masks, [1] int64; None for no dropout.
        stream: Stream number of the layer's first dropout mask; the layer also uses the next three.
        is_checkpointed: Whether to save only the input for the backward pass.
        offloads_checkpoint: Whether to save it in pinned host memory.
    """

    weights: LayerWeights
    cos: Tensor
    sin: Tensor
    segments: Segments
    query_indices: Tensor | None
    seed: Tensor | None
    stream: int
    is_checkpointed: bool
    offloads_checkpoint: bool = False


def fused_layer(hidden_TH: Tensor, call: LayerCall, adapter_parameters: Sequence[Tensor]) -> Tensor:
    """Runs a layer; differentiable in the hidden states and in the adapters.

    Args:
        hidden_TH: The residual stream, [T, H].
        call: The layer and its other inputs.
        adapter_parameters: The parameters that receive the adapters' gradients: A [R, in] and B [out, R] of each
            adapted projection, in the order of `LayerWeights.projections`. The values used are those in `call.weights`.

    Returns:
        The residual stream for the next layer, [Q, H].
    """
    with torch.autocast(hidden_TH.device.type, enabled=False):
        output: Tensor = _FusedLayer.apply(hidden_TH, call, *adapter_parameters)
    return output


class _Projections(NamedTuple):
    """The projections of a call."""

    query_key_value: Projection
    dense: Projection
    up: Projection
    down: Projection

    @classmethod
    def of(cls, call: LayerCall) -> "_Projections":
        """The projections of a call, each with its own dropout mask."""
        weights, seed, stream = call.weights, call.seed, call.stream
        return cls(
            query_key_value=weights.query_key_value.with_dropout(seed, stream),
            dense=weights.dense.with_dropout(seed, stream + 1),
            up=weights.up.with_dropout(seed, stream + 2),
            down=weights.down.with_dropout(seed, stream + 3),
        )


class _Activations(NamedTuple):
    """The activations that the backward pass needs besides the input; `low_*` are results of `Projection.low`."""

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
        projections = _Projections.of(call)
        activations = _attend_and_widen(call, projections, hidden_TH)
        output, low_down = _narrow(projections.down, activations)
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
        projections = _Projections.of(call)
        hidden_TH, low_down, *kept = ctx.saved_tensors
        hidden_TH = hidden_TH.to(grad_QH.device, non_blocking=True)
        activations = _Activations(*kept) if kept else _attend_and_widen(call, projections, hidden_TH)
        hidden_grad, *adapter_grads = _Backward(call, projections).run(
            hidden_TH, activations, low_down, grad_QH.contiguous(), ctx.needs_input_grad[0]
        )
        return hidden_grad, None, *adapter_grads


def _to_host(x: Tensor) -> Tensor:
    """A copy in pinned host memory, made asynchronously and in stream order."""
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda).copy_(x, non_blocking=True)


def _attend_and_widen(call: LayerCall, projections: _Projections, hidden_TH: Tensor) -> _Activations:
    """The forward pass up to gate and up."""
    weights, ops = call.weights, back_end(hidden_TH)
    normed_TH = ops.rms_norm(hidden_TH, weights.input_norm, weights.eps)
    low = projections.query_key_value.low(normed_TH)
    query, key_value = _project_heads(call, projections.query_key_value, normed_TH, low)
    key, value = _gathered(call, key_value)
    attended, log_sum_exp = attention_forward(query, key, value, call.segments, weights.head_dim**-0.5)
    residual = hidden_TH if call.query_indices is None else hidden_TH.index_select(0, call.query_indices)
    low_dense = projections.dense.low(attended.flatten(1))
    middle = projections.dense.output(attended.flatten(1), low_dense, residual)
    normed_QH = ops.rms_norm(middle, weights.post_attention_norm, weights.eps)
    low_up = projections.up.low(normed_QH)
    gate_up = projections.up.output(normed_QH, low_up)
    return _Activations(query, key_value, attended, log_sum_exp, middle, gate_up, low, low_dense, low_up)


def _narrow(down: Projection, activations: _Activations) -> tuple[Tensor, Tensor]:
    """The rest of the forward pass; returns the output and `low` of the last projection."""
    activation = back_end(activations.gate_up_QF).swiglu(activations.gate_up_QF)
    low = down.low(activation)
    return down.output(activation, low, activations.middle_QH), low


def _project_heads(call: LayerCall, projection: Projection, normed_TH: Tensor, low_TR: Tensor) -> tuple[Tensor, Tensor]:
    """Queries, [Q, N, D], and keys beside values, [T, 2 G, D], rotated."""
    weights, ops = call.weights, back_end(normed_TH)
    heads, groups, size = weights.num_heads, weights.num_key_value_heads, weights.head_dim
    if call.query_indices is None:
        mixed = projection.output(normed_TH, low_TR).view(-1, heads + 2 * groups, size)
        ops.rotate_(mixed, call.cos, call.sin, heads + groups)
        return mixed[:, :heads], mixed[:, heads:]
    for_query, for_key_value = _query_and_key_value(projection, weights)
    indices = call.query_indices
    query = for_query.output(normed_TH.index_select(0, indices), low_TR.index_select(0, indices)).view(-1, heads, size)
    ops.rotate_(query, call.cos.index_select(0, indices), call.sin.index_select(0, indices), heads)
    key_value = for_key_value.output(normed_TH, low_TR).view(-1, 2 * groups, size)
    ops.rotate_(key_value, call.cos, call.sin, groups)
    return query, key_value


def _query_and_key_value(projection: Projection, weights: LayerWeights) -> tuple[Projection, Projection]:
    """The query-key-value projection as one for queries and one for keys and values."""
    cut = weights.num_heads * weights.head_dim
    return projection.parts(cut, cut + 2 * weights.num_key_value_heads * weights.head_dim)


def _gathered(call: LayerCall, key_value_TGD: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values, [K, G, D] each, gathered if the segments require it."""
    indices = call.segments.key_indices
    gathered = key_value_TGD if indices is None else key_value_TGD.index_select(0, indices)
    key, value = gathered.chunk(2, dim=1)
    return key, value


class _Backward:
    """The backward pass of one call; it stops at the lowest gradient that is needed."""

    def __init__(self, call: LayerCall, projections: _Projections) -> None:
        self.call = call
        self.weights = call.weights
        self.projections = projections
        self.adapter_grads: list[tuple[Tensor, Tensor]] = []  # of A and B, from the last adapted projection on

    def run(
        self, hidden_TH: Tensor, kept: _Activations, low_down: Tensor, grad_QH: Tensor, needs_hidden: bool
    ) -> tuple[Tensor | None, ...]:
        """The gradient of the hidden states, and of A and B of each adapted projection."""
        hidden_grad = self._run(hidden_TH, kept, low_down, grad_QH, needs_hidden)
        return hidden_grad, *(grad for pair in reversed(self.adapter_grads) for grad in pair)

    def _run(
        self, hidden_TH: Tensor, kept: _Activations, low_down: Tensor, grad_QH: Tensor, needs_hidden: bool
    ) -> Tensor | None:
        weights, eps, ops = self.weights, self.weights.eps, back_end(hidden_TH)
        query_key_value, dense, up, down = self.projections
        # Whether the input of a projection needs a gradient, for the hidden states or for an adapter nearer the input.
        needs_attended = needs_hidden or query_key_value.adapter is not None
        needs_normed = needs_attended or dense.adapter is not None
        needs_activation = needs_normed or up.adapter is not None

        grads = down.backward(grad_QH, low_down, needs_activation)
        if grads.input is None:
            self._note(grads, down.dropped(ops.swiglu(kept.gate_up_QF)))
            return None
        is_adapted = grads.low is not None
        gate_up_grad, dropped = ops.swiglu_backward(grads.input, kept.gate_up_QF, is_adapted, grads.masked, down.mask)
        self._note(grads, dropped)
        del grads, dropped

        grads = up.backward(gate_up_grad, kept.low_up, needs_normed)
        del gate_up_grad
        if grads.low is not None:
            self._note(grads, ops.rms_norm(kept.middle_QH, weights.post_attention_norm, eps, up.mask))
        if grads.input is None:
            return None
        middle_grad = ops.rms_norm_backward(
            grads.input, kept.middle_QH, weights.post_attention_norm, eps, grad_QH, grads.masked, up.mask
        )
        del grads

        grads = dense.backward(middle_grad, kept.low_dense, needs_attended)
        if grads.low is not None:
            self._note(grads, dense.dropped(kept.attended_QND.flatten(1)))
        if grads.input is None:
            return None
        if grads.masked is not None:
            ops.dropout_add_(grads.input, grads.masked, dense.mask)
        query_grad, key_value_grad = self._attention(grads.input.view_as(kept.attended_QND), kept)

        grads = self._heads(query_grad, key_value_grad, kept.low_query_key_value, needs_hidden)
        if grads.low is not None:
            normed = ops.rms_norm(hidden_TH, weights.input_norm, eps, query_key_value.mask)
            self._note(grads, normed)
        if grads.input is None:
            return None
        residual = middle_grad
        if self.call.query_indices is not None:
            # Added, not copied: padding may repeat a row, with a gradient of zero.
            residual = torch.zeros_like(hidden_TH).index_add_(0, self.call.query_indices, middle_grad)
        hidden_grad: Tensor = ops.rms_norm_backward(
            grads.input, hidden_TH, weights.input_norm, eps, residual, grads.masked, query_key_value.mask
        )
        return hidden_grad

    def _note(self, grads: InputGradients, dropped_TK: Tensor | None) -> None:
        """Records the gradients of A and B; that of A is computed from the adapter's input."""
        if grads.low is not None and grads.b is not None and dropped_TK is not None:
            a_grad = back_end(dropped_TK).wide_product(grads.low.T, dropped_TK)
            self.adapter_grads.append((a_grad, grads.b))

    def _attention(self, grad_QND: Tensor, kept: _Activations) -> tuple[Tensor, Tensor]:
        """Gradients of the rotated queries, [Q, N, D], and of rotated keys beside values, [T, 2 G, D]."""
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
    ) -> InputGradients:
        """Backward pass through rotation and the query-key-value projection."""
        call, weights, ops = self.call, self.weights, back_end(query_grad_QND)
        projection = self.projections.query_key_value
        heads, groups = weights.num_heads, weights.num_key_value_heads
        if call.query_indices is None:
            mixed = torch.cat((query_grad_QND, key_value_grad_TGD), dim=1)
            ops.rotate_(mixed, call.cos, call.sin, heads + groups, inverse=True)
            return projection.backward(mixed.flatten(1), low_TR, needs_input)
        cos, sin = (angles.index_select(0, call.query_indices) for angles in (call.cos, call.sin))
        query_grad = query_grad_QND.contiguous()
        ops.rotate_(query_grad, cos, sin, heads, inverse=True)
        ops.rotate_(key_value_grad_TGD, call.cos, call.sin, groups, inverse=True)
        grads = query_grad.flatten(1), key_value_grad_TGD.flatten(1)
        parts = _query_and_key_value(projection, weights)
        return projection.backward_of_parts(parts, grads, call.query_indices, low_TR, needs_input)
