"""A run on the embedded base, and what its own chat answers: what other programs are compared with."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from glmtune.config import embedded_base

os.environ.setdefault("HF_HUB_OFFLINE", "1")

QUESTIONS = ("你好", "你是谁？", "请用一句话介绍你自己。", "今天天气怎么样？", "Hello!", "  1 + 1 = ?\n")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base, in a folder of its own."""
    return Path(shutil.copytree(embedded_base(), tmp_path_factory.mktemp("base") / "tiny"))


@pytest.fixture(scope="session")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of stock PEFT with two ranks and scales, that changes the replies but not into noise."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=["query_key_value", "dense_4h_to_h"],
        task_type="CAUSAL_LM",
        use_rslora=True,
        rank_pattern={"dense_4h_to_h": 4},
    )
    peft_model = get_peft_model(model, config)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.02 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("adapter")
    peft_model.save_pretrained(folder)
    return folder
