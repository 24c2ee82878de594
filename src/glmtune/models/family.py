"""The interface of a model family, as needed to train, fuse, plan, quantise and export its models.

Outside `glmtune.models`, no code names a family's modules, special tokens or classes; it goes through `Family`.

Legend of dimension suffixes: B batch, T tokens.
"""

# ruff: noqa: N803

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from glmtune.errors import ModelError
from glmtune.models.gguf_layout import GGUFLayout
from glmtune.models.weight_files import read_weight, read_weights
from glmtune.prompts import Template

# Cosines and sines of the rotary positions, [B, T, rotated / 2] each.
Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, and its unusual features.

    Attributes:
        num_layers: Layers.
        hidden_size: Channels of the residual stream.
        ffn_hidden_size: Channels within the MLP; gate and up have as many each.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads.
        head_dim: Channels of a head.
        vocabulary_size: Rows of the token embedding, padding of the vocabulary included.
        context_length: The most tokens of a sequence, prompt and reply together.
        norm_eps: The norms' epsilon.
        is_tied: Whether the output layer is the token embedding.
        has_rms_norm: Whether norms are RMSNorm.
        has_fp32_residual: Whether the residual stream is kept in fp32.
        has_attention_dropout: Whether attention weights are dropped in training.
        unusual: Features of the configuration that the fused layers do not support, as phrases.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocabulary_size: int
    context_length: int
    norm_eps: float
    is_tied: bool
    has_rms_norm: bool
    has_fp32_residual: bool
    has_attention_dropout: bool
    unusual: tuple[str, ...]


@dataclass(frozen=True)
class LayerParts:
    """A transformer layer and its parts; a projection may be wrapped by PEFT.

    Attributes:
        layer: The layer; it takes hidden states [1, T, H], `rotation`, and the `segments` of a packed batch.
        input_norm: The norm before attention.
        query_key_value: Queries, keys and values in one projection.
        dense: The projection after attention.
        post_attention_norm: The norm before the MLP.
        up: Gate and up in one projection.
        down: The last projection.
    """

    layer: GradientCheckpointingLayer
    input_norm: nn.Module
    query_key_value: nn.Module
    dense: nn.Module
    post_attention_norm: nn.Module
    up: nn.Module
    down: nn.Module

    @property
    def projections(self) -> tuple[nn.Module, ...]:
        """The linear layers, in the order of the forward pass."""
        return self.query_key_value, self.dense, self.up, self.down


class Family(ABC):
    """A family of models.

    Where a method takes a model, it is the bare model with its language-modelling head, whose linear layers PEFT may
    have wrapped. Embedding and output layer are `get_input_embeddings()` and `get_output_embeddings()`.

    Attributes:
        config_class: The class of its configurations; a model belongs to the family that its configuration belongs to.
        model_class: The class of its models.
        tokenizer_class: The class of its tokenizers.
        tokenizer_files: The tokenizer files that a base's folder must hold.
        layers_name: The full name of the list of layers.
        embedding_weight: The full name of the token embedding's weight.
        head_weight: The full name of the output layer's weight.
        last_projection: Name of a layer's last projection, without parents.
        lora_targets: Names of the modules that LoRA adapts by default, without parents.
        buffers: Full names of buffers in official weight files, which the models here compute themselves.
    """

    config_class: ClassVar[type[PretrainedConfig]]
    model_class: ClassVar[type[PreTrainedModel]]
    tokenizer_class: ClassVar[type[PreTrainedTokenizerBase]]
    tokenizer_files: ClassVar[tuple[str, ...]]
    layers_name: ClassVar[str]
    embedding_weight: ClassVar[str]
    head_weight: ClassVar[str]
    last_projection: ClassVar[str]
    lora_targets: ClassVar[tuple[str, ...]]
    buffers: ClassVar[tuple[str, ...]]

    @abstractmethod
    def shape(self, config: Any) -> Shape:
        """The sizes of a model with this configuration."""

    @abstractmethod
    def layers(self, model: Any) -> Sequence[LayerParts]:
        """The layers of a model."""

    def layer_number(self, name: str) -> int | None:
        """The number of the layer that a module, by its full name, is in, from 0; None if it is in none."""
        path, prefix = name.split("."), self.layers_name.split(".")
        is_inside = path[: len(prefix)] == prefix and len(path) > len(prefix)
        return int(path[len(prefix)]) if is_inside else None

    @abstractmethod
    def final_norm(self, model: Any) -> nn.Module | None:
        """The norm after the last layer; None where there is none."""

    @abstractmethod
    def rotation(self, config: Any, position_ids_BT: Tensor, dtype: torch.dtype) -> Rotation:
        """Cosines and sines of positions."""

    @abstractmethod
    def read_config(self, folder: Path) -> PretrainedConfig:
        """Reads a folder's configuration.

        Raises:
            ModelError: There is none, it is another family's, or its values are invalid.
        """

    @abstractmethod
    def checked_folder(self, path: str) -> Path:
        """Finds a base's folder, downloading a hub id, and checks its small files and the headers of its weights.

        Raises:
            ModelError: There is no such folder, or its files do not fit; all faults in one message.
        """

    def write_plain_files(  # noqa: B027  (optional)
        self, folder: Path, tokenizer: Any, template: Template, system: str | None
    ) -> None:
        """Adds to a model folder what other programs need to load it, to tokenise and to render prompts.

        By default nothing is added, for families whose published files suffice.

        Args:
            folder: The folder of a model, with its tokenizer files.
            tokenizer: The tokenizer that belongs to it.
            template: The prompt template that the model is to be asked with.
            system: The system prompt of conversations that have none of their own.
        """

    def gguf_layout(self, config: Any, tokenizer: Any, template: Template, system: str | None) -> GGUFLayout:
        """Describes a model to llama.cpp.

        Args:
            config: Its configuration.
            tokenizer: Its tokenizer.
            template: The prompt template that the model is to be asked with.
            system: The system prompt of conversations that have none of their own.

        Raises:
            ModelError: llama.cpp cannot compute such a model, or this family has no layout.
        """
        raise ModelError(f"{self.config_class.model_type}: there is no export to GGUF for this family")

    def read_weights(self, folder: Path) -> Iterator[tuple[str, Tensor]]:
        """Reads a checked folder's weights one by one, as `weight_files.read_weights`; buffers are left out."""
        return read_weights(folder, self.buffers)

    def read_buffers(self, folder: Path) -> dict[str, Tensor]:
        """The buffers that a checked folder holds beside the weights.

        The models here do not use them. Official code may, so folders exported for it must contain them.
        """
        found = {name: read_weight(folder, name) for name in self.buffers}
        return {name: buffer for name, buffer in found.items() if buffer is not None}
