"""Without these, adapters whose initialisation changed the base (pissa, olora) would compute something else once
loaded.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import KasaConfig
from transformers import AutoModelForCausalLM, PreTrainedModel

from glmtune.config import embedded_base
from glmtune.errors import AdapterError, ConfigError
from glmtune.loading.runs import load
from glmtune.models.chatglm import register_auto_classes

IDS = torch.tensor([[3, 5, 100, 200, 300, 17, 9, 12]])

Train = Callable[..., PeftModel]


def stock_base(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    register_auto_classes()
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(embedded_base(), dtype=dtype)
    return model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=IDS).logits.float()
    return found


@pytest.fixture
def train() -> Train:
    """Three steps of stock PEFT on the built-in base."""

    def train(dtype: torch.dtype = torch.float32, **settings: Any) -> PeftModel:
        torch.manual_seed(0)
        lora = {"r": 4, "lora_alpha": 8, "target_modules": ["query_key_value"], "task_type": "CAUSAL_LM", **settings}
        model = get_peft_model(stock_base(dtype), LoraConfig(**lora))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(3):
            model(input_ids=IDS, labels=IDS).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    return train


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "pissa", "use_dora": True},
        {"init_lora_weights": "olora", "use_rslora": True},
        {"kasa_config": KasaConfig()},
        {"init_lora_weights": "mica"},
    ],
    ids=["pissa", "olora", "pissa with dora", "olora with rslora", "kasa", "mica"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_computes_what_stock_peft_computes(
    train: Train, tmp_path: Path, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    trained = train(dtype, **settings)
    trained.save_pretrained(str(tmp_path))
    expected = logits(PeftModel.from_pretrained(stock_base(dtype), str(tmp_path)))
    name: Any = str(dtype).removeprefix("torch.")
    found = logits(load(tmp_path, dtype=name, device_map="cpu").model)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    if dtype == torch.float32:
        torch.testing.assert_close(found, logits(trained), atol=1e-4, rtol=0)
    assert (found - logits(stock_base(dtype))).abs().max() > 0.1


def test_a_random_decomposition_can_be_loaded_once_saved_as_plain_lora(train: Train, tmp_path: Path) -> None:
    """As the refusal advises."""
    model = train(init_lora_weights="pissa_niter_4")
    expected = logits(model)
    model.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(AdapterError, match=r"by a random decomposition.*path_initial_model_for_weight_conversion"):
        load(tmp_path / "adapter")
    torch.manual_seed(0)
    lora = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["query_key_value"],
        task_type="CAUSAL_LM",
        init_lora_weights="pissa_niter_4",
    )
    get_peft_model(stock_base(), lora).save_pretrained(str(tmp_path / "initial"))
    model.save_pretrained(str(tmp_path / "plain"), path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    torch.testing.assert_close(logits(load(tmp_path / "plain").model), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("init", ["corda", "lora_ga", "loftq", "of next year"])
def test_what_stock_peft_cannot_bring_back_is_refused(train: Train, tmp_path: Path, init: str) -> None:
    train().save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": init}))
    with pytest.raises(AdapterError, match=f"{file}: init_lora_weights='{init}'.*(merge it|newer PEFT)"):
        load(tmp_path)


@pytest.mark.parametrize("settings", [{"init_lora_weights": "pissa"}, {"kasa_config": KasaConfig()}])
def test_a_quantised_base_cannot_be_changed_so_it_is_refused(
    train: Train, tmp_path: Path, settings: dict[str, Any]
) -> None:
    train(**settings).save_pretrained(str(tmp_path))
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} cannot be used with model.quantize=nf4"):
        load(tmp_path, quantize="nf4")
