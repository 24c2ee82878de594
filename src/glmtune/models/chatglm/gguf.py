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
from glmtune.models.gguf_layout import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, GGUFLayout, Vocabulary
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
    values: dict[str, int | float] = {
        "context_length": config.seq_length,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.ffn_hidden_size,
        "block_count": config.num_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.layernorm_epsilon),
        "rope.dimension_count": config.rotary_dim,
        "rope.freq_base": float(config.rotary_base),
    }
    vocabulary = _vocabulary(tokenizer, config.padded_vocab_size, template, system)
    ollama, stops = OLLAMA_TEMPLATES.get(template), OLLAMA_STOPS[template]
    return GGUFLayout("chatglm", values, names, vocabulary, ollama, stops)


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


def _vocabulary(tokenizer: ChatGLMTokenizer, size: int, template: Template, system: str | None) -> Vocabulary:
    """The tokens up to the rows of the embedding.

    `sop` and `eop` are spelt with brackets, or llama.cpp would cut English words at them. To templates other than
    `chatglm3` role names are text, so their tokens are not recognised, but they end replies all the same.
    """
    sp = tokenizer.sp_model
    pieces = [sp.id_to_piece(index) for index in range(sp.vocab_size())]
    kinds = [BYTE if sp.is_byte(index) else NORMAL for index in range(len(pieces))]
    scores = [sp.get_score(index) for index in range(len(pieces))]
    for index, name, kind in (
        (sp.unk_id(), "<unk>", UNKNOWN),
        (sp.bos_id(), "<bos>", CONTROL),
        (sp.eos_id(), "<eos>", CONTROL),
    ):
        pieces[index], kinds[index], scores[index] = name, kind, 0.0
    for name in tokenizer.special_tokens:
        pieces.append(f"<{name}>" if name.isalpha() else name)
        kinds.append(UNUSED if template != "chatglm3" and name in ROLE_TOKENS else CONTROL)
        scores.append(0.0)
    pieces += [f"[PAD{index}]" for index in range(len(pieces), size)]
    kinds += [UNUSED] * (size - len(kinds))
    scores += [0.0] * (size - len(scores))
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
    return Vocabulary([piece.encode() for piece in pieces], scores, kinds, values)
