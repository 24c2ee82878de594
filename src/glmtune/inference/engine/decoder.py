"""The model's two passes over rows of tokens: one token of each sequence, or chunks of prompts.

Keys and values are written into the cache before any row of the pass attends to them. `decode` is made to be recorded
in a CUDA graph: shapes follow from those of its arguments alone, and nothing waits for the device.

Legend of dimension suffixes: R rows, T rows of a packed pass, W width of the block tables, M query, key and value
heads together, D head size, H hidden size, V vocabulary, C ranks of all adapters together.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Unpack

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from glmtune.inference.engine.adapters import StackedAdapters
from glmtune.inference.engine.cache import KeyValueCache
from glmtune.inference.engine.layers import DecoderWeights
from glmtune.ops import Segments, segment_attention
from glmtune.ops.back_end import back_end
from glmtune.ops.frozen_linear import Beside
from glmtune.ops.reference import BLOCK_SIZE

# Attends for the queries of a layer, by its number and the rotated heads [T, M, D]; returns [T, N, D].
_Attend = Callable[[int, Tensor], Tensor]


class PromptChunk(NamedTuple):
    """Consecutive tokens of one sequence, computed in one pass.

    Attributes:
        token_ids: Their ids.
        start: The position of the first; keys and values of all before it are in the cache.
        block_table: The sequence's blocks in order, as far as its last token here at least.
        adapter: The index of its adapter, 0 for none.
    """

    token_ids: Sequence[int]
    start: int
    block_table: Sequence[int]
    adapter: int = 0


class _Rows(NamedTuple):
    """Where the rows of a pass stand.

    Attributes:
        cos: Cosines of their positions, [T, rotated / 2].
        sin: Sines, likewise.
        slots: The slot of each row's key and value, [T].
        chosen_TC: Ones in the columns of each row's adapter, zeros elsewhere.
    """

    cos: Tensor
    sin: Tensor
    slots: Tensor
    chosen_TC: Tensor


class Decoder:
    """A model, its cache and its adapters.

    Args:
        weights: The model's weights.
        cache: Keys and values, in the model's dtype and on its device.
        adapters: The adapters that rows may choose from.
    """

    def __init__(self, weights: DecoderWeights, cache: KeyValueCache, adapters: StackedAdapters) -> None:
        self.weights = weights
        self.cache = cache
        self.adapters = adapters
        self._scale = weights.shape.head_dim**-0.5

    @torch.no_grad()
    def decode(self, token_ids_R: Tensor, positions_R: Tensor, block_tables_RW: Tensor, adapter_R: Tensor) -> Tensor:
        """Computes one token of each row's sequence; several rows may belong to one sequence.

        A row attends to the keys at positions 0 up to its own. Rows of padding have position -1: what they write goes
        to block 0, and their logits mean nothing.

        Args:
            token_ids_R: The tokens, [R] int64.
            positions_R: Their positions, [R] int32.
            block_tables_RW: The blocks of each row's sequence in order, [R, W] int32.
            adapter_R: The index of each row's adapter, [R] int32.

        Returns:
            Logits of the next token, [R, V] fp32.
        """
        positions = positions_R.clamp(min=0)
        block = block_tables_RW.gather(1, (positions // BLOCK_SIZE).long().unsqueeze(1)).squeeze(1)
        slots = torch.where(positions_R < 0, 0, block * BLOCK_SIZE + positions % BLOCK_SIZE)
        lengths = positions + 1

        def attend(layer: int, mixed_RMD: Tensor) -> Tensor:
            query = mixed_RMD[:, : self.weights.shape.num_attention_heads]
            key, value = self.cache.layer(layer)
            return back_end(query).paged_attention(query, key, value, block_tables_RW, lengths, self._scale)

        return self._logits(self._run(token_ids_R, self._rows(positions, slots, adapter_R), attend))

    @torch.no_grad()
    def prefill(self, chunks: Sequence[PromptChunk]) -> Tensor:
        """Computes chunks of prompts, packed into one pass.

        Args:
            chunks: At least one; each has at least one token.

        Returns:
            Logits of the token after each chunk, [len(chunks), V] fp32.
        """
        device = self.cache.key.device
        slots_of = [_slots(chunk) for chunk in chunks]
        lengths = numpy.array([len(chunk.token_ids) for chunk in chunks])
        token_ids = _on(device, [numpy.array(chunk.token_ids) for chunk in chunks])
        positions = _on(device, [numpy.arange(chunk.start, chunk.start + len(chunk.token_ids)) for chunk in chunks])
        slots = _on(device, [slots[chunk.start :] for slots, chunk in zip(slots_of, chunks, strict=True)])
        adapter = _on(device, [numpy.repeat([chunk.adapter for chunk in chunks], lengths)])
        ends = _on(device, [lengths.cumsum() - 1])
        key_slots = _on(device, slots_of) if any(chunk.start for chunk in chunks) else None
        segments = _segments(lengths, numpy.array([len(slots) for slots in slots_of]), device)

        def attend(layer: int, mixed_TMD: Tensor) -> Tensor:
            num_heads, groups = self.weights.shape.num_attention_heads, self.weights.shape.num_key_value_heads
            query, key, value = mixed_TMD.split([num_heads, groups, groups], dim=1)
            if key_slots is not None:
                key, value = (x.index_select(0, key_slots) for x in self.cache.layer(layer))
            return segment_attention(query, key, value, segments, self._scale)

        hidden_TH = self._run(token_ids, self._rows(positions, slots, adapter), attend)
        return self._logits(hidden_TH.index_select(0, ends))

    def _rows(self, positions: Tensor, slots: Tensor, adapter: Tensor) -> _Rows:
        weights = self.weights
        cos, sin = weights.cos.index_select(0, positions), weights.sin.index_select(0, positions)
        return _Rows(cos, sin, slots, self.adapters.chosen(adapter))

    def _run(self, token_ids_T: Tensor, rows: _Rows, attend: _Attend) -> Tensor:
        """The output of the last layer, [T, H]."""
        hidden_TH = self.weights.embedding(token_ids_T)
        for index in range(len(self.weights.layers)):
            hidden_TH = self._layer(index, hidden_TH, rows, attend)
        return hidden_TH

    def _layer(self, index: int, hidden_TH: Tensor, rows: _Rows, attend: _Attend) -> Tensor:
        if hidden_TH.shape[0] == 1:
            return self._layer_of_one_row(index, hidden_TH, rows, attend)
        layer, ops = self.weights.layers[index], back_end(hidden_TH)
        normed = ops.rms_norm(hidden_TH, layer.input_norm, layer.eps)
        mixed = self._project(index, 0, normed, rows).unflatten(1, (-1, layer.head_dim))
        ops.store_rotated(mixed, rows.cos, rows.sin, rows.slots, *self.cache.layer(index))
        attended = attend(index, mixed).flatten(1)
        middle = self._project(index, 1, attended, rows, hidden_TH)
        normed = ops.rms_norm(middle, layer.post_attention_norm, layer.eps)
        activation = ops.swiglu(self._project(index, 2, normed, rows))
        return self._project(index, 3, activation, rows, middle)

    def _project(
        self, index: int, projection: int, x_TK: Tensor, rows: _Rows, residual_TN: Tensor | None = None
    ) -> Tensor:
        """One of the four projections of a layer with each row's adapter, plus a residual."""
        output = self.weights.layers[index].projections[projection].linear.product(x_TK, residual_TN)
        self.adapters.add_to(output, x_TK, index, projection, rows.chosen_TC)
        return output

    def _layer_of_one_row(self, index: int, hidden_1H: Tensor, rows: _Rows, attend: _Attend) -> Tensor:
        """As `_layer`, with norms and activation as parts of the products: every launch counts here."""
        layer, ops = self.weights.layers[index], back_end(hidden_1H)
        norms = (layer.input_norm, layer.eps), (layer.post_attention_norm, layer.eps)
        mixed = self._row_product(index, 0, hidden_1H, rows, norm=norms[0]).unflatten(1, (-1, layer.head_dim))
        ops.store_rotated(mixed, rows.cos, rows.sin, rows.slots, *self.cache.layer(index))
        attended = attend(index, mixed).flatten(1)
        middle = self._row_product(index, 1, attended, rows, residual_1N=hidden_1H)
        activation = self._row_product(index, 2, middle, rows, norm=norms[1], is_gated=True)
        return self._row_product(index, 3, activation, rows, residual_1N=middle)

    def _row_product(self, index: int, projection: int, x_1K: Tensor, rows: _Rows, **beside: Unpack[Beside]) -> Tensor:
        """One of the four projections of a layer on a single row, with the row's adapter."""
        linear = self.weights.layers[index].projections[projection].linear
        beside["adapter"] = self.adapters.beside_row(x_1K, index, projection, rows.chosen_TC, beside.get("norm"))
        return linear.row_product(x_1K, **beside)

    def _logits(self, hidden_RH: Tensor) -> Tensor:
        ops, norm = back_end(hidden_RH), self.weights.final_norm
        if hidden_RH.shape[0] == 1:
            around = None if norm is None else (norm, self.weights.shape.norm_eps)
            one: Tensor = ops.gemv(
                hidden_RH, self.weights.head, norm=around, dtype=torch.promote_types(hidden_RH.dtype, torch.float32)
            )
            return one
        normed = hidden_RH if norm is None else ops.rms_norm(hidden_RH, norm, self.weights.shape.norm_eps)
        logits: Tensor = ops.wide_product(normed, self.weights.head.T)
        return logits


def _slots(chunk: PromptChunk) -> NDArray[numpy.int64]:
    """The slots of a chunk's sequence, from its first token to the chunk's last."""
    positions = numpy.arange(chunk.start + len(chunk.token_ids))
    return numpy.asarray(chunk.block_table)[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE


def _segments(num_queries: NDArray[numpy.int64], num_keys: NDArray[numpy.int64], device: torch.device) -> Segments:
    """Each chunk's queries with the keys of its whole sequence."""
    cu_query, cu_key = (
        torch.from_numpy(numpy.concatenate(([0], lengths.cumsum())).astype(numpy.int32)).to(device)
        for lengths in (num_queries, num_keys)
    )
    return Segments(cu_query, cu_key, int(num_queries.max()), int(num_keys.max()))


def _on(device: torch.device, parts: Sequence[NDArray[numpy.int64]]) -> Tensor:
    return torch.from_numpy(numpy.concatenate(parts)).to(device)
