"""Without these, llama.cpp and Ollama would compute something else than the run, or talk on after the reply."""

import json
import sys
import weakref
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import processes
from glmtune.adapters.run_folder import RunManifest
from glmtune.errors import AdapterError, ConfigError, ModelError, StorageError
from glmtune.export.gguf_export import export_gguf
from glmtune.export.gguf_file import write_model
from glmtune.export.merge import merge
from glmtune.export.merged_weights import MergedWeights, read_lora_parts
from glmtune.loading.base_weights import fingerprint_base
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMTokenizer
from glmtune.models.chatglm.gguf import gguf_layout

LAYERS = "transformer.encoder.layers"
EXACT = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
PATTERNS = {
    "use_rslora": True,
    "target_modules": ["query_key_value", "dense_h_to_4h", "output_layer"],
    "rank_pattern": {"dense_h_to_4h": 2},
    "alpha_pattern": {"output_layer": 40},
}


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by name, as float32 in the shapes of torch."""
    return {each.name: gguf.quants.dequantize(each.data, each.tensor_type) for each in gguf.GGUFReader(path).tensors}


def _value(path: Path, key: str):
    return gguf.GGUFReader(path).get_field(key).contents()


def _theirs(name: str) -> str:
    """llama.cpp's name of a published weight, written out once more."""
    parts = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    parts |= {"self_attention.query_key_value": "attn_qkv", "self_attention.dense": "attn_output"}
    parts |= {"mlp.dense_h_to_4h": "ffn_up", "mlp.dense_4h_to_h": "ffn_down"}
    name = name.replace("transformer.embedding.word_embeddings", "token_embd").replace(LAYERS, "blk")
    name = name.replace("transformer.encoder.final_layernorm", "output_norm")
    name = name.replace("transformer.output_layer", "output")
    for own, theirs in parts.items():
        name = name.replace(f".{own}.", f".{theirs}.")
    return name


@pytest.mark.parametrize("weight_type", ["f32", "f16", "bf16", "q8_0"])
def test_the_weights_are_those_of_the_base(base, tmp_path, weight_type) -> None:
    result = export_gguf(base, tmp_path / "base.gguf", weight_type=weight_type)
    weights = {name: weight for name, weight in load_file(base / "model.safetensors").items() if "inv_freq" not in name}
    found = _tensors(result.path)
    assert set(found) == {_theirs(name) for name in weights}
    assert result.num_tensors == len(found)
    kinds = {each.name: each.tensor_type.name for each in gguf.GGUFReader(result.path).tensors}
    for name, weight in weights.items():
        is_matrix = weight.dim() > 1
        assert kinds[_theirs(name)] == (weight_type.upper() if is_matrix else "F32")
        if is_matrix and weight_type == "q8_0":
            expected = gguf.quants.quantize(weight.float().numpy(), gguf.GGMLQuantizationType.Q8_0)
            np.testing.assert_array_equal(found[_theirs(name)], gguf.quants.dequantize(expected, 8))
        else:
            dtype = EXACT[weight_type] if is_matrix else torch.float32
            np.testing.assert_array_equal(found[_theirs(name)], weight.to(dtype).float().numpy())


def test_the_sizes_are_those_of_the_model(base, tmp_path) -> None:
    path = export_gguf(base, tmp_path / "base.gguf").path
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    expected = {
        "context_length": config["seq_length"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["ffn_hidden_size"],
        "block_count": config["num_layers"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["multi_query_group_num"],
        "rope.dimension_count": config["kv_channels"] // 2,
        "rope.freq_base": 10000,
        "vocab_size": config["padded_vocab_size"],
    }
    assert {key: _value(path, f"chatglm.{key}") for key in expected} == expected
    assert _value(path, "chatglm.attention.layer_norm_rms_epsilon") == pytest.approx(config["layernorm_epsilon"])
    assert _value(path, "general.architecture") == "chatglm"
    assert _value(path, "general.file_type") == 1


def test_the_vocabulary_stops_replies_and_leaves_english_words_whole(base, tmp_path) -> None:
    path = export_gguf(base, tmp_path / "base.gguf").path
    tokenizer = ChatGLMTokenizer.from_pretrained(base)
    tokens, kinds = (_value(path, f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    size = json.loads((base / "config.json").read_text(encoding="utf-8"))["padded_vocab_size"]
    assert len(tokens) == len(kinds) == len(_value(path, "tokenizer.ggml.scores")) == size
    assert tokens[:4] == ["<unk>", "<bos>", "<eos>", "<0x00>"]
    assert kinds[:4] == [2, 3, 3, 6]
    for name, number in tokenizer.special_tokens.items():
        assert tokens[number] == {"sop": "<sop>", "eop": "<eop>"}.get(name, name)
        assert kinds[number] == 3
    assert set(kinds[len(tokenizer) :]) == {5}
    stops = [_value(path, f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    assert stops == tokenizer.stop_token_ids
    flags = [_value(path, f"tokenizer.ggml.add_{name}") for name in ("bos_token", "eos_token", "space_prefix")]
    assert flags == [False, False, True]
    assert (_value(path, "tokenizer.ggml.model"), _value(path, "tokenizer.ggml.pre")) == ("llama", "chatglm-spm")
    template = _value(path, "tokenizer.chat_template")
    assert "[gMASK]<sop>" in template
    assert "generation %}" not in template  # a tag that llama.cpp does not know


@pytest.mark.parametrize("settings", [{"r": 4}, PATTERNS, {"use_dora": True}], ids=["plain", "patterns", "dora"])
def test_a_run_is_merged_as_merge_does(base, make_adapter, tmp_path, settings) -> None:
    adapter = make_adapter(**settings)
    merge(adapter, tmp_path / "merged", model_path=base, dtype="float32")
    export_gguf(adapter, tmp_path / "run.gguf", weight_type="f32", model_path=base)
    found, expected = _tensors(tmp_path / "run.gguf"), load_file(tmp_path / "merged" / "model.safetensors")
    changed = load_file(base / "model.safetensors")
    differs = 0
    for name, weight in expected.items():
        if "inv_freq" not in name:
            np.testing.assert_allclose(found[_theirs(name)], weight.numpy(), rtol=1e-5, atol=1e-6)
            differs += not torch.equal(weight, changed[name].float())
    assert differs >= 2


def test_an_adapter_alone_adds_what_it_adds_in_peft(base, make_adapter, tmp_path) -> None:
    adapter = make_adapter(**PATTERNS)
    path = export_gguf(adapter, tmp_path / "lora.gguf", lora=True, model_path=base).path
    merge(adapter, tmp_path / "merged", model_path=base, dtype="float32")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    assert (_value(path, "general.type"), _value(path, "adapter.type")) == ("adapter", "lora")
    alpha, tensors = _value(path, "adapter.lora.alpha"), _tensors(path)
    adapted = [name for name in after if not torch.equal(before[name].float(), after[name])]
    assert len(tensors) == 2 * len(adapted)
    for name in adapted:
        down, up = tensors[f"{_theirs(name)}.lora_a"], tensors[f"{_theirs(name)}.lora_b"]
        added = alpha / down.shape[0] * up @ down  # as llama.cpp does it
        np.testing.assert_allclose(added, (after[name] - before[name].float()).numpy(), rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize(
    ("settings", "lora", "fault"),
    [
        ({"use_dora": True}, True, "DoRA"),
        ({"modules_to_save": ["output_layer"]}, True, "Merge the run first"),
        ({"modules_to_save": ["output_layer"]}, False, "Merge the run first"),
        ({"bias": "lora_only"}, False, "Merge the run first"),
        ({"init_lora_weights": "pissa"}, True, "pissa moved part of the base into the adapter"),
    ],
)
def test_adapters_that_a_file_cannot_hold(base, make_adapter, tmp_path, settings, lora, fault) -> None:
    with pytest.raises(AdapterError, match=fault):
        export_gguf(make_adapter(**settings), tmp_path / "x.gguf", lora=lora, model_path=base)
    assert not list(tmp_path.glob("*.gguf"))
    assert not list(tmp_path.glob(".*.unfinished"))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"rmsnorm": False}, "rmsnorm"),
        ({"post_layer_norm": False}, "post_layer_norm"),
        ({"apply_residual_connection_post_layernorm": True}, "residual"),
        ({"add_bias_linear": True}, "add_bias_linear"),
        ({"multi_query_attention": False}, "multi_query_attention"),
        ({"kv_channels": 64}, "kv_channels is 64"),
    ],
)
def test_models_that_llama_cpp_cannot_compute_are_refused_by_name(base, changes, fault) -> None:
    config = ChatGLMConfig.from_dict(json.loads((base / "config.json").read_text(encoding="utf-8")) | changes)
    with pytest.raises(ModelError, match=fault):
        gguf_layout(config, ChatGLMTokenizer.from_pretrained(base), "chatglm3", None)


def test_the_published_model_has_the_tensors_that_llama_cpp_expects(tiny_base) -> None:
    config = ChatGLMConfig(add_qkv_bias=True, multi_query_attention=True, multi_query_group_num=2)
    with torch.device("meta"):
        names = ChatGLMForConditionalGeneration(config).state_dict()
    layout = gguf_layout(config, ChatGLMTokenizer.from_pretrained(tiny_base), "chatglm3", None)
    assert set(names) == set(layout.names)
    assert len(layout.names) == 199


def test_run_s_prompt_goes_along(base, make_adapter, tmp_path) -> None:
    run = make_adapter()
    RunManifest(str(base), template="tutorial", system='扮演"""甄嬛').write(run)
    result = export_gguf(run, tmp_path / "run.gguf", ollama=True)
    tokenizer = ChatGLMTokenizer.from_pretrained(base)
    kinds = _value(result.path, "tokenizer.ggml.token_type")
    assert kinds[tokenizer.get_command("<|user|>")] == 5  # to the tutorial's prompt, role names are text
    assert _value(result.path, "tokenizer.ggml.eot_token_id") == tokenizer.get_command(
        "<|user|>"
    )  # but it ends replies
    assert "扮演" in _value(result.path, "tokenizer.chat_template")
    lines = result.modelfile.read_text(encoding="utf-8").splitlines()
    assert "FROM ./run.gguf" in lines
    assert 'SYSTEM """扮演\'\'\'甄嬛"""' in lines
    assert 'PARAMETER stop "<eos>"' in lines
    assert "<|assistant|>\n" in result.modelfile.read_text(encoding="utf-8")


def test_a_modelfile_for_an_adapter_names_both_files(base, make_adapter, tmp_path) -> None:
    result = export_gguf(make_adapter(), tmp_path / "lora.gguf", lora=True, ollama=True, model_path=base)
    lines = result.modelfile.read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["FROM ./base-f16.gguf", "ADAPTER ./lora.gguf"]
    assert 'PARAMETER stop "<|user|>"' in lines
    assert str(result.modelfile) in result.summary()


@pytest.mark.parametrize(("weight_type", "value"), [("f16", 1e6), ("q8_0", 1e8)])
def test_a_value_too_large_for_the_format_is_named(base, tmp_path, weight_type, value) -> None:
    weights = load_file(base / "model.safetensors")
    wide = {name: weight.float() for name, weight in weights.items()}
    wide["transformer.output_layer.weight"][0, 0] = value
    save_file(wide, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"output_layer.weight.*too large for {weight_type}"):
        export_gguf(base, tmp_path / "x.gguf", weight_type=weight_type)
    export_gguf(base, tmp_path / "x.gguf", weight_type="bf16")


def test_what_is_there_is_not_overwritten(base, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    export_gguf(base)
    with pytest.raises(ConfigError, match=r"base-f16.gguf exists"):
        export_gguf(base)
    with pytest.raises(ConfigError, match=r"ends in .gguf"):
        export_gguf(base, tmp_path / "folder")
    with pytest.raises(AdapterError, match="Leave out --lora"):
        export_gguf(base, lora=True)
    with pytest.raises(ModelError, match="a base model itself"):
        export_gguf(base, tmp_path / "x.gguf", model_path=base)


def test_a_modelfile_that_is_there_is_kept(base, tmp_path) -> None:
    (tmp_path / "x.Modelfile").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"x.Modelfile exists"):
        export_gguf(base, tmp_path / "x.gguf", ollama=True)
    assert [path.name for path in tmp_path.glob("x.*")] == ["x.Modelfile"]
    result = export_gguf(base, tmp_path / "two words.gguf", ollama=True)
    assert f"-f '{result.modelfile}'" in result.summary()


def test_arguments_that_make_no_sense_are_one_sentence(base, tmp_path) -> None:
    with pytest.raises(ConfigError, match="expected one of f32, f16, bf16, q8_0"):
        export_gguf(base, tmp_path / "x.gguf", weight_type="q4_0")
    with pytest.raises(StorageError, match="the name is too long"):
        export_gguf(base, tmp_path / f"{'x' * 300}.gguf")


def test_an_adapter_too_narrow_for_a_type_is_told_to_take_another(base, make_adapter, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"rows of 4 values .* Choose another --type, such as f16"):
        export_gguf(make_adapter(), tmp_path / "x.gguf", lora=True, weight_type="q8_0")
    assert not list(tmp_path.glob("x.gguf*"))


def test_a_killed_export_is_swept_away_by_the_next(base, tmp_path) -> None:
    script = (
        "import os, sys; import glmtune.export.gguf_export as module\n"
        "def killed(path, *_): path.write_bytes(b'half'); os._exit(9)\n"
        "module.write_model = killed\n"
        "module.export_gguf(sys.argv[1], sys.argv[2])"
    )
    target = tmp_path / "out" / "x.gguf"
    assert processes.run(sys.executable, "-c", script, str(base), str(target)).returncode == 9
    assert not target.exists()
    assert [path for path in target.parent.rglob("*") if path.is_file()] != []
    export_gguf(base, target)
    assert [path.name for path in target.parent.iterdir()] == ["x.gguf"]


def test_a_full_disk_is_named(base, tmp_path, monkeypatch) -> None:
    def write_part(*_) -> None:
        raise OSError("327680 requested and 28384 written")  # what numpy says

    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", write_part)
    with pytest.raises(StorageError, match="the disk may be full"):
        export_gguf(base, tmp_path / "x.gguf")
    assert not list(tmp_path.glob("*x.gguf*"))


def test_an_adapter_of_a_shared_weight_is_refused(base, make_adapter, tmp_path) -> None:
    adapter = make_adapter(target_modules=["output_layer"])
    config = json.loads((base / "config.json").read_text(encoding="utf-8")) | {"tie_word_embeddings": True}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(AdapterError, match=r"output_layer.weight is the embedding's weight too"):
        export_gguf(adapter, tmp_path / "x.gguf", model_path=base)


@pytest.mark.parametrize("lora", [False, True], ids=["merged", "alone"])
@pytest.mark.parametrize("is_named", [False, True], ids=["in the old place", "named"])
def test_a_base_that_the_adapter_was_not_trained_on_is_exported_with_only_on_request(
    base, make_adapter, tmp_path, is_named, lora
) -> None:
    run = make_adapter()
    RunManifest(str(base), base_fingerprint=fingerprint_base(base)).write(run)
    weights = load_file(base / "model.safetensors")
    save_file({name: weight * 1.01 for name, weight in weights.items()}, base / "model.safetensors", {"format": "pt"})
    options = {"lora": lora} | ({"model_path": base} if is_named else {})
    with pytest.raises(AdapterError, match=f"the weights of {base} are not those .* --model FOLDER.* --other-base"):
        export_gguf(run, tmp_path / "x.gguf", **options)
    assert not list(tmp_path.glob("*.gguf*"))
    assert export_gguf(run, tmp_path / "x.gguf", other_base=True, **options).path.is_file()


def test_memory_holds_one_weight_at_a_time(base, make_adapter, tmp_path) -> None:
    config = ChatGLMConfig.from_dict(json.loads((base / "config.json").read_text(encoding="utf-8")))
    parts, _ = read_lora_parts(make_adapter(), config)
    weights = MergedWeights(base, config, parts)
    layout = gguf_layout(config, ChatGLMTokenizer.from_pretrained(base), "chatglm3", None)
    earlier: list[weakref.ref] = []

    def read(name: str) -> torch.Tensor:
        assert not any(reference() is not None for reference in earlier)
        weight = weights.read(name)
        earlier.append(weakref.ref(weight))
        return weight

    write_model(tmp_path / "x.gguf", "x", layout, weights.shapes, read, "f16")
    assert len(earlier) == len(layout.names)


def test_a_missing_package_is_named(base, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"glmtune\[gguf\]"):
        export_gguf(base, tmp_path / "x.gguf")
