"""The configuration of ChatGLM2 and ChatGLM3 models, with the published names."""

from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from glmtune.errors import ModelError
from glmtune.models.base_folder import check_keys

# Far above every published model, but small enough to build such a model on the meta device.
_LARGEST = {
    "num_layers": 1000,
    "padded_vocab_size": 2**24,
    "hidden_size": 2**20,
    "ffn_hidden_size": 2**22,
    "kv_channels": 2**14,
    "num_attention_heads": 2**14,
    "seq_length": 2**40,
}


@strict
class ChatGLMConfig(PretrainedConfig):
    """Reads the official `config.json` as published; every key keeps its published name.

    Attributes:
        num_layers: Transformer layers.
        padded_vocab_size: Rows of the embedding and of the output layer.
        hidden_size: Width of the residual stream.
        ffn_hidden_size: Width of the MLP's gate and of its up projection.
        kv_channels: Size of a head.
        num_attention_heads: Query heads.
        seq_length: The longest sequence the model was trained on, in tokens.
        hidden_dropout: Dropout on what each sub-layer adds to the residual stream.
        attention_dropout: Dropout on attention weights.
        layernorm_epsilon: The norms' epsilon.
        rmsnorm: Whether norms are RMSNorm; otherwise LayerNorm.
        apply_residual_connection_post_layernorm: Whether the residual is taken after a norm instead of before it.
        post_layer_norm: Whether a final norm follows the last layer.
        add_bias_linear: Whether all linear layers have a bias.
        add_qkv_bias: Whether the query-key-value projection has a bias regardless of `add_bias_linear`.
        multi_query_attention: Whether `multi_query_group_num` key and value heads serve all query heads. Without it,
            each head has its own and the projection holds query, key and value of a head side by side.
        multi_query_group_num: Key and value heads under `multi_query_attention`.
        rope_ratio: The rotary base is 10000 times this (the 32k and 128k models stretch it).
        original_rope: Kept as published; there is one rotary embedding.
        fp32_residual_connection: Whether the residual stream is kept in fp32.
        bias_dropout_fusion: Kept as published; it does not affect results.
        apply_query_key_layer_scaling: Kept as published; it cancels out.
        attention_softmax_in_fp32: Kept as published; softmax is always in fp32.
        quantization_bit: Must be 0: pre-quantised official folders are not supported.
        pre_seq_len: Must be None: P-tuning v2 prefixes are not supported.
        prefix_projection: Kept as published.
        initializer_range: Standard deviation of newly initialised weights.

    Raises:
        ModelError: A value is of the wrong type, contradicts another, or requests an unsupported feature.

    Source: `configuration_chatglm.py` of the official ChatGLM3-6B release.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference = ["past_key_values"]
    # By this AutoTokenizer finds the class where tokenizer_config.json names none, as in merged folders with official
    # code files.
    tokenizer_class = "ChatGLMTokenizer"
    attribute_map = {
        "num_hidden_layers": "num_layers",
        "vocab_size": "padded_vocab_size",
        "max_position_embeddings": "seq_length",
        "intermediate_size": "ffn_hidden_size",
        "head_dim": "kv_channels",
    }

    num_layers: int = 28
    padded_vocab_size: int = 65024
    hidden_size: int = 4096
    ffn_hidden_size: int = 13696
    kv_channels: int = 128
    num_attention_heads: int = 32
    seq_length: int = 2048
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    layernorm_epsilon: float | int = 1e-5
    rmsnorm: bool = True
    apply_residual_connection_post_layernorm: bool = False
    post_layer_norm: bool = True
    add_bias_linear: bool = False
    add_qkv_bias: bool = False
    bias_dropout_fusion: bool = True
    multi_query_attention: bool = False
    multi_query_group_num: int = 1
    apply_query_key_layer_scaling: bool = True
    attention_softmax_in_fp32: bool = True
    fp32_residual_connection: bool = False
    rope_ratio: float | int = 1
    original_rope: bool = True
    quantization_bit: int = 0
    pre_seq_len: int | None = None
    prefix_projection: bool = False
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    bos_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.check()

    def check(self) -> None:
        """Rejects values that are invalid, contradict each other, or request unsupported features.

        Every configuration is checked when it is created, when it is read, and when a model is created from it.

        Raises:
            ModelError: All faults in one message.
        """
        faults = self._faults()
        if faults:
            raise ModelError("config.json: " + "; ".join(faults))

    def _faults(self) -> list[str]:
        """A phrase for each fault."""
        values = self.__dict__
        faults = [
            f"{name} is {values[name]!r:.40}, expected a number from 1 to {largest}"
            for name, largest in _LARGEST.items()
            if not 1 <= values[name] <= largest
        ]
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if groups <= 0 or heads % groups:
            faults.append(f"num_attention_heads ({heads}) is not a multiple of multi_query_group_num ({groups})")
        if self.kv_channels % 4:
            faults.append(
                f"kv_channels is {self.kv_channels}, expected a multiple of 4 (half of it is rotated in pairs)"
            )
        for name, most in (("rope_ratio", 1e9), ("layernorm_epsilon", 1)):
            if not 0 < values[name] <= most:
                faults.append(f"{name} is {values[name]!r:.40}, expected a positive number up to {most:g}")
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= values[name] < 1:
                faults.append(f"{name} is {values[name]!r:.40}, expected a probability below 1")
        if not 0 <= self.initializer_range <= 100:
            faults.append(f"initializer_range is {self.initializer_range}, expected a standard deviation up to 100")
        if self.quantization_bit:
            faults.append(
                f"quantization_bit is {self.quantization_bit}: pre-quantised folders cannot be trained; "
                "use the full-precision model"
            )
        if self.pre_seq_len is not None:
            faults.append("pre_seq_len is set: P-tuning v2 prefixes are not supported; use the plain model")
        return faults

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads."""
        return self.multi_query_group_num if self.multi_query_attention else self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        """Rotated channels of a head: its first half."""
        return self.kv_channels // 2

    @property
    def rotary_base(self) -> float:
        """The wavelength base of the rotary embedding."""
        return 10000.0 * self.rope_ratio

    def to_dict(self) -> dict[str, Any]:
        """As `PretrainedConfig.to_dict`, with the names that other programs look for.

        vLLM, SGLang, LMDeploy and llama.cpp all know `ChatGLMModel`, the published architecture of the model with its
        head.
        """
        values: dict[str, Any] = super().to_dict()
        if values.get("architectures") == ["ChatGLMForConditionalGeneration"]:
            values["architectures"] = ["ChatGLMModel"]
        values["vocab_size"] = self.padded_vocab_size
        return values

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As `PretrainedConfig.from_dict`, with all values checked, those of `kwargs` too.

        Raises:
            ModelError: A value is of the wrong type, contradicts another, or requests an unsupported feature.
        """
        check_keys("config.json", config_dict)
        for key in config_dict:
            attribute = getattr(cls, key, None)
            if callable(attribute) or (isinstance(attribute, property) and attribute.fset is None):
                raise ModelError(f"config.json: {key!r} is not a configuration key; remove it")
        try:
            read = super().from_dict(config_dict, **kwargs)
        except StrictDataclassError as error:
            reason = " ".join(str(error.__cause__ or error).split()).partition(". Errors: ")[0]
            raise ModelError(f"config.json: {reason}") from error
        # transformers applies kwargs after the configuration has been created and checked.
        config = read[0] if isinstance(read, tuple) else read
        config.check()
        return read
