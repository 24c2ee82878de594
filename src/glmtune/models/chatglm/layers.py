"""The layers of the ChatGLM2/3 model, with the published parameter names.

Legend of dimension suffixes: B batch, T tokens, S tokens including the cache, N query heads, G key and value heads,
D head size, H hidden size.

Source: `modeling_chatglm.py` of the official ChatGLM3-6B release.
"""

# ruff: noqa: N803, N806

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glmtune.compat import attention_implementation
from glmtune.models.chatglm.configuration import ChatGLMConfig
from glmtune.models.family import Rotation
from glmtune.models.rms_norm import RMSNorm
from glmtune.ops import Segments, apply_rotary, segment_attention, swiglu


class _LayerNorm(nn.LayerNorm):
    """LayerNorm that computes in the input's dtype, whatever the dtype of its parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises [..., H], keeping shape and dtype."""
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def _norm(config: ChatGLMConfig) -> nn.Module:
    norm = RMSNorm if config.rmsnorm else _LayerNorm
    return norm(config.hidden_size, eps=config.layernorm_epsilon)


def eager_attention(
    module: "SelfAttention",
    query_BNTD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention without fused kernels, for `attn_implementation="eager"`; softmax in fp32.

    Returns:
        The attended values, [B, T, N, D], and the attention weights, [B, N, T, S].
    """
    groups = module.num_key_value_groups
    key, value = key_BGSD.repeat_interleave(groups, dim=1), value_BGSD.repeat_interleave(groups, dim=1)
    scores = query_BNTD @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query_BNTD.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SelfAttention(nn.Module):
    """Grouped-query attention with a fused query-key-value projection and rotary positions."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.kv_channels
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.query_key_value = nn.Linear(
            config.hidden_size,
            (self.num_heads + 2 * self.num_key_value_heads) * self.head_dim,
            bias=config.add_bias_linear or config.add_qkv_bias,
        )
        self.dense = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=config.add_bias_linear)

    def split_heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Splits the fused projection, [B, T, (N + 2G) D], into query [B, T, N, D], key and value [B, T, G, D].

        With grouped heads, all queries come first, then all keys, then all values; without, each head has its three.
        """
        if self.config.multi_query_attention:
            heads = mixed.unflatten(-1, (-1, self.head_dim))
            return heads.split([self.num_heads, self.num_key_value_heads, self.num_key_value_heads], dim=-2)
        return mixed.unflatten(-1, (self.num_heads, 3 * self.head_dim)).chunk(3, dim=-1)

    def forward(
        self,
        hidden_BTH: Tensor,
        attention_mask: Any,
        rotation: Rotation,
        past_key_values: Cache | None = None,
        segments: Segments | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Computes attention; returns [B, T, H] and the attention weights if the implementation provides them.

        With `segments`, the batch is one row of packed samples, and attention is restricted to segments.
        """
        query, key, value = self.split_heads(self.query_key_value(hidden_BTH))
        query, key = apply_rotary(query, *rotation), apply_rotary(key, *rotation)
        if segments is not None:
            attended = segment_attention(query[0], key[0], value[0], segments, self.scaling)
            return self.dense(attended.flatten(1).unsqueeze(0)), None
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention_implementation(self.config), eager_attention)
        context, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.dense(context.flatten(2)), weights


class MLP(nn.Module):
    """The gated MLP; gate and up projection are one linear layer."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        bias = config.add_bias_linear
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=bias)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=bias)

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        """Maps [B, T, H] to [B, T, H]."""
        return self.dense_4h_to_h(swiglu(self.dense_h_to_4h(hidden_BTH)))


class GLMBlock(GradientCheckpointingLayer):
    """One transformer layer."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = _norm(config)
        self.self_attention = SelfAttention(config, layer_idx)
        self.post_attention_layernorm = _norm(config)
        self.mlp = MLP(config)
        self.hidden_dropout = config.hidden_dropout
        self.residual_after_norm = config.apply_residual_connection_post_layernorm
        self.fp32_residual = config.fp32_residual_connection

    def forward(
        self,
        hidden_BTH: Tensor,
        attention_mask: Any = None,
        rotation: Rotation | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Maps the residual stream, [B, T, H], to the input of the next layer."""
        normed = self.input_layernorm(hidden_BTH)
        attended, _ = self.self_attention(
            self._narrow(normed, rotation), attention_mask, rotation, past_key_values, **kwargs
        )
        hidden_BTH = self._add(normed if self.residual_after_norm else hidden_BTH, attended)
        normed = self.post_attention_layernorm(hidden_BTH)
        transformed = self.mlp(self._narrow(normed, rotation))
        return self._add(normed if self.residual_after_norm else hidden_BTH, transformed)

    def _narrow(self, normed: Tensor, rotation: Rotation | None) -> Tensor:
        """Casts normed states to the compute dtype (that of the rotation) if the residual stream is kept in fp32."""
        return normed.to(rotation[0].dtype) if self.fp32_residual and rotation is not None else normed

    def _add(self, residual: Tensor, update: Tensor) -> Tensor:
        return residual + F.dropout(update, p=self.hidden_dropout, training=self.training)


class Embedding(nn.Module):
    """The token embedding, under its published name."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)


class GLMTransformer(nn.Module):
    """The layers and the final norm, under their published names."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GLMBlock(config, layer_idx) for layer_idx in range(config.num_layers))
        if config.post_layer_norm:
            self.final_layernorm = _norm(config)
