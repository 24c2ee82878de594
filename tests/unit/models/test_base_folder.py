"""Without these, a base folder with a missing, damaged or foreign file would end in a traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel, AutoTokenizer

import glmtune  # noqa: F401  (registers the Auto classes)
from glmtune.errors import ModelError
from glmtune.models.chatglm import ChatGLMForConditionalGeneration, ChatGLMTokenizer

MODEL: tuple[Callable[..., Any], ...] = (AutoModel.from_pretrained, ChatGLMForConditionalGeneration.from_pretrained)
TOKENIZER: tuple[Callable[..., Any], ...] = (AutoTokenizer.from_pretrained, ChatGLMTokenizer.from_pretrained)


@pytest.fixture
def folder(official_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(official_folder, tmp_path / "base"))


def _set(file: Path, **keys: Any) -> None:
    values = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(values | keys), encoding="utf-8")


# What transformers itself reads before it comes to our classes is in tests/unit/loading/test_load.py.
@pytest.mark.parametrize("text", ["[]", "null", "3", '"text"', "{", "\udcff"])
@pytest.mark.parametrize(
    ("loaders", "file"),
    [
        (MODEL[1:], "config.json"),
        (MODEL, "generation_config.json"),
        (TOKENIZER[1:], "tokenizer_config.json"),
        (TOKENIZER[1:], "special_tokens_map.json"),
        (TOKENIZER[1:], "added_tokens.json"),
    ],
)
def test_json_files_that_hold_no_object(folder: Path, loaders, file: str, text: str) -> None:
    (folder / file).write_text(text, errors="surrogateescape")
    for load in loaders:
        with pytest.raises(ModelError, match=rf"{file}( is damaged|: expected a JSON object)"):
            load(folder)


@pytest.mark.parametrize(
    ("loaders", "file", "key", "value"),
    [
        (MODEL, "config.json", "num_labels", "3"),
        (MODEL, "config.json", "torch_dtype", 16),
        (MODEL, "config.json", "dtype", "half"),
        (MODEL, "config.json", "quantization_config", "nf4"),
        (MODEL, "config.json", "rope_scaling", "yarn"),
        (MODEL, "config.json", "eos_token_id", "</s>"),
        (MODEL, "config.json", "hidden_size", None),
        (MODEL[1:], "config.json", "auto_map", 5),
        (MODEL, "generation_config.json", "eos_token_id", "</s>"),
        (MODEL, "generation_config.json", "pad_token_id", []),
        (MODEL, "generation_config.json", "temperature", "0.8"),
        (MODEL, "generation_config.json", "do_sample", 1),
        (TOKENIZER, "tokenizer_config.json", "padding_side", "middle"),
        (TOKENIZER, "tokenizer_config.json", "model_input_names", 3),
        (TOKENIZER, "tokenizer_config.json", "added_tokens_decoder", 3),
        (TOKENIZER, "tokenizer_config.json", "encode_special_tokens", "yes"),
    ],
)
def test_values_of_the_wrong_type(folder: Path, loaders, file: str, key: str, value: Any) -> None:
    _set(folder / file, **{key: value})
    for load in loaders:
        with pytest.raises(ModelError, match=rf"{file}: .*{key}"):
            load(folder)


def test_all_values_of_the_wrong_type_in_one_message(folder: Path) -> None:
    _set(folder / "generation_config.json", top_k="5", num_beams=None, max_length=[3], top_p=1)
    with pytest.raises(ModelError, match=r"max_length is \[3\], expected .*top_k is '5', expected") as caught:
        AutoModel.from_pretrained(folder)
    assert "num_beams" not in str(caught.value)  # null is what a file says for "not set"


def test_files_of_other_tools_are_no_fault(folder: Path) -> None:
    _set(folder / "generation_config.json", unheard_of="x", transformers_version=4, temperature=1, top_p=None)
    _set(folder / "tokenizer_config.json", unheard_of=[3], model_max_length=1000000000000000019884624838656)
    assert AutoModel.from_pretrained(folder).generation_config.temperature == 1
    assert AutoTokenizer.from_pretrained(folder).encode("你好")


def test_a_tokenizer_without_its_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    for load in TOKENIZER:
        with pytest.raises(
            ModelError, match=r"base is not a complete base model: expected tokenizer\.model in it; found: "
        ):
            load(folder)


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    num_ids = len(AutoTokenizer.from_pretrained(folder))
    _set(folder / "config.json", padded_vocab_size=num_ids)
    assert len(AutoTokenizer.from_pretrained(folder)) == num_ids
    _set(folder / "config.json", padded_vocab_size=num_ids - 1)
    for load in TOKENIZER:
        with pytest.raises(
            ModelError, match=rf"has {num_ids} ids, more than the {num_ids - 1} of the model.*padded_voc"
        ):
            load(folder)
    (folder / "config.json").unlink()  # as in the folder of an adapter
    assert len(ChatGLMTokenizer.from_pretrained(folder)) == num_ids
