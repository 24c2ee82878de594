"""How much of a GPU's memory a run takes: terms that follow from the model's shape, the adapter and the settings.

docs/memory.en.md explains each term. `overhead` and `reserve` cover the allocator and the libraries, and are
approximate.

Legend: T tokens of a pass, Q labels, H hidden size, F MLP width, A attention width (heads times head size), R ranks.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from glmtune.data.packing import MOST_GRAPHED_TOKENS
from glmtune.loading.formats import Quantize
from glmtune.loading.shape import BaseShape, base_bytes
from glmtune.models.family import Shape
from glmtune.ops.label_head import CHUNK_LABELS
from glmtune.planning.shape import AdapterShape

# Unfused layers keep about twice as much: PEFT's fp32 inputs, and intermediates of norms and activations.
_UNFUSED_FACTOR = 2.1
# Workspaces of cuBLAS: 32 MiB per calling thread, and as much again for products with a bias.
_OVERHEAD = 96 * 2**20
# Memory that the allocator reserves beyond what is in use: a few large blocks, and fragmentation.
_RESERVE, _RESERVE_SHARE = 128 * 2**20, 0.03
# Flash attention's backward pass works on whole blocks of this many tokens of a segment.
_FLASH_BLOCK = 128


@dataclass(frozen=True)
class Pass:
    """The size of a forward and backward pass.

    Attributes:
        num_tokens: Tokens computed, padding included: T.
        num_labels: Those whose next token is supervised: Q.
        num_segments: Segments, which do not attend to each other.
    """

    num_tokens: int
    num_labels: int
    num_segments: int


class StepShape(NamedTuple):
    """The passes of an optimiser step under a limit of tokens per pass.

    Attributes:
        max_tokens: The limit: most tokens of a pass.
        largest: The largest possible pass.
        num_passes: Passes of a step, on average.
        mean_tokens: Tokens computed in a pass, padding included, on average.
        mean_labels: Labels of a pass, on average.
    """

    max_tokens: int
    largest: Pass
    num_passes: float
    mean_tokens: float
    mean_labels: float


@dataclass(frozen=True)
class MemorySettings:
    """The settings besides the size of passes that change a run's memory but not what it learns.

    Attributes:
        quantize: The format of the base's layers.
        offloads_embedding: Whether the token embedding stays in host memory.
        num_checkpointed: The number of layers with activation checkpointing, from the first on.
        offloads_checkpoints: Whether the inputs of checkpointed layers are offloaded to host memory.
        uses_graphs: Whether passes are recorded as CUDA graphs, which have a memory pool of their own.
    """

    quantize: Quantize = "none"
    offloads_embedding: bool = False
    num_checkpointed: int = 0
    offloads_checkpoints: bool = False
    uses_graphs: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes in use at the peak of memory.

    Attributes:
        weights: The base, with its dequantisation buffer.
        adapters: Parameters in fp32, and their copies in the compute dtype.
        optimizer: Gradients and the optimiser's state.
        activations: Activations kept for the backward pass, and temporaries at the peak.
        logits: Logits and their gradient; 0 if the peak is elsewhere.
        overhead: Workspaces of libraries.
        graphs: Memory pool of CUDA graphs.
        reserve: Memory that the allocator reserves but does not use.
    """

    weights: int
    adapters: int
    optimizer: int
    activations: int
    logits: int
    overhead: int
    graphs: int
    reserve: int

    @property
    def peak(self) -> int:
        """Most bytes in use at once, as `torch.cuda.max_memory_allocated` reports them."""
        return self.weights + self.adapters + self.optimizer + self.activations + self.logits + self.overhead

    @property
    def needed(self) -> int:
        """Bytes that must be free on the device before the run begins."""
        return self.peak + self.graphs + self.reserve


def kept_bytes(shape: Shape, dtype: torch.dtype, ranks: int = 0) -> tuple[int, int]:
    """Bytes that one token of a fused layer takes between forward and backward pass: all of it, and its input alone.

    Without, these are input, queries, keys and values, attention output, the residual stream after attention, gate and
    up, the adapters' rank-R activations, and the log-sum-exp of the scores in fp32; with it, the input alone.
    """
    heads = shape.num_attention_heads
    width, key_value = heads * shape.head_dim, 2 * shape.num_key_value_heads * shape.head_dim
    numbers = 2 * shape.hidden_size + 2 * width + key_value + 2 * shape.ffn_hidden_size + ranks
    return numbers * dtype.itemsize + 4 * heads, shape.hidden_size * dtype.itemsize


def estimate_memory(
    base: BaseShape, adapter: AdapterShape, settings: MemorySettings, largest: Pass, state_bytes: int = 8
) -> MemoryEstimate:
    """Estimates the memory of a run.

    Args:
        base: The base.
        adapter: The adapter.
        settings: The memory settings.
        largest: Its largest pass.
        state_bytes: Bytes of optimiser state per trained parameter; 8 for Adam's two moments in fp32.

    Returns:
        The terms.
    """
    itemsize = base.dtype.itemsize
    weights = base_bytes(base, settings.quantize, settings.offloads_embedding)
    activations, logits = _at_the_peak(base, adapter, settings, largest)
    is_fused = adapter.why_not_fused is None
    adapters = adapter.num_trained * (4 + (itemsize if is_fused else 0))
    optimizer = adapter.num_trained * (4 + state_bytes)
    overhead = _OVERHEAD
    peak = weights + adapters + optimizer + activations + logits + overhead
    return MemoryEstimate(
        weights=weights,
        adapters=adapters,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        overhead=overhead,
        graphs=_of_graphs(base, adapter, settings, largest) if settings.uses_graphs else 0,
        reserve=_RESERVE + int(_RESERVE_SHARE * peak),
    )


def _of_graphs(base: BaseShape, adapter: AdapterShape, settings: MemorySettings, largest: Pass) -> int:
    """Bytes of the largest recorded pass, which does not share memory with passes that are not recorded."""
    share = min(MOST_GRAPHED_TOKENS / largest.num_tokens, 1)
    recorded = Pass(math.ceil(share * largest.num_tokens), math.ceil(share * largest.num_labels), largest.num_segments)
    return sum(_at_the_peak(base, adapter, settings, recorded))


def _at_the_peak(base: BaseShape, adapter: AdapterShape, settings: MemorySettings, largest: Pass) -> tuple[int, int]:
    """Bytes of activations and of logits at whichever moment of a pass takes most."""
    shape, itemsize = base.shape, base.dtype.itemsize
    factor = 1.0 if adapter.why_not_fused is None else _UNFUSED_FACTOR
    kept, checkpointed = kept_bytes(shape, base.dtype, adapter.ranks)
    kept = int(kept * factor)
    hidden = shape.hidden_size * itemsize
    num_tokens, num_labels = largest.num_tokens, largest.num_labels
    last = shape.num_layers - 1
    num_checkpointed = settings.num_checkpointed

    def is_checkpointed(layer: int) -> bool:
        return layer < num_checkpointed

    def kept_by(layer: int) -> int:
        """Bytes that a layer keeps for the backward pass."""
        if layer < adapter.first_layer:
            return 0
        if is_checkpointed(layer):
            return 0 if settings.offloads_checkpoints else num_tokens * checkpointed
        return last_kept if layer == last else num_tokens * kept

    # In the last layer only the tokens with labels are queries; all are keys and values.
    key_value = 2 * shape.num_key_value_heads * shape.head_dim * itemsize
    last_kept = num_tokens * (hidden + key_value) + num_labels * (kept - hidden - key_value)
    if adapter.why_not_fused is not None:
        last_kept = num_tokens * kept
    below = [0]
    for layer in range(shape.num_layers):
        below.append(below[-1] + kept_by(layer))

    def backward_of(layer: int) -> int:
        """Bytes in use during the backward pass of a layer: those kept up to this layer, and its temporaries."""
        num_queries = num_labels if layer == last else num_tokens
        recomputed = 0
        if is_checkpointed(layer):
            recomputed = last_kept if layer == last else num_tokens * kept
            recomputed -= 0 if settings.offloads_checkpoints else num_tokens * checkpointed
        working = _working_bytes(base, adapter, settings, num_tokens, num_queries, largest.num_segments)
        return below[layer + 1] + recomputed + working

    moments = [(backward_of(last) + num_labels * hidden, 0)]
    if last > 0:
        moments.append((backward_of(last - 1), 0))
    if 0 < num_checkpointed <= last - 1:
        moments.append((backward_of(num_checkpointed - 1), 0))
    # The head: hidden states before and after the norm, and their gradient; a chunk's logits and their gradient.
    logits = min(num_labels, CHUNK_LABELS) * shape.vocabulary_size * (4 + itemsize)
    if not adapter.has_plain_head:  # all at once: as computed, in fp32, their log-softmax and its gradient
        logits = num_labels * shape.vocabulary_size * (3 * 4 + itemsize)
    moments.append((below[-1] + 3 * num_labels * hidden, logits))
    # The end of the backward pass, when all gradients exist and have not been accumulated yet.
    moments.append((backward_of(adapter.first_layer) + 4 * adapter.num_trained, 0))
    return max(moments, key=sum)


def _working_bytes(
    base: BaseShape,
    adapter: AdapterShape,
    settings: MemorySettings,
    num_tokens: int,
    num_queries: int,
    num_segments: int,
) -> int:
    """What a layer's backward pass works with beside what has been kept, at its own worst moment."""
    shape, itemsize = base.shape, base.dtype.itemsize
    hidden, width = shape.hidden_size * itemsize, shape.ffn_hidden_size * itemsize
    attention = shape.num_attention_heads * shape.head_dim
    # In the MLP: the incoming gradient, that of the activation, those of gate and up; with an adapter on the
    # last projection also its input, before and after dropout.
    mlp = hidden + 3 * width
    if adapter.is_on_last_projection:
        mlp += width * (2 if adapter.has_dropout else 1)
    # In attention: gradients of the output, of the residual stream, of the attended values and of the queries; the sums
    # of the queries' gradients in fp32, in whole blocks; gradients of keys and values for every query head.
    of_attention = num_queries * (2 * hidden + 2 * attention * itemsize) + num_tokens * 2 * attention * itemsize
    of_attention += (num_queries + _FLASH_BLOCK * num_segments) * attention * 4
    of_mlp = num_queries * mlp
    if settings.quantize == "fp8":
        of_mlp += num_queries * hidden + base.largest  # the transposed weight
    return max(of_mlp, of_attention)
