"""A writable half-precision base, and adapters of several kinds on it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from glmtune.models.chatglm import register_auto_classes


@pytest.fixture(scope="session", autouse=True)
def auto_classes() -> None:
    register_auto_classes()


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny base in float16, as the official folder: two shards of old weights lie beside it, and code files."""
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(tiny_base / name, folder / name)
    config = json.loads((tiny_base / "config.json").read_text(encoding="utf-8")) | {"torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = {name: tensor.half() for name, tensor in load_file(tiny_base / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("configuration_chatglm.py", "modeling_chatglm.py", "MODEL_LICENSE", "README.md", ".gitattributes"):
        (folder / name).write_text(f"# {name}\n", encoding="utf-8")
    for name in ("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"):
        (folder / name).write_bytes(b"old")
    return folder


@pytest.fixture
def make_adapter(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes an adapter of stock PEFT with the given settings and random weights."""

    def make(**settings: Any) -> Path:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        config = LoraConfig(**{"r": 4, "target_modules": ["query_key_value"], "task_type": "CAUSAL_LM"} | settings)
        peft_model = get_peft_model(model, config)
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        peft_model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return make
