"""The number of a base's weights and the memory that they take."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from glmtune.loading.formats import FORMATS, LinearSizes, Quantize, linear_sizes
from glmtune.models.families import shape_of
from glmtune.models.family import Shape


@dataclass(frozen=True)
class BaseShape:
    """A base's weights, by what can become of them.

    Attributes:
        shape: Its sizes.
        dtype: What it computes in.
        linears: Sizes of the blocks' linear layers by name.
        embedding: Weights of the token embedding; 0 where it is the output layer too.
        head: Weights of the output layer.
        rest: Norms and biases.
    """

    shape: Shape
    dtype: torch.dtype
    linears: LinearSizes
    embedding: int
    head: int
    rest: int

    @classmethod
    def of(cls, model: PreTrainedModel, dtype: torch.dtype) -> "BaseShape":
        """From a model without adapters, which may be on the meta device."""
        linears = linear_sizes(model)
        in_blocks = sum(rows * columns for rows, columns in linears.values())
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        shape = shape_of(model)
        total = sum(parameter.numel() for parameter in model.parameters())
        rest = total - in_blocks - head.numel() - (0 if embedding is head else embedding.numel())
        return cls(shape, dtype, linears, 0 if shape.is_tied else embedding.numel(), head.numel(), rest)

    @property
    def in_blocks(self) -> int:
        """Weights of the blocks' linear layers."""
        return sum(rows * columns for rows, columns in self.linears.values())

    @property
    def largest(self) -> int:
        """Weights of the largest of them."""
        return max(rows * columns for rows, columns in self.linears.values())


def base_bytes(base: BaseShape, quantize: Quantize, offloads_embedding: bool = False) -> int:
    """Bytes of a base on its device, including the dequantisation buffer."""
    itemsize, weight_format = base.dtype.itemsize, FORMATS[quantize]
    total = sum(weight_format.weight_bytes(rows * columns, rows, base.dtype) for rows, columns in base.linears.values())
    total += (base.head + base.rest + (0 if offloads_embedding else base.embedding)) * itemsize
    return total + (base.largest * itemsize if weight_format.is_dequantized else 0)
