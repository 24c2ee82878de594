"""The family of ChatGLM2 and ChatGLM3: the parts of a model and the meaning of its configuration."""

# ruff: noqa: N803

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.models.chatglm.base_folder import TOKENIZER_FILES
from glmtune.models.chatglm.checkpoint import (
    EMBEDDING_WEIGHT,
    HEAD_WEIGHT,
    IGNORED_WEIGHT,
    read_config,
    resolve_and_check,
)
from glmtune.models.chatglm.configuration import ChatGLMConfig
from glmtune.models.chatglm.gguf import gguf_layout
from glmtune.models.chatglm.modeling import ChatGLMForConditionalGeneration
from glmtune.models.chatglm.plain_files import write_plain_files
from glmtune.models.chatglm.tokenization import ChatGLMTokenizer
from glmtune.models.family import Family, LayerParts, Rotation, Shape
from glmtune.models.gguf_layout import GGUFLayout
from glmtune.ops import rotary_cos_sin
from glmtune.prompts import Template


class ChatGLMFamily(Family):
    """ChatGLM2 and ChatGLM3."""

    config_class = ChatGLMConfig
    model_class = ChatGLMForConditionalGeneration
    tokenizer_class = ChatGLMTokenizer
    tokenizer_files = TOKENIZER_FILES
    layers_name = "transformer.encoder.layers"
    embedding_weight = EMBEDDING_WEIGHT
    head_weight = HEAD_WEIGHT
    last_projection = "dense_4h_to_h"
    lora_targets = ("query_key_value",)
    buffers = (IGNORED_WEIGHT,)

    def shape(self, config: ChatGLMConfig) -> Shape:
        """As `Family.shape`."""
        unusual = {
            "LayerNorm": not config.rmsnorm,
            "apply_residual_connection_post_layernorm": config.apply_residual_connection_post_layernorm,
            "fp32_residual_connection": config.fp32_residual_connection,
            "hidden_dropout": config.hidden_dropout > 0,
            "attention_dropout": config.attention_dropout > 0,
            "no multi_query_attention": not config.multi_query_attention,
        }
        return Shape(
            num_layers=config.num_layers,
            hidden_size=config.hidden_size,
            ffn_hidden_size=config.ffn_hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.kv_channels,
            vocabulary_size=config.padded_vocab_size,
            context_length=config.seq_length,
            norm_eps=config.layernorm_epsilon,
            is_tied=config.tie_word_embeddings,
            has_rms_norm=config.rmsnorm,
            has_fp32_residual=config.fp32_residual_connection,
            has_attention_dropout=config.attention_dropout > 0,
            unusual=tuple(name for name, is_so in unusual.items() if is_so),
        )

    def layers(self, model: ChatGLMForConditionalGeneration) -> Sequence[LayerParts]:
        """As `Family.layers`."""
        blocks: Any = model.transformer.encoder.layers
        return [
            LayerParts(
                layer=block,
                input_norm=block.input_layernorm,
                query_key_value=block.self_attention.query_key_value,
                dense=block.self_attention.dense,
                post_attention_norm=block.post_attention_layernorm,
                up=block.mlp.dense_h_to_4h,
                down=block.mlp.dense_4h_to_h,
            )
            for block in blocks
        ]

    def final_norm(self, model: ChatGLMForConditionalGeneration) -> nn.Module | None:
        """As `Family.final_norm`."""
        return model.transformer.encoder.final_layernorm if model.config.post_layer_norm else None

    def rotation(self, config: ChatGLMConfig, position_ids_BT: Tensor, dtype: torch.dtype) -> Rotation:
        """As `Family.rotation`."""
        return rotary_cos_sin(position_ids_BT, config.rotary_dim, config.rotary_base, dtype)

    def read_config(self, folder: Path) -> ChatGLMConfig:
        """As `Family.read_config`."""
        return read_config(folder)

    def checked_folder(self, path: str) -> Path:
        """As `Family.checked_folder`."""
        return Path(resolve_and_check(ChatGLMForConditionalGeneration, path, {}))

    def write_plain_files(
        self, folder: Path, tokenizer: ChatGLMTokenizer, template: Template, system: str | None
    ) -> None:
        """As `Family.write_plain_files`."""
        write_plain_files(folder, tokenizer, template, system)

    def gguf_layout(
        self, config: ChatGLMConfig, tokenizer: ChatGLMTokenizer, template: Template, system: str | None
    ) -> GGUFLayout:
        """As `Family.gguf_layout`."""
        return gguf_layout(config, tokenizer, template, system)
