import json
import shutil
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from glmtune.errors import AdapterError, ModelError
from glmtune.tuning import load as load_module
from glmtune.tuning.load import load, load_base, resolve_dtype
from glmtune.tuning.run_folder import RunManifest


def test_adapter_of_stock_peft(golden: Path) -> None:
    loaded = load(golden / "adapter_final", model_path=golden, device_map="cpu")
    expected = load_file(golden / "expected.safetensors")
    with torch.no_grad():
        logits = loaded.model(input_ids=expected["lora.input_ids"]).logits[:, :24]
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
    with pytest.raises(AdapterError, match=f"looked for in {base}.*--model"):
        load(run)
    assert isinstance(load(run, model_path=tmp_path / "moved").model, PeftModel)


def test_a_merged_folder_remembers_its_run(golden: Path, tmp_path: Path) -> None:
    merged = shutil.copytree(golden, tmp_path / "merged", ignore=shutil.ignore_patterns("adapter_*"))
    RunManifest(None, "tutorial", "你是甄嬛").write(merged)
    loaded = load(merged)
    assert (loaded.template, loaded.system, loaded.adapter_path) == ("tutorial", "你是甄嬛", None)


def test_base_that_is_on_no_hub(golden: Path) -> None:
    with pytest.raises(AdapterError, match=r"its base model golden/chatglm\d: no such folder here.*(.|\n)*--model"):
        load(golden / "adapter_final")


def test_adapter_for_another_base(shared: Path) -> None:
    golden = shared / "golden"
    with pytest.raises(AdapterError) as caught:
        load(golden / "chatglm3-tiny" / "adapter_final", model_path=golden / "chatglm2-tiny")
    message = str(caught.value)
    assert "4 faults" in message
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


def test_modules_trained_along_take_the_type_of_the_base(shared: Path, tmp_path: Path) -> None:
    from glmtune.tuning.adapter_files import save_adapter
    from glmtune.tuning.lora import attach_lora

    golden = shared / "golden" / "chatglm3-tiny"
    model, _ = load_base(golden)
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

    monkeypatch.setattr(load_module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(load_module, "urlopen", fail)
    with pytest.raises(ModelError, match=r"no such folder here, and not to be had from the hub: .*no network"):
        load("owner/no-such-model")
    assert len(tried) == 1


def test_layers_of_the_adapter_that_the_base_does_not_have(golden: Path, tmp_path: Path) -> None:
    run = shutil.copytree(golden / "adapter_final", tmp_path / "run")
    file = run / "adapter_config.json"
    config = json.loads(file.read_text())
    for change, message in (({"layers_to_transform": [99]}, "no layer 99"), ({"modules_to_save": 5}, "list of names")):
        file.write_text(json.dumps(config | change))
        with pytest.raises(AdapterError, match=message):
            load(run, model_path=golden)
