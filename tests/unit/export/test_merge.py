"""Without these, a merged model could compute something else than base and adapter, or not load elsewhere."""

import errno
import json
import math
import os
import shutil
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import glmtune
import processes
from glmtune.adapters.run_folder import RunManifest
from glmtune.errors import AdapterError, ConfigError, GlmtuneError, StorageError
from glmtune.export.merge import merge
from glmtune.export.model_folder import save_weights
from glmtune.export.verify import largest_difference
from glmtune.loading.base_weights import fingerprint_base
from glmtune.models.chatglm.checkpoint import IGNORED_WEIGHT

PROMPT = torch.tensor([[3, 5, 100, 200, 300, 17]])

NAMED = {"_name_or_path": "THUDM/chatglm3-6b"}  # by which llama.cpp's converter knows the family


@torch.no_grad()
def logits(model):
    return model(input_ids=PROMPT).logits


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True, "target_modules": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]},
        {"modules_to_save": ["output_layer"]},
        {"modules_to_save": ["word_embeddings"]},
        {"bias": "lora_only"},
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
    ],
    ids=["plain", "dora", "all linear", "modules_to_save", "embedding", "bias", "all biases", "pissa", "olora"],
)
def test_equals_base_with_adapter(base, make_adapter, tmp_path, settings):
    """Against stock PEFT on stock transformers, in float32."""
    adapter = make_adapter(**settings)
    result = merge(adapter, tmp_path / "merged", model_path=base, dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = logits(model)
    expected = logits(PeftModel.from_pretrained(model, adapter).eval())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert merged.dtype == torch.float32
    assert (expected - before).abs().max() > 0.01
    # Trained modules and biases of the base are kept in the base's float16, as is what pissa and olora leave of it.
    is_rounded = settings.keys() & {"modules_to_save", "bias", "init_lora_weights"}
    torch.testing.assert_close(logits(merged), expected, atol=2e-3 if is_rounded else 1e-4, rtol=0)
    assert result.difference < 1e-4 < result.effect


@pytest.mark.parametrize(
    ("missing", "message"),
    [("nope", "base model nope: there is no such folder"), ("nope/nope", "the model hub cannot be reached")],
)
def test_a_base_that_cannot_be_had_is_said_at_once(make_adapter, tmp_path, monkeypatch, missing, message):
    """Rather than after the half minute for which the hub's client tries again."""
    adapter = make_adapter()

    def no_network(*arguments, **options):
        raise AssertionError("the hub's client was asked")

    monkeypatch.setattr("glmtune.hub.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(AutoConfig, "from_pretrained", no_network)
    with pytest.raises(AdapterError, match=message):
        merge(adapter, tmp_path / "merged", model_path=missing)
    assert not (tmp_path / "merged").exists()


def test_rounds_once_to_the_type_of_the_base(base, make_adapter, tmp_path):
    adapter = make_adapter()
    result = merge(adapter, tmp_path / "merged", model_path=base)
    assert result.dtype == torch.float16
    assert 0 < result.difference < result.tolerance < result.effect
    assert "float16" in result.summary()
    merged, old = load_file(tmp_path / "merged/model.safetensors"), load_file(base / "model.safetensors")
    exact = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    for name, weight in exact.merge_and_unload().state_dict().items():
        assert merged[name].dtype == torch.float16
        torch.testing.assert_close(merged[name], weight.half(), atol=0, rtol=0)
        assert torch.equal(merged[name], old[name]) == ("query_key_value.weight" not in name)


def test_layout_is_the_official_one(base, make_adapter, tmp_path):
    result = merge(make_adapter(), tmp_path / "merged", model_path=base, max_shard_size="0.5MB")
    files = {path.name for path in result.output_dir.iterdir()}
    shards = {name for name in files if name.endswith(".safetensors")}
    index = json.loads((result.output_dir / "model.safetensors.index.json").read_text(encoding="utf-8"))
    old = load_file(base / "model.safetensors")
    assert len(shards) > 1
    assert shards == set(index["weight_map"].values())
    assert f"model-00001-of-{len(shards):05}.safetensors" in shards
    assert set(index["weight_map"]) == set(old)
    assert index["metadata"]["total_size"] == result.num_bytes == sum(weight.nbytes for weight in old.values())
    others = {"config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.model", "README.md"}
    others |= {"configuration_chatglm.py", "modeling_chatglm.py", "MODEL_LICENSE", "model.safetensors.index.json"}
    others |= {"tokenizer.json", "chat_template.jinja"}
    assert files == shards | others
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (base, result.output_dir))
    assert after == before | NAMED | {"vocab_size": before["padded_vocab_size"]}
    tokenizer = AutoTokenizer.from_pretrained(result.output_dir)
    generation = json.loads((result.output_dir / "generation_config.json").read_text(encoding="utf-8"))
    assert generation == {"eos_token_id": tokenizer.stop_token_ids, "pad_token_id": 0}
    # tokenization_chatglm.py is not in the base, so nobody could follow the tokenizer's auto_map
    assert "auto_map" not in json.loads((result.output_dir / "tokenizer_config.json").read_text(encoding="utf-8"))


def test_auto_map_goes_with_its_files_and_dtype_is_named(base, make_adapter, tmp_path):
    (base / "modeling_chatglm.py").unlink()
    (base / "generation_config.json").write_text('{"eos_token_id": 2, "top_p": 0.8}', encoding="utf-8")
    merge(make_adapter(), tmp_path / "merged", model_path=base, dtype="bfloat16")
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "merged"))
    del before["auto_map"]
    assert after == before | NAMED | {"torch_dtype": "bfloat16", "vocab_size": before["padded_vocab_size"]}
    generation = json.loads((tmp_path / "merged/generation_config.json").read_text(encoding="utf-8"))
    assert generation["top_p"] == 0.8
    assert len(generation["eos_token_id"]) == 3


def test_run_folder_brings_base_template_and_system(base, make_adapter, tmp_path):
    run = make_adapter()
    RunManifest(str(base), template="tutorial", system="你是甄嬛").write(run)
    merge(run, tmp_path / "merged")
    manifest = RunManifest.read(tmp_path / "merged")
    assert (manifest.template, manifest.system) == ("tutorial", "你是甄嬛")


def test_reloads_with_plain_transformers_and_replays_the_run(base, make_adapter, tmp_path):
    """A checkpoint takes base, template and system prompt from its run, and the merged folder hands them on."""
    run = make_adapter()
    checkpoint = shutil.copytree(run, tmp_path / "run/checkpoint-5")
    RunManifest(str(base), template="tutorial", system="你是甄嬛").write(tmp_path / "run")
    merge(checkpoint, tmp_path / "merged")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").dtype == torch.float16
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").encode("你好")
    model, tokenizer = glmtune.load(tmp_path / "merged")
    chat = glmtune.Chat(model, tokenizer)
    assert (chat.template, chat.system) == ("tutorial", "你是甄嬛")
    assert model.generation_config.eos_token_id == tokenizer.stop_token_ids


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_base_stored_as_bin(base, make_adapter, tmp_path, is_zip):
    """The rotary buffer of official weights goes along, for the official code."""
    adapter = make_adapter()
    merge(adapter, tmp_path / "expected", model_path=base)
    weights = load_file(base / "model.safetensors")
    for old in (*base.glob("*.bin*"), base / "model.safetensors"):
        old.unlink()
    torch.save(weights, base / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    merge(adapter, tmp_path / "merged", model_path=base)
    merged, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "expected"))
    assert torch.equal(merged[IGNORED_WEIGHT], weights[IGNORED_WEIGHT])
    assert merged.keys() == expected.keys() == weights.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert not list((tmp_path / "merged").glob("*.bin"))


def test_logits_that_are_no_numbers_are_a_difference():
    first = [torch.zeros(2, 3), torch.full((1, 3), torch.nan), torch.ones(2, 3)]
    assert math.isnan(largest_difference(first, [torch.zeros_like(each) for each in first]))


def test_link_to_an_empty_folder(base, make_adapter, tmp_path):
    (tmp_path / "other disk").mkdir()
    (tmp_path / "merged").symlink_to(tmp_path / "other disk")
    merge(make_adapter(), tmp_path / "merged", model_path=base)
    assert (tmp_path / "other disk/model.safetensors").is_file()
    assert (tmp_path / "merged").is_symlink()


def test_unusable_outputs(base, make_adapter, tmp_path):
    adapter = make_adapter()
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("x")
    for output, message in [
        (base, "base itself"),
        (adapter, "run or the base"),
        (tmp_path / "file", "found a file"),
        (tmp_path / "full", "not empty"),
    ]:
        before = sorted(output.iterdir()) if output.is_dir() else None
        with pytest.raises(ConfigError, match=message):
            merge(adapter, output, model_path=base)
        assert before == (sorted(output.iterdir()) if output.is_dir() else None)
    with pytest.raises(StorageError, match="a part of the path is a file"):
        merge(adapter, tmp_path / "file/merged", model_path=base)
    with pytest.raises(ConfigError, match="--max-shard-size"):
        merge(adapter, tmp_path / "merged", model_path=base, max_shard_size="huge")
    with pytest.raises(AdapterError, match="base model"):
        merge(base, tmp_path / "merged")
    with pytest.raises(GlmtuneError, match="nowhere"):
        merge(adapter, tmp_path / "merged", model_path=tmp_path / "nowhere")


def test_empty_output_folder_will_do(base, make_adapter, tmp_path):
    (tmp_path / "merged").mkdir()
    merge(make_adapter(), tmp_path / "merged", model_path=base)
    assert (tmp_path / "merged/model.safetensors").is_file()


def test_full_disk(base, make_adapter, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ConfigError, match="on another disk"):
        merge(make_adapter(), tmp_path / "new/merged", model_path=base)
    assert not (tmp_path / "new").exists()


def test_wrong_result_is_not_kept(base, make_adapter, tmp_path, monkeypatch):
    """Saves weights that were not merged, as a bug might."""
    adapter, unmerged = make_adapter(), load_file(base / "model.safetensors")
    monkeypatch.setattr("glmtune.export.merge.save_weights", _saving(unmerged))
    with pytest.raises(AdapterError, match="does not compute"):
        merge(adapter, tmp_path / "out/merged", model_path=base)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_an_adapter_too_weak_to_see_in_the_logits_is_not_lost(base, make_adapter, tmp_path, monkeypatch, dtype):
    """In 16 bits, rounding the weights changes the logits more than it does."""
    adapter = make_adapter(lora_alpha=5e-4)
    result = merge(adapter, tmp_path / "merged", model_path=base, dtype=dtype)
    assert result.effect < result.tolerance
    unmerged = {name: weight.to(result.dtype) for name, weight in load_file(base / "model.safetensors").items()}
    merged = load_file(tmp_path / "merged/model.safetensors")
    assert any(not torch.equal(merged[name], unmerged[name]) for name in merged)
    monkeypatch.setattr("glmtune.export.merge.save_weights", _saving(unmerged))
    with pytest.raises(
        AdapterError, match=r"does not compute.*: transformer.*query_key_value\.weight is not the base's"
    ):
        merge(adapter, tmp_path / "out/merged", model_path=base, dtype=dtype)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("lost", ["output_layer.weight", "query_key_value.bias"])
def test_a_trained_module_or_bias_that_is_left_out_is_noticed(base, make_adapter, tmp_path, monkeypatch, lost):
    adapter = make_adapter(lora_alpha=1e-3, modules_to_save=["output_layer"], bias="lora_only")
    before = load_file(base / "model.safetensors")

    def save(weights, folder, size):
        kept = {name: before[name] if name.endswith(lost) else weight for name, weight in weights.items()}
        return save_weights(kept, folder, size)

    monkeypatch.setattr("glmtune.export.merge.save_weights", save)
    with pytest.raises(
        AdapterError, match=rf"{lost} is not the base's weight with the adapter's added".replace(".", r"\.")
    ):
        merge(adapter, tmp_path / "out/merged", model_path=base)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_is_loaded_wrongly_is_not_confirmed(base, make_adapter, tmp_path, monkeypatch, init):
    """As when glmtune took every adapter for plain LoRA."""
    monkeypatch.setattr("glmtune.adapters.adapter_files.init_for_loading", lambda _: True)
    with pytest.raises(AdapterError, match="does not compute what base and adapter compute"):
        merge(make_adapter(init_lora_weights=init), tmp_path / "out/merged", model_path=base)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("is_named", [False, True], ids=["in the old place", "named"])
def test_a_base_that_the_adapter_was_not_trained_on_is_merged_into_only_on_request(
    base, make_adapter, tmp_path, is_named
):
    run = make_adapter()
    RunManifest(str(base), base_fingerprint=fingerprint_base(base)).write(run)
    weights = load_file(base / "model.safetensors")
    save_file({name: weight * 1.01 for name, weight in weights.items()}, base / "model.safetensors", {"format": "pt"})
    named = {"model_path": base} if is_named else {}
    with pytest.raises(AdapterError, match=f"the weights of {base} are not those .* --model FOLDER.* --other-base"):
        merge(run, tmp_path / "merged", **named)
    assert not (tmp_path / "merged").exists()
    assert merge(run, tmp_path / "merged", other_base=True, **named).output_dir.is_dir()


def test_a_killed_merge_is_swept_away_by_the_next(base, make_adapter, tmp_path):
    script = (
        "import os, sys; import glmtune.export.merge as module\n"
        "def killed(state_dict, folder, size): (folder / 'model.safetensors').write_bytes(b'half'); os._exit(9)\n"
        "module.save_weights = killed\n"
        "module.merge(sys.argv[1], sys.argv[2], model_path=sys.argv[3])"
    )
    adapter, out = make_adapter(), tmp_path / "out"
    command = [sys.executable, "-c", script, str(adapter), str(out / "merged"), str(base)]
    assert processes.run(*command).returncode == 9
    assert list(out.rglob("model.safetensors")) != []
    merge(adapter, out / "merged", model_path=base)
    assert [path.name for path in out.iterdir()] == ["merged"]
    merged = AutoModelForCausalLM.from_pretrained(out / "merged", dtype="auto")
    assert torch.isfinite(logits(merged)).all()


def test_a_second_merge_to_the_same_place_is_refused_and_leaves_the_first_alone(
    base, make_adapter, tmp_path, monkeypatch
):
    adapter = make_adapter()
    refused = []

    def merge_again_meanwhile(state_dict, folder, size):
        with pytest.raises(GlmtuneError) as caught:
            merge(adapter, tmp_path / "merged", model_path=base)
        refused.append(str(caught.value))
        return save_weights(state_dict, folder, size)

    monkeypatch.setattr("glmtune.export.merge.save_weights", merge_again_meanwhile)
    merge(adapter, tmp_path / "merged", model_path=base)
    assert "is being used for merging by another process" in refused[0]


def test_a_server_of_another_user_can_read_what_the_umask_lets_it(base, make_adapter, tmp_path):
    adapter, before = make_adapter(), os.umask(0o022)
    try:
        merge(adapter, tmp_path / "merged", model_path=base, max_shard_size="0.5MB")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "merged").iterdir()} == {0o644}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_failure_leaves_nothing(base, make_adapter, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("glmtune.export.merge.save_weights", fail)
    with pytest.raises((KeyboardInterrupt, GlmtuneError)):
        merge(make_adapter(), tmp_path / "out/merged", model_path=base)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_fills_up_is_named(base, make_adapter, tmp_path, monkeypatch):
    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("glmtune.export.merge.save_weights", fill)
    with pytest.raises(StorageError, match="out/merged: the disk is full"):
        merge(make_adapter(), tmp_path / "out/merged", model_path=base)


def test_overflow_is_named(base, make_adapter, tmp_path):
    with pytest.raises(AdapterError, match=r"layers\.0.*not finite in torch.float16"):
        merge(make_adapter(lora_alpha=1e9), tmp_path / "merged", model_path=base)


def _saving(weights):
    return lambda _, folder, size: save_weights(weights, folder, size)
