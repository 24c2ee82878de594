"""Forward and backward passes, captured once per bucket of padded batches and then replayed as CUDA graphs.

A small step launches more than a thousand kernels of a few microseconds each; launching them one by one took the host
three times as long as the device needed to run them. A graph launches all of them at once.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from glmtune.compat import add_to_each
from glmtune.data.packed_batch import PackedBatch

_logger = logging.getLogger(__name__)

# A data set has few buckets; the limit only protects memory, since each graph takes a few megabytes.
_MOST_GRAPHS = 96


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    packed: PackedBatch
    loss: Tensor


class GradientAccumulator:
    """Computes the loss of packed batches and accumulates its gradients, with CUDA graphs if requested.

    The first pass of a bucket runs eagerly, which compiles its kernels; the second is captured. All graphs share one
    memory pool.

    Args:
        loss: Computes the weighted loss of a packed batch, a scalar.
        parameters: The trained parameters.
        gradients: The buffers that their gradients are added to; graphs record their addresses.
        draw_seed: Called before each replay, to draw new dropout masks.
        uses_graphs: Whether to capture graphs; only on CUDA.
    """

    def __init__(
        self,
        loss: Callable[[PackedBatch], Tensor],
        parameters: Sequence[nn.Parameter],
        gradients: Sequence[Tensor],
        draw_seed: Callable[[], None],
        uses_graphs: bool,
    ) -> None:
        self._loss, self._draw_seed = loss, draw_seed
        self._parameters, self._gradients = list(parameters), list(gradients)
        self._uses_graphs = uses_graphs
        self._seen: set[Hashable] = set()
        self._recorded: dict[Hashable, _Recorded] = {}
        self._pool = torch.cuda.graph_pool_handle() if uses_graphs else None
        self._scale = torch.ones((), device=gradients[0].device)

    def add(self, packed: PackedBatch, scale: float | Tensor) -> Tensor:
        """Adds the gradients of `scale` times the loss.

        Args:
            packed: The batch, on the device.
            scale: The factor on the loss.

        Returns:
            The unscaled loss, a detached scalar.
        """
        if isinstance(scale, Tensor):
            self._scale.copy_(scale, non_blocking=True)
        else:
            self._scale.fill_(scale)
        bucket = packed.bucket
        if self._uses_graphs and bucket in self._seen:
            recorded = self._recorded.get(bucket) or self._record(packed)
            if recorded is not None:
                return self._replay(recorded, packed)
        elif packed.is_padded:
            self._seen.add(bucket)
        return self._compute(packed)

    def _compute(self, packed: PackedBatch) -> Tensor:
        loss = self._loss(packed)
        gradients = torch.autograd.grad(loss, self._parameters, self._scale, allow_unused=True, materialize_grads=True)
        add_to_each(self._gradients, gradients)
        return loss.detach()

    def _record(self, packed: PackedBatch) -> _Recorded | None:
        """Captures the graph of a bucket; after a failure, such as a lack of memory, no more graphs are used."""
        if len(self._recorded) == _MOST_GRAPHS:
            return None
        own = replace(packed, buffer=packed.buffer.clone())
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                loss = self._compute(own)
        except RuntimeError as error:  # includes running out of memory
            self._uses_graphs = False
            self._recorded.clear()
            _logger.warning("CUDA graphs are switched off, so small steps will be slower: %s", error)
            return None
        self._recorded[packed.bucket] = _Recorded(graph, own, loss)
        return self._recorded[packed.bucket]

    def _replay(self, recorded: _Recorded, packed: PackedBatch) -> Tensor:
        recorded.packed.buffer.copy_(packed.buffer, non_blocking=True)
        self._draw_seed()
        recorded.graph.replay()
        return recorded.loss.clone()  # the next replay overwrites it
