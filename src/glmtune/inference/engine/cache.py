"""The key-value cache, in blocks that sequences share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from glmtune.models.family import Shape
from glmtune.ops.reference import BLOCK_SIZE


class KeyValueCache:
    """Keys and values of all layers.

    Block `b` is slots `b * BLOCK_SIZE` up to `(b + 1) * BLOCK_SIZE`. Block 0 belongs to no sequence: padding is written
    there.

    Args:
        shape: The model's sizes.
        num_blocks: Blocks, block 0 included.
        dtype: The compute dtype.
        device: Where they lie.

    Attributes:
        key: [layers, slots, G, D].
        value: Likewise.
    """

    def __init__(self, shape: Shape, num_blocks: int, dtype: torch.dtype, device: torch.device | str) -> None:
        size = (shape.num_layers, num_blocks * BLOCK_SIZE, shape.num_key_value_heads, shape.head_dim)
        # Zeros, since slots that are not written yet take part in attention with weight 0, and must not be NaN.
        self.key = torch.zeros(size, dtype=dtype, device=device)
        self.value = torch.zeros_like(self.key)

    @property
    def num_blocks(self) -> int:
        """Blocks, block 0 included."""
        return self.key.shape[1] // BLOCK_SIZE

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, [slots, G, D] each."""
        return self.key[index], self.value[index]

    def clear(self, blocks: Sequence[int]) -> None:
        """Overwrites blocks that may hold NaN."""
        index = torch.tensor(blocks, dtype=torch.int64, device=self.key.device)
        for values in (self.key, self.value):
            values.unflatten(1, (-1, BLOCK_SIZE)).index_fill_(1, index, 0.0)


def bytes_per_block(shape: Shape, dtype: torch.dtype) -> int:
    """The memory of a block, in bytes."""
    return 2 * shape.num_layers * BLOCK_SIZE * shape.num_key_value_heads * shape.head_dim * dtype.itemsize
