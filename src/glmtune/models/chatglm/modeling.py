"""A native, batch-first ChatGLM2/3 model on transformers' attention interface and caches.

Parameters keep the published names, so official weights load here and adapters trained here load elsewhere.
Legend of dimension suffixes: B batch, T tokens, S tokens including the cache, H hidden size, V vocabulary.

Source: `modeling_chatglm.py` of the official ChatGLM3-6B release.
"""

import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from glmtune.errors import ModelError
from glmtune.models.chatglm.checkpoint import EMBEDDING_WEIGHT, HEAD_WEIGHT, resolve_and_check
from glmtune.models.chatglm.configuration import ChatGLMConfig
from glmtune.models.chatglm.layers import Embedding, GLMBlock, GLMTransformer, SelfAttention
from glmtune.models.chatglm.masking import causal_mask
from glmtune.models.chatglm.official import OfficialMethodsMixin
from glmtune.ops import rotary_cos_sin

_NO_CLASSIFIER = (
    "ChatGLMForSequenceClassification is not supported. Load the model with AutoModelForCausalLM, and train it to "
    "answer with the name of the class"
)


class ChatGLMPreTrainedModel(PreTrainedModel):
    """What both model classes declare to transformers."""

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
    _can_record_outputs = {"hidden_states": GLMBlock, "attentions": SelfAttention}

    def __init__(self, config: ChatGLMConfig) -> None:
        config.check()  # it may have been changed since it was created
        super().__init__(config)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,
        device: str | int | torch.device | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers' `from_pretrained`, with the folder checked from its headers before any weight is read.

        Args:
            pretrained_model_name_or_path: A folder or a hub id.
            *args: As for transformers.
            device: The official name of a `device_map` with a single device.
            **kwargs: As for transformers.

        Raises:
            ModelError: Weights are missing, unexpected, of the wrong shape, truncated or unsafe to load; all faults in
                one message. Or there is no such device.
            TypeError: Both `device` and `device_map` are given.
        """
        if device is not None:
            if kwargs.get("device_map") is not None:
                raise TypeError("from_pretrained: device and device_map mean the same; pass only one of them")
            kwargs["device_map"] = _existing_device(device)
        folder = resolve_and_check(cls, pretrained_model_name_or_path, kwargs)
        loaded = super().from_pretrained(folder, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info=True it is a pair
        # Adapters record the hub id as the name of their base, not the path in the cache.
        model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        return loaded

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Returns the token embedding unchanged: the vocabulary is fixed.

        Raises:
            ModelError: A different size is requested.
        """
        present = self.config.padded_vocab_size
        if new_num_tokens not in (None, present):
            raise ModelError(
                f"resize_token_embeddings({new_num_tokens}): ChatGLM's vocabulary is fixed at {present}; leave the "
                "call out (special tokens such as <|user|> are in it already)"
            )
        return self.get_input_embeddings()


def _existing_device(device: str | int | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device={device!r}: there is no such device here ({error})") from error


class ChatGLMModel(ChatGLMPreTrainedModel):
    """Embedding, layers and final norm; as the published names require, it also holds the output layer.

    Args:
        config: The configuration.
        empty_init: Accepted for old code, without effect: weights are read from a folder or initialised.
    """

    def __init__(self, config: ChatGLMConfig, empty_init: bool = True) -> None:
        super().__init__(config)
        self.embedding = Embedding(config)
        self.encoder = GLMTransformer(config)
        self.output_layer = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return self.embedding.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the token embedding."""
        self.embedding.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Any = None,
        full_attention_mask: None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Runs the layers. The order of the arguments is the official one.

        Args:
            input_ids: Token ids, [B, T], int64; or give `inputs_embeds`.
            position_ids: Positions, [B or 1, T]; by default they continue from the cache. If they restart at 0 within a
                row, the row holds several packed samples, which do not attend to each other.
            attention_mask: 1 for tokens, 0 for padding, [B, S]; or a complete 4-D mask.
            full_attention_mask: Keeps the official argument order; must be None.
            past_key_values: The cache to read and extend.
            inputs_embeds: Embedded tokens, [B, T, H].
            use_cache: Whether to create a cache if none is given.
            **kwargs: Passed to the attention implementation; `output_hidden_states` and `output_attentions` too.

        Returns:
            `last_hidden_state`, [B, T, H], after the final norm; the cache. `hidden_states`, if requested, are the
            inputs of the layers and the output of the last one, before the final norm, as in the official model.

        Raises:
            ValueError: Not exactly one of `input_ids` and `inputs_embeds` is given; position ids restart at a value
                other than 0; or flash attention is used with packed samples in several rows or with an attention mask.
            TypeError: `full_attention_mask` is given, or a cache that is not a transformers `Cache`.
        """
        if full_attention_mask is not None:
            raise TypeError(
                "full_attention_mask is not supported; pass a padding mask or a complete 4-D mask as attention_mask"
            )
        if not isinstance(past_key_values, Cache | None):
            raise TypeError(
                f"past_key_values is a {type(past_key_values).__name__}, expected a transformers Cache: pass "
                "the past_key_values of the previous output unchanged, or a DynamicCache"
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        hidden_BTH = self.embedding.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        compute_dtype = hidden_BTH.dtype
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        mask = causal_mask(self.config, hidden_BTH, attention_mask, position_ids, past_key_values)
        if position_ids is None:
            num_seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(hidden_BTH.shape[1], device=hidden_BTH.device).unsqueeze(0) + num_seen
        rotation = rotary_cos_sin(position_ids, self.config.rotary_dim, self.config.rotary_base, compute_dtype)
        if self.config.fp32_residual_connection:
            hidden_BTH = hidden_BTH.float()
        # Fewer than all while `generate` drafts with `assistant_early_exit`.
        for layer in self.encoder.layers[: self.config.num_layers]:
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


class ChatGLMForConditionalGeneration(OfficialMethodsMixin, ChatGLMPreTrainedModel, GenerationMixin):
    """ChatGLM with its language-modelling head; `generate`, `chat` and `stream_chat`.

    The class keeps its published name. It is a plain decoder-only causal language model.

    Args:
        config: The configuration.
        empty_init: Accepted for old code, without effect: weights are read from a folder or initialised.
    """

    _tied_weights_keys = {HEAD_WEIGHT: EMBEDDING_WEIGHT}

    def __init__(self, config: ChatGLMConfig, empty_init: bool = True) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return self.transformer.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the token embedding."""
        self.transformer.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        """The output layer."""
        return self.transformer.output_layer

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the output layer."""
        self.transformer.output_layer = new_embeddings

    def generate(
        self, inputs: Tensor | None = None, generation_config: GenerationConfig | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As transformers' `generate`; after an error while drafting with fewer layers, the model has all layers again.

        Raises:
            ValueError: `assistant_early_exit` is not a valid number of layers for this model.
        """
        num_layers = self.config.num_layers
        options = generation_config or self.generation_config
        early_exit = kwargs.get("assistant_early_exit", options.assistant_early_exit)
        if early_exit is not None and not (type(early_exit) is int and 1 <= early_exit <= num_layers):
            raise ValueError(
                f"assistant_early_exit is {early_exit!r}, expected a number of layers from 1 to {num_layers}"
            )
        try:
            return super().generate(inputs, generation_config, *args, **kwargs)
        finally:
            self.config.num_layers = num_layers

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        *,
        logits_to_keep: int | Tensor = 0,
        return_last_logit: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Runs the model and, with labels, computes the loss. The order of the arguments is the official one.

        Args:
            input_ids: As for `ChatGLMModel.forward`.
            position_ids: Likewise.
            attention_mask: Likewise.
            past_key_values: Likewise.
            inputs_embeds: Likewise.
            labels: Token ids to predict, [B, T], not yet shifted; -100 is ignored by the loss.
            use_cache: Likewise.
            logits_to_keep: Number of last positions to compute logits for (0: all), or their indices.
            return_last_logit: The official name of `logits_to_keep=1`.
            **kwargs: As for `ChatGLMModel.forward`; `num_items_in_batch` divides the summed loss.

        Returns:
            `loss` (fp32 scalar, if labels are given), `logits` [B, T, V], the cache, hidden states, attentions.
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
        logits_to_keep = 1 if return_last_logit else logits_to_keep
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


class ChatGLMForSequenceClassification(ChatGLMPreTrainedModel):
    """Reports that sequence classification is not supported.

    Without this class, AutoModelForSequenceClassification would offer to run the Python files of an official folder.
    """

    def __init__(self, config: ChatGLMConfig) -> None:
        raise ModelError(_NO_CLASSIFIER)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Refuses, before anything is downloaded.

        Raises:
            ModelError: Always.
        """
        raise ModelError(_NO_CLASSIFIER)
