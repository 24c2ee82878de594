"""How long does `glmtune eval` of 500 rows take at ChatGLM3-6B's shape, generation included?

    python benchmarks/evaluate.py DATA.json benchmarks/results/evaluate.csv --tokenizer FOLDER --commit HASH

A base with random bf16 weights and an adapter are written to a folder, then the command is run as a user would run it,
in a process of its own: base and adapter, losses and answers. Random weights hardly ever end an answer themselves, so
nearly every answer has all its tokens: the worst case. The tokenizer is the published one's folder, or else made from
the data (`workload.py`); the latter knows fewer ids than the random model says, which then have no text.

ROUGE and BLEU are part of it where their packages are installed; `--no-text-metrics` goes on without. Whether the
script itself works can be tried on a CPU: `--layers 1 --count 4 --new-tokens 4`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from full_shape import build_random_base, chatglm3_6b_config
from peft import LoraConfig
from rows import append_row
from safetensors.torch import save_file
from workload import make_tokenizer

from glmtune.evaluation.libraries import missing_packages

_RANK = 8


def make_adapter(folder: Path, base: Path, num_layers: int) -> None:
    """An adapter on the query-key-value projections with random weights, as stock PEFT writes it."""
    folder.mkdir()
    config = chatglm3_6b_config(num_layers)
    LoraConfig(
        r=_RANK,
        lora_alpha=32,
        target_modules=["query_key_value"],
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base),
    ).save_pretrained(folder)
    width = config.kv_channels * (config.num_attention_heads + 2 * config.multi_query_group_num)
    torch.manual_seed(0)
    tensors = {}
    for number in range(config.num_layers):
        name = f"base_model.model.transformer.encoder.layers.{number}.self_attention.query_key_value"
        tensors[f"{name}.lora_A.weight"] = 0.02 * torch.randn(_RANK, config.hidden_size)
        tensors[f"{name}.lora_B.weight"] = 0.02 * torch.randn(width, _RANK)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


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
    parser.add_argument("--tokenizer", type=Path, help="a folder with tokenizer.model and tokenizer_config.json")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--layers", type=int, default=28, help="fewer for a base that is no longer full in shape")
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
        tokenizer = arguments.tokenizer
        if tokenizer is None:
            tokenizer = folder / "tokenizer"
            make_tokenizer(arguments.data, tokenizer)
        base, adapter = folder / "base", folder / "adapter"
        build_random_base(base, tokenizer, num_layers=arguments.layers)
        make_adapter(adapter, base, arguments.layers)
        torch.cuda.empty_cache()
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        for repetition in range(arguments.repeat):
            seconds = evaluate(adapter, arguments.data, folder / "results", arguments)
            found = json.loads((folder / "results" / "evaluation.json").read_text(encoding="utf-8"))
            row = {
                "layers": arguments.layers,
                "rows": found["num_rows"]["data"],
                "max_new_tokens": found["max_new_tokens"],
                "answers_ended_percent": [each["metrics"]["data"]["ended"] for each in found["candidates"]],
                "characters_per_answer": [each["metrics"]["data"]["length"] for each in found["candidates"]],
                "has_rouge_and_bleu": not missing,
                "repetition": repetition,
                "command_s": round(seconds, 1),
                "without_starting_s": found["seconds"],
            }
            append_row(arguments.output, row, arguments.commit, gpu=device)


if __name__ == "__main__":
    main()
