"""The ChatGLM2/3 model, native, batch-first, on transformers' attention interface and caches.

Parameters keep the published names, so official weights load here and adapters trained here load elsewhere.
Legend of dimension suffixes: B batch, T tokens, S tokens seen with the cache, N query heads, G key and value heads,
D head size, H hidden size, V vocabulary.

Source: `modeling_chatglm.py` of the official ChatGLM3-6B release.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask, find_packed_sequence_indices
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from glmtune.models.chatglm.chat import ChatMixin
from glmtune.models.chatglm.checkpoint import resolve_and_check
from glmtune.models.chatglm.configuration import ChatGLMConfig
from glmtune.ops import apply_rotary, rms_norm, rotary_cos_sin, swiglu

Rotation = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """`ops.rms_norm` with its scale."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalises [..., H], keeping shape and dtype."""
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.LayerNorm):
    """LayerNorm that computes in the input's dtype, whatever its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises [..., H], keeping shape and dtype."""
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def _norm(config: ChatGLMConfig) -> nn.Module:
    norm = RMSNorm if config.rmsnorm else LayerNorm
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
    """Attention written out, for `attn_implementation="eager"`; softmax in fp32.

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

        With grouped heads the three lie one after the other; without, each head's three lie side by side.
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
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends; returns [B, T, H] and the attention weights where the implementation gives them."""
        query, key, value = self.split_heads(self.query_key_value(hidden_BTH))
        query, key = apply_rotary(query, *rotation), apply_rotary(key, *rotation)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
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
    """The gated MLP; gate and up projection are one linear."""

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
        """Maps the residual stream, [B, T, H], to the next layer's."""
        normed = self.input_layernorm(hidden_BTH)
        attended, _ = self.self_attention(
            self._narrow(normed, rotation), attention_mask, rotation, past_key_values, **kwargs
        )
        hidden_BTH = self._add(normed if self.residual_after_norm else hidden_BTH, attended)
        normed = self.post_attention_layernorm(hidden_BTH)
        transformed = self.mlp(self._narrow(normed, rotation))
        return self._add(normed if self.residual_after_norm else hidden_BTH, transformed)

    def _narrow(self, normed: Tensor, rotation: Rotation | None) -> Tensor:
        """The normed stream in the compute dtype (that of the rotation) where the residual is kept in fp32."""
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


class ChatGLMPreTrainedModel(PreTrainedModel):
    """What both model classes tell transformers about themselves."""

    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _keys_to_ignore_on_load_unexpected = [r"rotary_pos_emb\.inv_freq"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": GLMBlock, "attentions": SelfAttention}

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> Any:
        """As transformers' `from_pretrained`, with the folder checked from its headers before any weight is read.

        Raises:
            ModelError: Weights are missing, unexpected, mis-shaped, cut short or hostile; all faults in one message.
        """
        folder = resolve_and_check(cls, pretrained_model_name_or_path, kwargs)
        loaded = super().from_pretrained(folder, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info=True it is a pair
        # A hub id, not its place in the cache, is the name that adapters remember their base by.
        model.name_or_path = model.config._name_or_path = str(pretrained_model_name_or_path)
        return loaded


class ChatGLMModel(ChatGLMPreTrainedModel):
    """Embedding, layers and final norm; it also holds the output layer, as the published names have it."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.embedding = Embedding(config)
        self.encoder = GLMTransformer(config)
        self.output_layer = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.embedding.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the token embedding."""
        self.embedding.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Runs the layers.

        Args:
            input_ids: Token ids, [B, T], int64; or give `inputs_embeds`.
            attention_mask: 1 where a token is, 0 where padding is, [B, S]; or a ready 4-D mask.
            position_ids: Positions, [B or 1, T]; by default they count on from the cache. Where they restart within a
                row, the row holds several samples, which do not see each other.
            past_key_values: The cache to read and extend.
            inputs_embeds: Embedded tokens, [B, T, H].
            use_cache: Whether to make a cache if none is given.
            **kwargs: Passed to the attention implementation; `output_hidden_states` and `output_attentions` too.

        Returns:
            `last_hidden_state`, [B, T, H], after the final norm; the cache. `hidden_states`, where asked for, are the
            inputs of the layers and what the last one returns, before the final norm, as in the official model.

        Raises:
            ValueError: Not exactly one of `input_ids` and `inputs_embeds` is given, or packed rows in a batch of
                several meet flash attention, which can separate the samples of one row only.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden_BTH = self.embedding.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        compute_dtype = hidden_BTH.dtype
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            num_seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(hidden_BTH.shape[1], device=hidden_BTH.device).unsqueeze(0) + num_seen
        mask = self._attention_mask(hidden_BTH, attention_mask, position_ids, past_key_values)
        rotation = rotary_cos_sin(position_ids, self.config.rotary_dim, self.config.rotary_base, compute_dtype)
        if self.config.fp32_residual_connection:
            hidden_BTH = hidden_BTH.float()
        for layer in self.encoder.layers:
            hidden_BTH = layer(
                hidden_BTH,
                attention_mask=mask,
                rotation=rotation,
                past_key_values=past_key_values,
                position_ids=position_ids,
                **kwargs,
            )
        if self.config.post_layer_norm:
            hidden_BTH = self.encoder.final_layernorm(hidden_BTH)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_BTH.to(compute_dtype),
            past_key_values=past_key_values if use_cache else None,
        )

    def _attention_mask(
        self, hidden_BTH: Tensor, attention_mask: Any, position_ids: Tensor, past_key_values: Cache | None
    ) -> Any:
        """The causal mask in the form that the attention implementation wants.

        transformers separates packed samples only where there is no cache. Here they stay separate with one too: a
        token of a packed row sees keys from its own sample's start on, which lies as far back as its position says.
        """
        and_mask = None
        positions = position_ids.expand(hidden_BTH.shape[0], -1)
        is_flash = "flash" in self.config._attn_implementation
        needs_look = past_key_values is not None or (is_flash and positions.shape[0] > 1)
        if attention_mask is None and needs_look and positions.shape[1] > 1:
            if find_packed_sequence_indices(positions) is not None:
                if is_flash and positions.shape[0] > 1:
                    raise ValueError("flash attention separates packed samples in a batch of one row only")
                and_mask = _own_sample_mask(positions, past_key_values.get_seq_length())
        return create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_BTH,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            and_mask_function=and_mask,
        )


def _own_sample_mask(positions_BT: Tensor, num_seen: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A mask function, as transformers' masking wants it, under which no query sees keys before its own sample."""
    starts_BT = torch.arange(positions_BT.shape[1], device=positions_BT.device) + num_seen - positions_BT

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key >= starts_BT[batch, query - num_seen]

    return sees


class ChatGLMForConditionalGeneration(ChatMixin, ChatGLMPreTrainedModel, GenerationMixin):
    """ChatGLM with its language-modelling head; `generate`, `chat` and `stream_chat`.

    The class keeps its published name. It is a plain decoder-only causal language model.
    """

    _tied_weights_keys = {"transformer.output_layer.weight": "transformer.embedding.word_embeddings.weight"}

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.transformer.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the token embedding."""
        self.transformer.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The output layer."""
        return self.transformer.output_layer

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the output layer."""
        self.transformer.output_layer = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Runs the model and, with labels, the loss.

        Args:
            input_ids: As for `ChatGLMModel.forward`.
            attention_mask: Likewise.
            position_ids: Likewise.
            past_key_values: Likewise.
            inputs_embeds: Likewise.
            labels: Token ids to predict, [B, T], -100 where there is nothing to learn; shifted here.
            use_cache: Likewise.
            logits_to_keep: Compute logits of the last so many positions only (0: all), or of these indices.
            **kwargs: As for `ChatGLMModel.forward`; `num_items_in_batch` divides the summed loss.

        Returns:
            `loss` (fp32 scalar, where labels are given), `logits` [B, T, V], the cache, hidden states, attentions.
        """
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.transformer.output_layer(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.padded_vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
