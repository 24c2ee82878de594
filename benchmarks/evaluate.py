"""How long does `glmtune eval` of 500 rows take at ChatGLM3-6B's shape, generation included?

A base with random bf16 weights and an adapter are written to a folder, then the command is run as a user would run it,
in a process of its own: base and adapter, losses and answers. Random weights never end an answer by themselves, so
every answer has all its tokens: the worst case. The tokenizer is made from the data themselves (`workload.py`).

ROUGE and BLEU are part of it where their packages are installed; `--no-text-metrics` says that they may be absent.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from full_shape import chatglm3_6b_config
from peft import LoraConfig, get_peft_model
from rows import append_row
from torch import nn
from workload import make_tokenizer, random_model

from glmtune.evaluation.libraries import missing_packages


def make_base(data: Path, folder: Path) -> Path:
    """A folder in the official layout, of ChatGLM3-6B's shape, with random weights."""
    model = random_model("cuda")
    model.save_pretrained(folder, max_shard_size="5GB")
    make_tokenizer(data, folder)
    (folder / "tokenizer.vocab").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["num_layers"] == chatglm3_6b_config().num_layers
    return folder


def make_adapter(base: Path, folder: Path) -> Path:
    """An adapter with random weights, as stock PEFT writes it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, device_map="cuda")
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=32, target_modules=["query_key_value"]))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder)
    return folder


def evaluate(adapter: Path, data: Path, output: Path, arguments: argparse.Namespace) -> float:
    """Seconds of the whole command, from its start to its end."""
    command = [sys.executable, "-m", "glmtune", "eval", str(adapter), "--data", str(data), "--output", str(output)]
    command += ["--count", str(arguments.count), *([] if arguments.new_tokens is None else _limit(arguments))]
    begin = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - begin


def _limit(arguments: argparse.Namespace) -> list[str]:
    return ["--max-new-tokens", str(arguments.new_tokens)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="rows of instruction, input and output")
    parser.add_argument("output", type=Path, help="a CSV file, to which rows are appended")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--new-tokens", type=int, help="most tokens of an answer; by default the command's own")
    parser.add_argument("--repeat", type=int, default=2, help="the first run compiles kernels")
    parser.add_argument("--no-text-metrics", action="store_true", help="go on without rouge-chinese, jieba, sacrebleu")
    parser.add_argument("--commit", required=True)
    arguments = parser.parse_args()
    missing = missing_packages()
    if missing and not arguments.no_text_metrics:
        parser.error(f"{', '.join(missing)} missing: pip install 'glmtune[eval]', or pass --no-text-metrics")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        base = make_base(arguments.data, folder / "base")
        torch.cuda.empty_cache()
        adapter = make_adapter(base, folder / "adapter")
        torch.cuda.empty_cache()
        for repetition in range(arguments.repeat):
            seconds = evaluate(adapter, arguments.data, folder / "results", arguments)
            found = json.loads((folder / "results" / "evaluation.json").read_text(encoding="utf-8"))
            row = {
                "rows": found["num_rows"]["data"],
                "max_new_tokens": found["max_new_tokens"],
                "answers_ended_percent": [each["metrics"]["data"]["ended"] for each in found["candidates"]],
                "characters_per_answer": [each["metrics"]["data"]["length"] for each in found["candidates"]],
                "has_rouge_and_bleu": not missing,
                "repetition": repetition,
                "command_s": round(seconds, 1),
                "without_starting_s": found["seconds"],
            }
            append_row(arguments.output, row, arguments.commit, gpu=torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
