"""The decoding pass as CUDA graphs, so that the host launches one graph for a token instead of some 200 kernels."""

from typing import NamedTuple

import torch
from torch import Tensor

from glmtune.inference.engine.decoder import Decoder
from glmtune.inference.engine.rows import DecodingRows


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    logits_RV: Tensor


class DecodingGraphs:
    """A graph for each number of rows that has come up; rows in between are padded.

    Graphs read the rows' tensors where they lie. They share one memory pool, as only one runs at a time and its logits
    are used before the next does.

    Args:
        decoder: The model.
        rows: The rows, on a GPU.
    """

    def __init__(self, decoder: Decoder, rows: DecodingRows) -> None:
        self._decoder = decoder
        self._rows = rows
        self._pool = torch.cuda.graph_pool_handle()
        self._recorded: dict[int, _Recorded] = {}
        self._version = decoder.adapters.version

    def __call__(self, num_rows: int) -> Tensor:
        """The logits of the first rows, [num_rows, V] fp32; valid until the next call."""
        if self._version != self._decoder.adapters.version:  # graphs hold the addresses of the old tensors
            self._recorded.clear()
            self._version = self._decoder.adapters.version
        num_padded = min(_padded(num_rows), len(self._rows.positions))
        if num_padded not in self._recorded:
            self._recorded[num_padded] = self._record(num_padded)
        graph, logits_RV = self._recorded[num_padded]
        graph.replay()
        return logits_RV[:num_rows]

    def _record(self, num_rows: int) -> _Recorded:
        self._decode(num_rows)  # compiles kernels, which cannot be recorded
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile: a server's, or a second chat's.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits_RV = self._decode(num_rows)
        return _Recorded(graph, logits_RV)

    def _decode(self, num_rows: int) -> Tensor:
        rows = self._rows
        return self._decoder.decode(
            rows.token_ids[:num_rows], rows.positions[:num_rows], rows.block_tables[:num_rows], rows.adapters[:num_rows]
        )


def _padded(num_rows: int) -> int:
    """Powers of two up to 16, then their quarters: at most a quarter of the rows are padding."""
    step = 1 << max(0, (num_rows - 1).bit_length() - 3)
    step = step if num_rows > 16 else 1 << (num_rows - 1).bit_length()
    return -(-num_rows // step) * step
