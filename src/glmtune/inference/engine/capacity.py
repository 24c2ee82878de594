"""How many blocks the key-value cache gets."""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from glmtune.errors import ModelError
from glmtune.inference.engine.cache import KeyValueCache, bytes_per_block
from glmtune.loading.devices import free_device_bytes, is_out_of_memory
from glmtune.models.families import shape_of
from glmtune.models.family import Shape
from glmtune.ops.reference import BLOCK_SIZE

# On the host, which commits memory only as it is written.
_MOST_HOST_BYTES = 2**30
# Workspaces of libraries, CUDA graphs, and what the allocator reserves beyond what is in use.
_OVERHEAD, _OVERHEAD_SHARE = 384 * 2**20, 0.03
# Copies of the logits while tokens are drawn: scores, probabilities, their sum, and a sort with its indices.
_LOGITS_COPIES = 10

_logger = logging.getLogger(__name__)


def default_rows(device: torch.device) -> int:
    """How many requests run at once on a device unless something else is asked for."""
    return 64 if device.type == "cuda" else 8


def blocks_needed(lengths: Sequence[int], max_rows: int) -> int:
    """Blocks that the longest `max_rows` of some sequences need at once, block 0 included.

    Args:
        lengths: The most tokens of each sequence, prompt and reply together.
        max_rows: How many of them run at once.
    """
    longest = sorted(lengths, reverse=True)[:max_rows]
    return 1 + sum(-(-length // BLOCK_SIZE) for length in longest)


def affordable_blocks(base: Any, max_rows: int, max_pass_tokens: int) -> int:
    """Blocks for which there is memory.

    On a GPU, the free memory less what the largest pass needs beside the cache:

        pass tokens * (4 hidden + heads * size + 3 MLP width) numbers of the compute dtype
        + rows * vocabulary * 10 numbers of 4 bytes
        + the largest projection in the compute dtype, to which a quantised one is expanded
        + 384 MiB + 3% of the free memory

    On the CPU, 1 GiB.

    Args:
        base: The bare model.
        max_rows: Rows that decode at once.
        max_pass_tokens: The most tokens of prompts in a pass.
    """
    shape, head = shape_of(base), base.get_output_embeddings().weight
    per_block = bytes_per_block(shape, head.dtype)
    if head.device.type != "cuda":
        return _MOST_HOST_BYTES // per_block
    free = free_device_bytes(head.device)
    return max(0, free - _reserved_bytes(shape, head.dtype, max_rows, max_pass_tokens, free)) // per_block


def _reserved_bytes(shape: Shape, dtype: torch.dtype, max_rows: int, max_pass_tokens: int, free: int) -> int:
    heads = shape.num_attention_heads + 2 * shape.num_key_value_heads
    per_token = 4 * shape.hidden_size + heads * shape.head_dim + 3 * shape.ffn_hidden_size
    projection = 2 * shape.ffn_hidden_size * shape.hidden_size
    activations = (max_pass_tokens * per_token + projection) * dtype.itemsize
    logits = max_rows * shape.vocabulary_size * _LOGITS_COPIES * 4
    return activations + logits + _OVERHEAD + int(_OVERHEAD_SHARE * free)


def make_cache(shape: Shape, num_blocks: int, dtype: torch.dtype, device: torch.device) -> KeyValueCache:
    """A cache of so many blocks, or of half as many, and so on, as memory allows.

    Raises:
        ModelError: There is no memory for a single sequence of a block.
    """
    while True:
        try:
            return KeyValueCache(shape, num_blocks, dtype, device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if num_blocks <= 2:
                raise ModelError("out of memory: there is no room for a key-value cache") from error
        _logger.warning(
            "Out of memory with a key-value cache of %d blocks; continuing with %d.", num_blocks, num_blocks // 2
        )
        num_blocks = max(2, num_blocks // 2)
