"""Without these, a misspelt target would train nothing, and adapters in 16 bits lose their gradients."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from glmtune.adapters.lora import attach_lora, count_parameters, initial_adapter_weights, lora_layers
from glmtune.errors import AdapterError

LINEARS = ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"]


@pytest.mark.parametrize(
    ("targets", "num_adapted", "recorded"),
    [
        (["query_key_value"], 2, {"query_key_value"}),
        ("query_key_value", 2, {"query_key_value"}),
        ("all-linear", 8, set(LINEARS)),
        (r".*layers\.1\..*(query_key_value|dense)", 2, r".*layers\.1\..*(query_key_value|dense)"),
        (["layers.0.mlp.dense_h_to_4h", "dense"], 3, {"layers.0.mlp.dense_h_to_4h", "dense"}),
    ],
)
def test_targets(base: nn.Module, targets: Any, num_adapted: int, recorded: Any) -> None:
    model = attach_lora(base, {"r": 2, "target_modules": targets})
    assert len(lora_layers(model)) == num_adapted
    assert not any("output_layer" in name for name in lora_layers(model))
    assert model.peft_config["default"].target_modules == recorded


def test_faults_are_collected(base: nn.Module) -> None:
    lora = {
        "target_modules": ["q_proj", "dense", "v_proj"],
        "modules_to_save": ["lm_head"],
        "layers_to_transform": [1, 2],
        "init_lora_weights": "eva",
        "task_type": "SEQ_CLS",
    }
    with pytest.raises(AdapterError) as caught:
        attach_lora(base, lora)
    message = str(caught.value)
    assert "6 errors" in message
    assert "'q_proj' matches nothing in the model; the linear layers are " + ", ".join(LINEARS) in message
    assert "'v_proj'" in message
    assert "lora.modules_to_save: 'lm_head'" in message
    assert "there is no layer 2; the model has layers 0 to 1" in message
    assert "eva needs data" in message
    assert "expected CAUSAL_LM; found SEQ_CLS" in message


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["mlp"]},
        {"target_modules": ["dense"], "r": 0},
        {"target_modules": "*("},
        {"target_modules": 5},
        {"target_modules": ["dense"], "modules_to_save": 5},
        {"target_modules": ["dense"], "inference_mode": True},
        {"target_modules": ["dense"], "init_lora_weights": "magic"},
    ],
)
def test_settings_that_peft_refuses(base: nn.Module, lora: dict[str, Any]) -> None:
    with pytest.raises(AdapterError):
        attach_lora(base, lora)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_adapters_are_float32(base: nn.Module, dtype: torch.dtype) -> None:
    lora = {"target_modules": ["dense"], "modules_to_save": ["output_layer"], "bias": "lora_only", "use_dora": True}
    model = attach_lora(base.to(dtype), lora)
    trained = {name: each.dtype for name, each in model.named_parameters() if each.requires_grad}
    assert any("modules_to_save" in name for name in trained)
    assert any("lora_magnitude" in name for name in trained)
    assert set(trained.values()) == {torch.float32}
    frozen = {each.dtype for each in model.parameters() if not each.requires_grad}
    assert frozen == {dtype}


def test_layers_to_transform(base: nn.Module) -> None:
    model = attach_lora(base, {"target_modules": ["query_key_value"], "layers_to_transform": [1]})
    assert [".1." in name for name in lora_layers(model)] == [True]


def test_parameters_are_counted(base: nn.Module) -> None:
    total = sum(parameter.numel() for parameter in base.parameters())
    num_adapter = 2 * (2 * 32 + 2 * 32)
    model = attach_lora(base, {"r": 2, "target_modules": ["dense"]})
    assert count_parameters(model) == (num_adapter, total + num_adapter)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_a_split_of_the_base_can_be_repeated_to_the_bit(base: nn.Module, init: str) -> None:
    lora = {"r": 4, "target_modules": ["query_key_value", "dense"], "init_lora_weights": init}
    fresh = copy.deepcopy(base)
    before = attach_lora(base, lora)
    initial = initial_adapter_weights(before)
    assert len(initial) == 8
    torch.manual_seed(99)
    again = attach_lora(fresh, lora, initial)
    for (name, one), (_, other) in zip(before.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert initial_adapter_weights(again).keys() == initial.keys()


def test_plain_lora_has_no_initial_weights(base: nn.Module) -> None:
    assert initial_adapter_weights(attach_lora(base, {"target_modules": ["dense"]})) == {}


@pytest.mark.parametrize("targets", [".*", ".*self_attention", ["self_attention"]])
def test_targets_that_lora_cannot_adapt_are_one_short_error(base: nn.Module, targets: Any) -> None:
    with pytest.raises(AdapterError) as caught:
        attach_lora(base, {"target_modules": targets})
    message = str(caught.value)
    assert "matches modules that LoRA cannot adapt (" in message
    assert "the linear layers are " + ", ".join(LINEARS) in message
    assert "\n" not in message
