"""A base of ChatGLM3-6B's true shape with random bf16 weights, in the official folder layout.

Random weights show speed, memory and whether training works at full size; they say nothing of quality.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration

SHARDS = 7  # as many as the official folder has


def chatglm3_6b_config(num_layers: int = 28) -> ChatGLMConfig:
    """The shape of ChatGLM3-6B, or of one with fewer layers."""
    return ChatGLMConfig(
        num_layers=num_layers,
        seq_length=8192,
        multi_query_attention=True,
        multi_query_group_num=2,
        add_qkv_bias=True,
        dtype="bfloat16",
    )


def build_random_base(folder: Path, tokenizer_folder: Path, seed: int = 0, num_layers: int = 28) -> None:
    """Writes config, tokenizer files and seven shards of random weights: norms 1, biases 0, the rest N(0, 0.02).

    Args:
        folder: Where to; about 12.5 GB.
        tokenizer_folder: Where `tokenizer.model` and `tokenizer_config.json` come from.
        seed: Seed of the weights.
        num_layers: Fewer than 28 for a base that is smaller.
    """
    config = chatglm3_6b_config(num_layers)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in ChatGLMForConditionalGeneration(config).state_dict().items()}
    folder.mkdir(parents=True)
    config.architectures = ["ChatGLMModel"]
    config.save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(tokenizer_folder / name, folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    names = list(shapes)
    weight_map = {
        name: f"model-{index * SHARDS // len(names) + 1:05}-of-{SHARDS:05}.safetensors"
        for index, name in enumerate(names)
    }
    for file in sorted(set(weight_map.values())):
        tensors = {}
        for name in (name for name in names if weight_map[name] == file):
            if "layernorm" in name:
                tensors[name] = torch.ones(shapes[name], dtype=torch.bfloat16)
            elif name.endswith("bias"):
                tensors[name] = torch.zeros(shapes[name], dtype=torch.bfloat16)
            else:
                values = torch.randn(shapes[name], generator=generator, device=device, dtype=torch.bfloat16)
                tensors[name] = (0.02 * values).cpu()
        save_file(tensors, folder / file, metadata={"format": "pt"})
    total = 2 * sum(shape.numel() for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    arguments = parser.parse_args()
    build_random_base(arguments.folder, arguments.tokenizer)
