"""Without these, a model could load with weights missing, misshaped or random, and only talk nonsense later."""

import json
import logging
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import glmtune  # noqa: F401  (registers the Auto classes)
from glmtune.errors import ModelError
from glmtune.models.chatglm import ChatGLMForConditionalGeneration, ChatGLMModel

QKV = "transformer.encoder.layers.1.self_attention.query_key_value.weight"
HEAD = "transformer.output_layer.weight"
EMBEDDING = "transformer.embedding.word_embeddings.weight"
INV_FREQ = "transformer.rotary_pos_emb.inv_freq"
Save = Callable[[dict, Path], None]
SAVE: dict[str, Save] = {"safetensors": save_file, "bin": torch.save}


@pytest.fixture
def weights(official_folder: Path) -> dict[str, torch.Tensor]:
    return load_file(official_folder / "model.safetensors")


@pytest.fixture
def folder(official_folder: Path, tmp_path: Path) -> Path:
    """A copy to write to, without weights."""
    return Path(shutil.copytree(official_folder, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors")))


def _write(folder: Path, weights: dict, kind: str = "safetensors", num_shards: int = 1) -> list[Path]:
    """Writes weights as the official folders hold them; returns the files."""
    stem = {"safetensors": "model", "bin": "pytorch_model"}[kind]
    if num_shards == 1:
        SAVE[kind](weights, folder / f"{stem}.{kind}")
        return [folder / f"{stem}.{kind}"]
    names = sorted(weights)
    files, weight_map = [], {}
    for number in range(num_shards):
        part = {name: weights[name] for name in names[number::num_shards]}
        files.append(folder / f"{stem}-{number + 1:05d}-of-{num_shards:05d}.{kind}")
        SAVE[kind](part, files[-1])
        weight_map |= dict.fromkeys(part, files[-1].name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    return files


def _edit_json(file: Path, edit: Callable[[dict], None]) -> None:
    value = json.loads(file.read_text())
    edit(value)
    file.write_text(json.dumps(value))


def _fault(folder: Path, **options) -> str:
    """The message of the ModelError that both ways of loading must give."""
    messages = []
    for loader in (AutoModelForCausalLM, ChatGLMForConditionalGeneration):
        with pytest.raises(ModelError) as error:
            loader.from_pretrained(folder, **options)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    return messages[0]


# ---- good folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("with_inv_freq", [True, False])
def test_official_layouts_load_in_silence(folder, weights, kind, num_shards, with_inv_freq, capfd, caplog) -> None:
    extra = {INV_FREQ: torch.ones(4)} if with_inv_freq else {}
    _write(folder, weights | extra, kind, num_shards)
    with caplog.at_level(logging.INFO):
        model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert {name: tensor.equal(weights[name]) for name, tensor in model.state_dict().items()} == dict.fromkeys(
        model.state_dict(), True
    )
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    printed = caplog.text + "".join(capfd.readouterr())
    for word in ("newly", "MISSING", "UNEXPECTED", "not used", "warn", "WARN"):
        assert word not in printed


def test_safetensors_win_where_both_formats_are_there(folder, weights) -> None:
    _write(folder, weights)
    _write(folder, {name: torch.zeros_like(weight) for name, weight in weights.items()}, "bin")
    assert AutoModelForCausalLM.from_pretrained(folder).state_dict()[QKV].equal(weights[QKV])
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=False)
    assert model.state_dict()[QKV].count_nonzero() == 0


def test_a_bin_of_the_old_kind_loads(folder, weights) -> None:
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert AutoModelForCausalLM.from_pretrained(folder).state_dict()[QKV].equal(weights[QKV])


def test_the_model_without_its_head_loads_from_the_same_folder(folder, weights) -> None:
    _write(folder, weights)
    model = ChatGLMModel.from_pretrained(folder)
    assert model.state_dict()["output_layer.weight"].equal(weights[HEAD])


@pytest.mark.parametrize("dtype", ["auto", torch.float32, torch.bfloat16, torch.float16])
def test_dtype(folder, weights, dtype) -> None:
    _edit_json(folder / "config.json", lambda config: config.update(torch_dtype="float16"))
    _write(folder, {name: weight.half() for name, weight in weights.items()})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {torch.float16 if dtype == "auto" else dtype}


def test_options_reach_the_model(folder, weights) -> None:
    _write(folder, weights)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", rope_ratio=3)
    assert model.config.rope_ratio == 3
    assert model(torch.tensor([[1, 2]]), output_attentions=True).attentions[0] is not None  # eager alone has them
    assert model.name_or_path == str(folder)
    assert not model.training


# ---- bad weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_missing_unexpected_and_misshaped_weights_in_one_message(folder, weights, kind) -> None:
    weights = {**weights, HEAD: torch.zeros(7, 32), "transformer.stray": torch.zeros(3)}
    del weights[QKV]
    file = _write(folder, weights, kind)[0].name
    message = _fault(folder)
    assert f"{QKV} is missing" in message
    assert f"{file}: transformer.stray is unexpected" in message
    assert f"{file}: {HEAD} has shape [7, 32], config.json asks for [640, 32]" in message
    assert "3 errors" in message


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_integer_weights(folder, weights, kind) -> None:
    file = _write(folder, {**weights, QKV: weights[QKV].to(torch.int8)}, kind)[0].name
    assert f"{file}: {QKV} is not floating-point" in _fault(folder)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_missing_shards(folder, weights, kind) -> None:
    files = _write(folder, weights, kind, num_shards=3)
    files[0].unlink()
    files[2].unlink()
    message = _fault(folder)
    assert f"{files[0].name} is missing" in message
    assert f"{files[2].name} is missing" in message
    assert "2 errors" in message


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("num_bytes_left", [0, 5, 2000, -1])
def test_cut_short(folder, weights, kind, num_bytes_left) -> None:
    files = _write(folder, weights, kind, num_shards=3)
    files[1].write_bytes(files[1].read_bytes()[:num_bytes_left])
    message = _fault(folder)
    assert files[1].name in message
    assert "damaged" in message
    assert "download it again" in message


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_weight_in_two_shards(folder, weights, kind) -> None:
    files = _write(folder, weights, kind, num_shards=2)
    load = load_file if kind == "safetensors" else torch.load
    first, second = load(files[0]), load(files[1])
    name = next(iter(first))
    SAVE[kind]({**second, name: first[name] * 2}, files[1])
    message = _fault(folder)
    assert f"{files[1].name}: {name} is in {files[0].name} too" in message


def test_an_index_that_names_a_weight_which_its_shard_lacks(folder, weights) -> None:
    files = _write(folder, weights, num_shards=2)
    first = load_file(files[0])
    name = next(iter(first))
    del first[name]
    save_file(first, files[0])
    assert f"{files[0].name}: {name} is missing, though the index" in _fault(folder)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_git_lfs_pointer(folder, weights, kind) -> None:
    (file,) = _write(folder, weights, kind)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    assert f"{file.name} is a Git LFS pointer" in _fault(folder)


def test_a_header_larger_than_the_file(folder) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "model.safetensors" in _fault(folder)


class _Trap:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["plain pickle", "torch file"])
def test_a_hostile_pickle_is_not_run(folder, weights, tmp_path, write) -> None:
    sprung = tmp_path / "sprung"
    with (folder / "pytorch_model.bin").open("wb") as stream:
        write({**weights, "trap": _Trap(sprung)}, stream)
    message = _fault(folder)
    assert not sprung.exists()
    assert "pytorch_model.bin" in message
    assert "not loaded" in message


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {1: torch.zeros(1)}], ids=str)
def test_a_bin_without_weights(folder, content) -> None:
    torch.save(content, folder / "pytorch_model.bin")
    assert "pytorch_model.bin is not a dictionary of weights" in _fault(folder)


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "a/b.safetensors", "..", "config.json", "", 3])
def test_an_index_that_points_elsewhere(folder, weights, name) -> None:
    _write(folder, weights, num_shards=2)
    save_file(weights, folder.parent / "evil.safetensors")
    _edit_json(folder / "model.safetensors.index.json", lambda index: index["weight_map"].update({QKV: name}))
    message = _fault(folder)
    assert "model.safetensors.index.json" in message
    assert "not opened" in message


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": ["b"]}}', "\udcff"])
def test_an_index_that_is_none(folder, weights, text) -> None:
    _write(folder, weights, num_shards=2)
    (folder / "model.safetensors.index.json").write_text(text, errors="surrogateescape")
    assert "model.safetensors.index.json" in _fault(folder)


def test_a_folder_without_weights(folder) -> None:
    message = _fault(folder)
    assert "holds no weights" in message
    assert "tokenizer.model" in message  # what it does hold


@pytest.mark.parametrize(("use_safetensors", "kind"), [(True, "bin"), (False, "safetensors")])
def test_the_format_asked_for_is_not_there(folder, weights, use_safetensors, kind) -> None:
    _write(folder, weights, kind)
    assert "holds no weights" in _fault(folder, use_safetensors=use_safetensors)


# ---- bad configurations and places -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"num_layers": "28"}, "num_layers"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"hidden_size": -4}, "hidden_size is -4"),
        ({"num_layers": 2.5}, "num_layers"),
        ({"rmsnorm": "yes"}, "rmsnorm"),
        ({"num_attention_heads": 3}, "num_attention_heads (3) is not a multiple"),
        ({"multi_query_group_num": 0}, "multi_query_group_num (0)"),
        ({"kv_channels": 6}, "kv_channels is 6"),
        ({"rope_ratio": 0}, "rope_ratio is 0"),
        ({"hidden_dropout": 1.5}, "hidden_dropout is 1.5"),
        ({"layernorm_epsilon": -1.0}, "layernorm_epsilon is -1.0"),
        ({"quantization_bit": 4}, "quantization_bit is 4"),
        ({"pre_seq_len": 64}, "pre_seq_len"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be(folder, weights, keys, expected) -> None:
    _write(folder, weights)
    _edit_json(folder / "config.json", lambda config: config.update(keys))
    message = _fault(folder)
    assert message.startswith("config.json: ")
    assert expected in message


def test_all_contradictions_in_one_message(folder) -> None:
    keys = {"kv_channels": 6, "rope_ratio": -1, "num_layers": 0}
    _edit_json(folder / "config.json", lambda config: config.update(keys))
    message = _fault(folder)
    assert all(name in message for name in keys)


def test_a_configuration_that_does_not_fit_the_weights(folder, weights) -> None:
    _write(folder, weights)
    _edit_json(folder / "config.json", lambda config: config.update(num_layers=3))
    assert "transformer.encoder.layers.2.input_layernorm.weight is missing" in _fault(folder)


@pytest.mark.parametrize("text", ["{", "[1]", "", None])
def test_a_config_json_that_is_none(folder, weights, text) -> None:
    """AutoConfig cannot know whose configuration a broken file is; the model's own class can."""
    _write(folder, weights)
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        ChatGLMForConditionalGeneration.from_pretrained(folder)


def test_another_model_s_folder(folder, weights) -> None:
    _edit_json(folder / "config.json", lambda config: config.update(model_type="llama"))
    with pytest.raises(ModelError, match=r"config\.json.*'llama'"):
        ChatGLMForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize("name", ["no/such/folder", "/no/such/folder", "nobody/nothing", "nothing"])
def test_a_place_that_does_not_exist(name) -> None:
    with pytest.raises(ModelError, match=f"'{name}' is not a folder here"):
        ChatGLMForConditionalGeneration.from_pretrained(name)


def test_a_file_instead_of_a_folder(folder, weights) -> None:
    (file,) = _write(folder, weights)
    with pytest.raises(ModelError, match="is a file"):
        ChatGLMForConditionalGeneration.from_pretrained(file)


# ---- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[tuple[str, dict]]:
    """A hub that has one model, in a cache folder with a name of its own; returns what was asked of it."""
    asked: list[tuple[str, dict]] = []

    def snapshot_download(repo_id: str, **options) -> str:
        asked.append((repo_id, options))
        return str(folder)

    monkeypatch.setattr("glmtune.hub.snapshot_download", snapshot_download)
    return asked


def test_a_hub_id(folder, weights, hub) -> None:
    _write(folder, weights, num_shards=2)
    model = ChatGLMForConditionalGeneration.from_pretrained(
        "THUDM/chatglm3-6b", revision="abc", token="secret", local_files_only=True
    )
    assert model.state_dict()[QKV].equal(weights[QKV])
    assert model.name_or_path == model.config.name_or_path == "THUDM/chatglm3-6b"
    ((repo_id, options),) = hub
    assert repo_id == "THUDM/chatglm3-6b"
    assert (options["revision"], options["token"], options["local_files_only"]) == ("abc", "secret", True)
    assert "*.safetensors" in options["allow_patterns"]
    assert "endpoint" not in options  # HF_ENDPOINT is huggingface_hub's own business
    assert not any(pattern in ("*", "*.py", "*.bin") for pattern in options["allow_patterns"])


def test_a_hub_id_with_bin_files_only(folder, weights, hub) -> None:
    _write(folder, weights, "bin", num_shards=2)
    model = ChatGLMForConditionalGeneration.from_pretrained("THUDM/chatglm2-6b")
    assert model.state_dict()[QKV].equal(weights[QKV])
    assert ["*.bin" in options["allow_patterns"] for _, options in hub] == [False, True]


def test_a_hub_id_of_a_damaged_model(folder, weights, hub) -> None:
    _write(folder, {name: weight for name, weight in weights.items() if name != QKV})
    with pytest.raises(ModelError, match=f"{QKV} is missing"):
        ChatGLMForConditionalGeneration.from_pretrained("THUDM/chatglm3-6b")
