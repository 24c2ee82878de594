"""Without these, an adapter could be saved or loaded with some of its weights missing."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from glmtune.adapters.adapter_files import (
    adapter_weights,
    load_adapter_weights,
    read_adapter_config,
    read_initial_weights,
    save_adapter,
)
from glmtune.adapters.lora import attach_lora, initial_adapter_weights
from glmtune.errors import AdapterError


def train_a_little(model: PeftModel) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)


@pytest.mark.parametrize(
    "extra",
    [
        {"init_lora_weights": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"dense": 2}, "alpha_pattern": {"dense": 5}},
        {"init_lora_weights": "olora", "use_dora": True, "modules_to_save": ["output_layer"]},
    ],
)
def test_what_is_saved_applies_to_the_published_base(
    base: nn.Module, input_ids: torch.Tensor, tmp_path: Path, extra: dict[str, Any]
) -> None:
    published = copy.deepcopy(base)
    model = attach_lora(base, {"r": 4, "target_modules": ["query_key_value", "dense"], **extra})
    initial = initial_adapter_weights(model)
    train_a_little(model)
    save_adapter(model, tmp_path, initial)

    with torch.no_grad():
        expected = model.eval()(input_ids=input_ids).logits
        untrained = published(input_ids=input_ids).logits
        stock = PeftModel.from_pretrained(copy.deepcopy(published), str(tmp_path)).eval()
        found = stock(input_ids=input_ids).logits
    assert (expected - untrained).abs().max() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("init", [True, "pissa", "olora"])
def test_saved_weights_fill_the_run_again(base: nn.Module, tmp_path: Path, init: Any) -> None:
    lora = {"r": 4, "target_modules": "all-linear", "init_lora_weights": init}
    model = attach_lora(base, lora)
    initial = initial_adapter_weights(model)
    train_a_little(model)
    trained = adapter_weights(model)
    save_adapter(model, tmp_path, initial)
    train_a_little(model)
    load_adapter_weights(model, tmp_path, initial)
    again = adapter_weights(model)
    assert again.keys() == trained.keys()
    assert all(torch.equal(again[name], trained[name]) for name in trained)
    if initial:
        from_file = read_initial_weights(tmp_path)
        assert from_file.keys() == initial.keys()
        assert all(torch.equal(from_file[name], initial[name]) for name in initial)


def test_no_embeddings_and_no_hub(base: nn.Module, tmp_path: Path) -> None:
    base.name_or_path = "owner/unreachable"
    model = attach_lora(base, {"target_modules": ["dense"]})
    save_adapter(model, tmp_path)
    names = {name.rpartition(".lora_")[2] for name in load_file(tmp_path / "adapter_model.safetensors")}
    assert names == {"A.weight", "B.weight"}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/unreachable"
    assert config["inference_mode"] is True
    assert config["task_type"] == "CAUSAL_LM"


def test_all_weights_that_do_not_fit_are_named(base: nn.Module, tmp_path: Path) -> None:
    model = attach_lora(base, {"r": 4, "target_modules": ["dense"]})
    save_adapter(model, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    first, second, third, _ = sorted(weights)
    weights[first] = torch.zeros(5, 32)
    weights["surplus"] = weights.pop(second)
    weights[third] = torch.zeros(3, 3)
    save_file(weights, file)
    with pytest.raises(AdapterError) as caught:
        load_adapter_weights(model, tmp_path)
    message = str(caught.value)
    assert "4 errors" in message
    assert f"{first}: expected shape [4, 32]; found [5, 32]" in message
    assert f"{second} is missing" in message
    assert "surplus is not part" in message
    assert f"{third}: expected" in message


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damaged_files(base: nn.Module, tmp_path: Path, damage: str) -> None:
    model = attach_lora(base, {"target_modules": ["dense"]})
    save_adapter(model, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        file.unlink()
    with pytest.raises(AdapterError, match=r"cut short|neither"):
        load_adapter_weights(model, tmp_path)


@pytest.mark.parametrize("text", ["{", '{"peft_type": "IA3"}', "[]", ""])
def test_damaged_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        read_adapter_config(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": "8"}, "r: expected a whole number above 0; found '8'"),
        ({"r": 0}, "r: expected a whole number above 0; found 0"),
        ({"lora_alpha": None}, "lora_alpha: expected a number; found None"),
        ({"lora_alpha": float("nan")}, "lora_alpha: expected a number; found nan"),
        ({"lora_dropout": "0.1"}, "lora_dropout: expected a number from 0 to below 1; found '0.1'"),
        ({"target_modules": [1]}, r"target_modules: expected a list of names, or a regular expression; found \[1\]"),
        ({"rank_pattern": {"dense": "4"}}, "rank_pattern: expected whole numbers by the names of layers"),
        ({"use_dora": 1}, "use_dora: expected true or false; found 1"),
        ({"bias": "some"}, "bias: expected none, all or lora_only; found 'some'"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path: expected the folder or hub id of the base; found 3"),
        ({"peft_type": []}, r"peft_type: expected a PEFT method, such as LORA; found \[\]"),
        ({"r": [], "lora_alpha": "x"}, "2 errors"),
    ],
)
def test_values_of_the_wrong_type_are_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "LORA", "target_modules": ["dense"], **values}))
    with pytest.raises(AdapterError, match=rf"{file}(: | is damaged: ){message}"):
        read_adapter_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight.fill_(torch.nan), "holds NaN or infinite numbers"),
        (lambda weight: weight.fill_(torch.inf), "holds NaN or infinite numbers"),
        (lambda weight: weight.int(), "expected floating-point numbers; found int32"),
    ],
    ids=["nan", "infinite", "integers"],
)
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_that_holds_no_proper_numbers_is_not_used(
    base: nn.Module, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], message: str, name: str
) -> None:
    model = attach_lora(base, {"target_modules": ["dense"]})
    weights = adapter_weights(model)
    first = next(iter(weights))
    weights[first] = change(weights[first])
    (save_file if name.endswith("safetensors") else torch.save)(weights, tmp_path / name)
    with pytest.raises(AdapterError, match=f"{name}: {first}:? {message}"):
        load_adapter_weights(model, tmp_path)


def test_a_server_of_another_user_can_read_what_the_umask_lets_it(base: nn.Module, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_adapter(attach_lora(base, {"target_modules": ["dense"]}), tmp_path)
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert modes == {"adapter_config.json": 0o644, "adapter_model.safetensors": 0o644}


def test_old_versions_of_peft_know_every_key(base: nn.Module, tmp_path: Path) -> None:
    """Before 0.14 they refuse unknown ones; the official code runs on 0.6 to 0.10."""
    lora = {"target_modules": ["dense"], "use_rslora": True, "rank_pattern": {"dense": 2}}
    model = attach_lora(base, lora)
    save_adapter(model, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    known_since_the_beginning = {
        "base_model_name_or_path",
        "inference_mode",
        "lora_alpha",
        "lora_dropout",
        "peft_type",
        "r",
        "target_modules",
        "task_type",
    }
    assert written.keys() == known_since_the_beginning | {"use_rslora", "rank_pattern"}
    model.peft_config["default"].inference_mode = True
    assert read_adapter_config(tmp_path) == model.peft_config["default"]


def test_old_bin_files(base: nn.Module, tmp_path: Path) -> None:
    model = attach_lora(base, {"target_modules": ["dense"]})
    train_a_little(model)
    trained = adapter_weights(model)
    torch.save(trained, tmp_path / "adapter_model.bin")
    train_a_little(model)
    load_adapter_weights(model, tmp_path)
    assert all(torch.equal(weight, trained[name]) for name, weight in adapter_weights(model).items())


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, None])
def test_bin_files_of_something_else(base: nn.Module, tmp_path: Path, content: Any) -> None:
    file = tmp_path / "adapter_model.bin"
    torch.save(content, file) if content else file.touch()
    with pytest.raises(AdapterError, match=r"adapter_model\.bin"):
        load_adapter_weights(attach_lora(base, {"target_modules": ["dense"]}), tmp_path)
