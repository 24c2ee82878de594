"""Without these, a run folder could load with another base, another type or another prompt than it was trained with."""

import json
import shutil
import sys
import weakref
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError
from urllib.request import Request

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from glmtune import hub
from glmtune.adapters.run_folder import RunManifest
from glmtune.config import embedded_base
from glmtune.errors import AdapterError, ConfigError, ModelError
from glmtune.loading.base_weights import fingerprint_base
from glmtune.loading.bases import load_base, load_by_weight, load_tokenizer, read_base_config
from glmtune.loading.devices import resolve_dtype
from glmtune.loading.formats import quantize_layers
from glmtune.loading.runs import fitting_format, load
from glmtune.loading.shape import BaseShape
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.models.families import family_at
from glmtune.models.family import Family
from glmtune.models.host_embedding import HostEmbedding


def test_adapter_of_stock_peft(golden: Path) -> None:
    loaded = load(golden / "adapter_final", model_path=golden, device_map="cpu")
    expected = load_file(golden / "expected.safetensors")
    with torch.no_grad():
        logits = loaded.model(input_ids=expected["lora.input_ids"]).logits[:, :24, expected["logit_columns"]]
    torch.testing.assert_close(logits, expected["lora.final_logits"], atol=1e-4, rtol=0)
    assert (loaded.template, loaded.system, loaded.base_path) == ("chatglm3", None, str(golden))
    assert loaded.adapter_path == golden / "adapter_final"
    assert not loaded.model.training


def test_base_alone_stops_at_the_end_of_a_turn(golden: Path) -> None:
    loaded = load(golden)
    assert loaded.adapter_path is None
    ids = json.loads((golden / "tokenizer_cases.json").read_text(encoding="utf-8"))["ids"]
    tokenizer = loaded.tokenizer
    stops = [tokenizer.eos_token_id, tokenizer.get_command("<|user|>"), tokenizer.get_command("<|observation|>")]
    assert loaded.model.generation_config.eos_token_id == stops
    assert set(stops[1:]) <= set(ids.values())


def test_base_where_the_run_says(golden: Path, tmp_path: Path) -> None:
    run = shutil.copytree(golden / "adapter_final", tmp_path / "run")
    base = shutil.copytree(golden, tmp_path / "base")
    RunManifest(str(base), "tutorial", "你是甄嬛").write(run)
    loaded = load(run)
    assert (loaded.base_path, loaded.template, loaded.system) == (str(base), "tutorial", "你是甄嬛")
    assert loaded.tokenizer.init_kwargs["prompt_template"] == "tutorial"
    assert loaded.tokenizer.init_kwargs["system_prompt"] == "你是甄嬛"
    base.rename(tmp_path / "moved")
    with pytest.raises(AdapterError, match=f"its base model is not in {base}.*--model"):
        load(run)
    assert isinstance(load(run, model_path=tmp_path / "moved").model, PeftModel)


def test_another_base_in_the_old_place_is_warned_of(
    golden: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = shutil.copytree(golden, tmp_path / "base", ignore=shutil.ignore_patterns("adapter_*"))
    run = shutil.copytree(golden / "adapter_final", tmp_path / "run")
    RunManifest(str(base), base_fingerprint=fingerprint_base(base)).write(run)
    load(run)
    load(run, model_path=golden)
    assert not caplog.records
    weights = load_file(base / "model.safetensors")
    save_file({name: weight * 1.01 for name, weight in weights.items()}, base / "model.safetensors")
    load(run)
    assert f"{run}: the weights of {base} are not those that the adapter was trained on" in caplog.text


def test_a_merged_folder_remembers_its_run(golden: Path, tmp_path: Path) -> None:
    merged = shutil.copytree(golden, tmp_path / "merged", ignore=shutil.ignore_patterns("adapter_*"))
    RunManifest(None, "tutorial", "你是甄嬛").write(merged)
    loaded = load(merged)
    assert (loaded.template, loaded.system, loaded.adapter_path) == ("tutorial", "你是甄嬛", None)


def test_base_that_is_on_no_hub(golden: Path) -> None:
    with pytest.raises(AdapterError, match=r"its base model golden/chatglm\d: no such folder here.*(.|\n)*--model"):
        load(golden / "adapter_final")


def test_adapter_for_another_base(golden_folders: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        load(golden_folders / "chatglm3-tiny" / "adapter_final", model_path=golden_folders / "chatglm2-tiny")
    message = str(caught.value)
    assert "4 errors" in message
    assert "expected shape [192, 8]; found [128, 8]" in message
    assert "--model" in message


def test_model_path_is_for_adapters(golden: Path) -> None:
    with pytest.raises(ModelError, match="is a base model itself"):
        load(golden, model_path=golden)


def test_base_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such folder"):
        load_base(tmp_path / "none")
    (tmp_path / "config.json").write_text('{"model_type": "chatglm"}')
    with pytest.raises(ModelError):
        load_base(tmp_path)


BASE_FILES = ("config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json")


@pytest.mark.parametrize("missing", BASE_FILES)
def test_a_base_that_lacks_a_file(tmp_path: Path, missing: str) -> None:
    base = shutil.copytree(embedded_base(), tmp_path / "base")
    (base / missing).unlink()
    with pytest.raises(ModelError, match=f"base (is not a complete base model|holds no weights): expected {missing}"):
        load_base(base)
    if missing.startswith("tokenizer"):
        with pytest.raises(
            ModelError, match=f"is not a complete base model: expected {missing} in it; found: config.json"
        ):
            load_tokenizer(base)


def test_everything_that_a_base_lacks_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for read in (load_base, load_tokenizer):
        with pytest.raises(
            ModelError, match=r"expected config\.json, tokenizer\.model, tokenizer_config\.json .*notes\.txt"
        ):
            read(tmp_path)
    with pytest.raises(ModelError, match=r"expected config\.json in it; found: notes\.txt"):
        read_base_config(tmp_path)


@pytest.mark.parametrize("read", [load_base, load_tokenizer, read_base_config])
def test_an_adapter_in_the_place_of_a_base_names_its_own_base(golden: Path, tmp_path: Path, read: Any) -> None:
    config = json.loads((golden / "adapter_final" / "adapter_config.json").read_text())
    base = config["base_model_name_or_path"]
    with pytest.raises(ModelError, match=f"adapter_final holds an adapter, expected a base model; its base is {base}"):
        read(golden / "adapter_final")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter, expected a base model; it does not say of which base"):
        read(tmp_path)


@pytest.mark.parametrize("read", [load_tokenizer, read_base_config])
@pytest.mark.parametrize("name", ["nope", "a/b/c", "no such/folder"])
def test_what_is_neither_a_folder_nor_an_id_is_not_looked_for_on_the_hub(read: Any, name: str) -> None:
    with pytest.raises(ModelError, match=f"base model {name}: there is no such folder"):
        read(name)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"text"', "{", "\udcff"])
@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json"]
)
def test_json_files_of_a_base_that_hold_no_object(tmp_path: Path, file: str, text: str) -> None:
    base = shutil.copytree(embedded_base(), tmp_path / "base")
    (base / file).write_text(text, errors="surrogateescape")
    for read in (load_base, load_tokenizer):
        with pytest.raises(ModelError, match=f"{file}( is damaged|: expected a JSON object)"):
            read(base)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "num_layers", 10**9),  # which took hours
        ("config.json", "auto_map", 5),
        ("config.json", "num_labels", "three"),
        ("config.json", "model_type", 3),
        ("tokenizer_config.json", "tokenizer_class", 3),
        ("tokenizer_config.json", "tokenizer_class", None),
        ("tokenizer_config.json", "tokenizer_class", "ChatGLM4Tokenizer"),
        ("tokenizer_config.json", "auto_map", 3),
        ("tokenizer_config.json", "init_inputs", 3),
    ],
)
def test_values_of_a_base_that_cannot_be(tmp_path: Path, file: str, key: str, value: Any) -> None:
    base = shutil.copytree(embedded_base(), tmp_path / "base")
    values = json.loads((base / file).read_text(encoding="utf-8"))
    (base / file).write_text(json.dumps({**values, key: value}))
    for read in (load_base, load_tokenizer):
        with pytest.raises(ModelError, match=f"{file}: {key} is"):
            read(base)


def test_modules_trained_along_take_the_type_of_the_base(tiny_base: Path, tmp_path: Path) -> None:
    from glmtune.adapters.adapter_files import save_adapter
    from glmtune.adapters.lora import attach_lora

    model, _ = load_base(tiny_base)
    save_adapter(attach_lora(model, {"target_modules": ["dense"], "modules_to_save": ["output_layer"]}), tmp_path)
    loaded = load(tmp_path, dtype="bfloat16", device_map="cpu")
    dtypes = {name: parameter.dtype for name, parameter in loaded.model.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if "lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "lora_" not in name} == {torch.bfloat16}
    with torch.no_grad():
        loaded.model(input_ids=torch.arange(8)[None])


def test_resolve_dtype_on_the_cpu() -> None:
    assert resolve_dtype("auto", "cpu") == torch.float32
    assert resolve_dtype("bfloat16", "cpu") == torch.bfloat16


def test_a_folder_that_is_not_there_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output").mkdir()
    for path in ("output/ChatGLM", "a/b/c", "ChatGLM"):
        with pytest.raises(ModelError, match=f"{path} does not exist"):
            load(path)


def test_a_hub_that_cannot_be_reached_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fail(request: Request, timeout: float) -> None:
        tried.append(request.full_url)
        raise URLError("no network")

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "urlopen", fail)
    with pytest.raises(ModelError, match=r"no such folder here, and the model hub cannot be reached \(no network\)"):
        load("owner/no-such-model")
    assert len(tried) == 1
    with pytest.raises(ModelError) as caught:
        load_tokenizer("THUDM/chatglm3-6b")
    lines = str(caught.value).splitlines()
    assert lines[1].endswith("modelscope download --model ZhipuAI/chatglm3-6b --local_dir chatglm3-6b")
    assert lines[2] == "  hf download zai-org/chatglm3-6b --local-dir chatglm3-6b"


def test_a_modelscope_id_works_where_modelscope_is_installed(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_id, asked = f"ZhipuAI/{golden.name}", []

    def snapshot_download(wanted: str, ignore_file_pattern: list[str] | None) -> str:
        asked.append((wanted, ignore_file_pattern is None))
        return str(golden)

    stub = ModuleType("modelscope")
    stub.__spec__ = ModuleSpec("modelscope", None)
    stub.__dict__["snapshot_download"] = snapshot_download
    monkeypatch.setitem(sys.modules, "modelscope", stub)
    loaded = load(model_id)
    assert loaded.base_path == model_id
    assert loaded.model.config.model_type == "chatglm"
    assert read_base_config(model_id).model_type == "chatglm"
    assert sorted(set(asked)) == sorted(asked)  # each only once
    assert (model_id, True) in asked


def test_a_modelscope_id_without_modelscope_says_how_to_download_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(
        ModelError, match=r"it is an id of ModelScope, and modelscope is not installed(.|\n)*pip install"
    ):
        load("ZhipuAI/chatglm3-6b")


def test_an_empty_folder_as_base_says_what_is_expected_in_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected config\.json, tokenizer\.model, .* in it; found: nothing"):
        load_tokenizer(tmp_path)


def test_layers_of_the_adapter_that_the_base_does_not_have(golden: Path, tmp_path: Path) -> None:
    run = shutil.copytree(golden / "adapter_final", tmp_path / "run")
    file = run / "adapter_config.json"
    config = json.loads(file.read_text())
    for change, message in (({"layers_to_transform": [99]}, "no layer 99"), ({"modules_to_save": 5}, "list of names")):
        file.write_text(json.dumps(config | change))
        with pytest.raises(AdapterError, match=message):
            load(run, model_path=golden)


@pytest.mark.parametrize("quantize", ["none", "int8", "nf4", "fp8"])
@pytest.mark.parametrize("offloads_embedding", [False, True])
def test_weight_by_weight(golden: Path, quantize: Any, offloads_embedding: bool) -> None:
    """The same model as one that is quantised once it is there."""
    whole, _ = load_base(golden, "float32", "cpu")
    quantize_layers(whole, quantize)
    settings = {"quantize": quantize, "offloads_embedding": offloads_embedding}
    model = load_by_weight(golden, torch.float32, torch.device("cpu"), **settings)
    ids = torch.arange(12).reshape(2, 6)
    assert torch.equal(model(ids).logits, whole(ids).logits)
    assert not model.training
    assert model.name_or_path == str(golden)
    assert model.device == torch.device("cpu")
    assert isinstance(model.get_input_embeddings(), HostEmbedding) == offloads_embedding


def test_weight_by_weight_from_other_files(golden: Path, tmp_path: Path) -> None:
    base = shutil.copytree(golden, tmp_path / "base", ignore=shutil.ignore_patterns("adapter_*"))
    weights = {}
    for file in base.glob("*.safetensors"):
        if file.name != "expected.safetensors":
            weights |= load_file(file)
            file.unlink()
    (base / "model.safetensors.index.json").unlink(missing_ok=True)
    torch.save(weights, base / "pytorch_model.bin")
    settings = {"quantize": "int8", "offloads_embedding": False}
    ids = torch.arange(12).reshape(2, 6)
    logits = [load_by_weight(f, torch.float32, torch.device("cpu"), **settings)(ids).logits for f in (golden, base)]
    assert torch.equal(*logits)
    del weights["transformer.output_layer.weight"]
    torch.save(weights, base / "pytorch_model.bin")
    with pytest.raises(ModelError, match="is missing"):
        load_by_weight(base, torch.float32, torch.device("cpu"), **settings)


def test_asking_in_fewer_bits(golden: Path) -> None:
    exact = load(golden / "adapter_final", model_path=golden)
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        expected = exact.model(input_ids=ids).logits
        for quantize, limit in (("int8", 0.02), ("nf4", 0.2)):
            loaded = load(golden / "adapter_final", model_path=golden, quantize=quantize)
            assert loaded.quantize == quantize
            error = (loaded.model(input_ids=ids).logits - expected).norm() / expected.norm()
            assert 0 < error < limit


def test_the_most_exact_format_that_fits_is_asked() -> None:
    config = ChatGLMConfig(multi_query_attention=True, multi_query_group_num=2, add_qkv_bias=True)
    with torch.device("meta"):
        base = BaseShape.of(ChatGLMForConditionalGeneration(config), torch.bfloat16)
    formats = {gib: fitting_format(base, int((gib - 0.6) * 2**30)) for gib in (4, 6, 8, 12, 16, 24)}
    assert formats == {4: "nf4", 6: "nf4", 8: "int8", 12: "int8", 16: "none", 24: "none"}


def test_an_embedding_that_is_the_output_layer_stays(golden: Path, tmp_path: Path) -> None:
    base = shutil.copytree(golden, tmp_path / "base")
    values = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**values, "tie_word_embeddings": True}), encoding="utf-8")
    with pytest.raises(ConfigError, match="output layer shares its embedding"):
        load_by_weight(base, torch.float32, torch.device("cpu"), quantize="none", offloads_embedding=True)


def test_an_output_layer_of_its_own_stays_so(golden: Path, tmp_path: Path) -> None:
    """As in transformers, whatever config.json says of tying."""
    base = shutil.copytree(golden, tmp_path / "base", ignore=shutil.ignore_patterns("adapter_*"))
    values = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**values, "tie_word_embeddings": True}), encoding="utf-8")
    ids = torch.arange(12).reshape(2, 6)
    theirs = ChatGLMForConditionalGeneration.from_pretrained(base, dtype=torch.float32)(ids).logits
    settings = {"quantize": "none", "offloads_embedding": False}
    ours = load_by_weight(base, torch.float32, torch.device("cpu"), **settings)
    assert torch.equal(ours(ids).logits, theirs)
    assert ours.config.dtype == torch.float32


def test_no_more_than_one_weight_at_a_time(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is let go of before the next one is read."""
    family = family_at(golden)
    original, alive, most = family.read_weights, [], 0

    def watched(_: Family, folder: Path) -> Any:
        nonlocal most
        for name, tensor in original(folder):
            copy = tensor.clone()
            alive.append(weakref.ref(copy))
            yield name, copy
            del tensor, copy
            most = max(most, sum(reference() is not None for reference in alive))

    monkeypatch.setattr(type(family), "read_weights", watched)
    load_by_weight(golden, torch.float32, torch.device("cpu"), quantize="int8", offloads_embedding=True)
    assert len(alive) > 10
    assert most == 0


@pytest.mark.parametrize("device_map", ["gpu", "cuda:77", 99])
def test_devices_that_are_not_there(golden: Path, device_map: Any) -> None:
    with pytest.raises(ConfigError, match="there is no such device here"):
        load(golden, device_map=device_map)


@pytest.mark.parametrize("device_map", ["cpu", torch.device("cpu"), {"": "cpu"}])
def test_one_device_in_many_spellings(golden: Path, device_map: Any) -> None:
    assert load(golden, device_map=device_map, quantize="int8").model.device.type == "cpu"


def test_formats_that_there_are_not(golden: Path) -> None:
    with pytest.raises(ConfigError, match="expected none, int8, nf4, fp8; found 'int4'"):
        load(golden, quantize="int4")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs a single device"):
        load(golden, quantize="int8", device_map="auto")
