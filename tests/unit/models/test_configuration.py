"""Without these, a configuration that cannot be would end deep within the model, or in one of absurd size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModel

from glmtune.errors import ModelError
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMModel

REFUSED = [
    ({"pre_seq_len": 128}, "pre_seq_len is set"),
    ({"quantization_bit": 4}, "quantization_bit is 4"),
    ({"kv_channels": 6}, "kv_channels is 6"),
    ({"num_layers": "2"}, "num_layers"),
    ({"num_hidden_layers": 0}, "num_layers is 0"),  # transformers' name of the same key
]


def _config_first(folder: Path, **keys: Any) -> None:
    AutoModel.from_pretrained(folder, config=AutoConfig.from_pretrained(folder, **keys))


WAYS_IN: dict[str, Callable[..., Any]] = {
    "AutoConfig": AutoConfig.from_pretrained,
    "ChatGLMConfig": ChatGLMConfig.from_pretrained,
    "AutoModel": AutoModel.from_pretrained,
    "the model's own class": ChatGLMForConditionalGeneration.from_pretrained,
    "a configuration read first": _config_first,
}


@pytest.mark.parametrize("way_in", WAYS_IN)
@pytest.mark.parametrize(("keys", "expected"), REFUSED, ids=str)
def test_keywords_are_checked_like_the_file(official_folder: Path, way_in: str, keys: dict, expected: str) -> None:
    with pytest.raises(ModelError, match=rf"config\.json: .*{expected}"):
        WAYS_IN[way_in](official_folder, **keys)


@pytest.mark.parametrize("model_class", [ChatGLMForConditionalGeneration, ChatGLMModel])
@pytest.mark.parametrize("key", ["pre_seq_len", "quantization_bit"])
def test_no_model_is_made_of_a_configuration_that_was_changed(official_folder: Path, model_class, key: str) -> None:
    """As the official P-tuning script does: it reads the configuration, and sets the prefix's length in it."""
    config = AutoConfig.from_pretrained(official_folder)
    setattr(config, key, 8)
    with pytest.raises(ModelError, match=key):
        model_class(config)
    with pytest.raises(ModelError, match=key):
        AutoModel.from_pretrained(official_folder, config=config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_layers", 10**9),
        ("padded_vocab_size", 10**12),
        ("hidden_size", 10**9),
        ("ffn_hidden_size", 10**30),
        ("kv_channels", 4 * 10**9),
        ("num_attention_heads", 10**9),
        ("seq_length", 10**30),
        ("rope_ratio", 10**400),
        ("rope_ratio", float("nan")),
        ("layernorm_epsilon", float("inf")),
        ("initializer_range", float("nan")),
    ],
)
def test_absurd_sizes_are_refused_before_a_model_is_laid_out(key: str, value: Any) -> None:
    """A million layers would take an hour even without their weights."""
    with pytest.raises(ModelError, match=f"{key} is") as caught:
        ChatGLMConfig(**{key: value})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("key", ["num_key_value_heads", "use_return_dict", "to_dict", "check"])
def test_keys_that_would_hide_a_part_of_the_configuration(key: str) -> None:
    with pytest.raises(ModelError, match=f"'{key}' is not a configuration key"):
        ChatGLMConfig.from_dict({key: 3})


def test_published_configurations_are_read_as_they_are() -> None:
    """Among the keys of the published files are some that only transformers knows."""
    values = {
        "_name_or_path": "THUDM/chatglm3-6b",
        "architectures": ["ChatGLMModel"],
        "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"},
        "bias_dropout_fusion": True,
        "layernorm_epsilon": 1e-05,
        "pre_seq_len": None,
        "prefix_projection": False,
        "quantization_bit": 0,
        "rope_ratio": 500,
        "seq_length": 1048576,
        "torch_dtype": "float16",
        "transformers_version": "4.30.2",
        "classifier_dropout": None,
        "num_labels": 3,
    }
    config = ChatGLMConfig.from_dict(dict(values))
    assert (config.rope_ratio, config.seq_length, config.num_labels) == (500, 1048576, 3)
    assert ChatGLMConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
