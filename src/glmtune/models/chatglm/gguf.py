"""ChatGLM2 and ChatGLM3 as llama.cpp has them.

Source: `chatglm` in llama.cpp. Its graph has multi-query attention, RMSNorm before each half of a layer, gate and up in
one projection, and rotates the first half of each head.
"""

from glmtune.errors import ModelError
from glmtune.models.chatglm.checkpoint import EMBEDDING_WEIGHT, HEAD_WEIGHT
from glmtune.models.chatglm.configuration import ChatGLMConfig
from glmtune.models.chatglm.jinja_template import chat_template
from glmtune.models.chatglm.ollama import OLLAMA_STOPS, OLLAMA_TEMPLATES
from glmtune.models.chatglm.tokenization import ROLE_TOKENS, ChatGLMTokenizer
from glmtune.models.gguf_layout import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, GGUFLayout
from glmtune.prompts import Template

_LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attention.query_key_value.weight": "attn_qkv.weight",
    "self_attention.query_key_value.bias": "attn_qkv.bias",
    "self_attention.dense.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.dense_h_to_4h.weight": "ffn_up.weight",
    "mlp.dense_4h_to_h.weight": "ffn_down.weight",
}


def gguf_layout(
    config: ChatGLMConfig, tokenizer: ChatGLMTokenizer, template: Template, system: str | None
) -> GGUFLayout:
    """Describes a model to llama.cpp.

    Args:
        config: Its configuration.
        tokenizer: Its tokenizer.
        template: The prompt template that it is to be asked with.
        system: The system prompt of conversations that have none of their own.

    Raises:
        ModelError: llama.cpp cannot compute such a model; the message names all features at fault.
    """
    faults = _faults(config)
    if faults:
        raise ModelError(f"llama.cpp cannot compute this model: {'; '.join(faults)}")
    names = {EMBEDDING_WEIGHT: "token_embd.weight", "transformer.encoder.final_layernorm.weight": "output_norm.weight"}
    if not config.tie_word_embeddings:
        names[HEAD_WEIGHT] = "output.weight"
    for layer in range(config.num_layers):
        prefix = f"transformer.encoder.layers.{layer}."
        names |= {prefix + own: f"blk.{layer}.{theirs}" for own, theirs in _LAYER_NAMES.items()}
    values: dict[str, str | int | float | bool] = {
        "chatglm.context_length": config.seq_length,
        "chatglm.embedding_length": config.hidden_size,
        "chatglm.feed_forward_length": config.ffn_hidden_size,
        "chatglm.block_count": config.num_layers,
        "chatglm.attention.head_count": config.num_attention_heads,
        "chatglm.attention.head_count_kv": config.num_key_value_heads,
        "chatglm.attention.layer_norm_rms_epsilon": float(config.layernorm_epsilon),
        "chatglm.rope.dimension_count": config.rotary_dim,
        "chatglm.rope.freq_base": float(config.rotary_base),
        **_tokenizer_values(tokenizer, template, system),
    }
    tokens = _tokens(tokenizer, config.padded_vocab_size, template)
    return GGUFLayout("chatglm", values, names, tokens, OLLAMA_TEMPLATES.get(template), OLLAMA_STOPS[template])


def _faults(config: ChatGLMConfig) -> list[str]:
    features = {
        "it has LayerNorm (rmsnorm: false)": not config.rmsnorm,
        "it has no final norm (post_layer_norm: false)": not config.post_layer_norm,
        "its residual is taken after the norm (apply_residual_connection_post_layernorm)": (
            config.apply_residual_connection_post_layernorm
        ),
        "its linear layers have biases (add_bias_linear)": config.add_bias_linear,
        "its attention is not multi-query (multi_query_attention: false)": not config.multi_query_attention,
        f"kv_channels is {config.kv_channels}, not hidden_size / num_attention_heads": (
            config.kv_channels * config.num_attention_heads != config.hidden_size
        ),
    }
    return [feature for feature, is_so in features.items() if is_so]


def _tokens(tokenizer: ChatGLMTokenizer, size: int, template: Template) -> list[tuple[bytes, float, int]]:
    """The tokens up to the rows of the embedding, each with its score and kind.

    `sop` and `eop` are spelt with brackets, or llama.cpp would cut English words at them. To templates other than
    `chatglm3` role names are text, so their tokens are not recognised, but they end replies all the same.
    """
    sp = tokenizer.sp_model
    tokens = [
        (sp.id_to_piece(index), sp.get_score(index), BYTE if sp.is_byte(index) else NORMAL)
        for index in range(sp.vocab_size())
    ]
    tokens[sp.unk_id()] = ("<unk>", 0.0, UNKNOWN)
    tokens[sp.bos_id()] = ("<bos>", 0.0, CONTROL)
    tokens[sp.eos_id()] = ("<eos>", 0.0, CONTROL)
    for name in tokenizer.special_tokens:
        kind = UNUSED if template != "chatglm3" and name in ROLE_TOKENS else CONTROL
        tokens.append((f"<{name}>" if name.isalpha() else name, 0.0, kind))
    tokens += [(f"[PAD{index}]", 0.0, UNUSED) for index in range(len(tokens), size)]
    return [(piece.encode(), score, kind) for piece, score, kind in tokens]


def _tokenizer_values(
    tokenizer: ChatGLMTokenizer, template: Template, system: str | None
) -> dict[str, str | int | bool]:
    """How text is tokenised, as metadata."""
    sp = tokenizer.sp_model
    values: dict[str, str | int | bool] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "chatglm-spm",
        "tokenizer.ggml.bos_token_id": sp.bos_id(),
        "tokenizer.ggml.eos_token_id": sp.eos_id(),
        "tokenizer.ggml.unknown_token_id": sp.unk_id(),
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.chat_template": chat_template(template, system, is_for_gguf=True),
    }
    if tokenizer.has_role_tokens:  # or replies would end at </s> alone
        values["tokenizer.ggml.eot_token_id"] = tokenizer.get_command("<|user|>")
        values["tokenizer.ggml.eom_token_id"] = tokenizer.get_command("<|observation|>")
    return values
