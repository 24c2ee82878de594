"""How long does `glmtune generate` take for a file of questions, from the start of the command to its end?

    python benchmarks/full_shape.py BASE --tokenizer FOLDER
    python benchmarks/generate.py BASE QUESTIONS.json --commit NOW
    PYTHONPATH=OTHER/src python benchmarks/generate.py BASE QUESTIONS.json --commit OTHER --count 512

Greedy, up to 128 tokens a reply; random weights hardly ever end one earlier.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from rows import append_row

RESULTS = Path(__file__).parent / "results" / "generate.csv"
NUM_NEW = 128


def seconds_of(base: Path, questions: Path, output: Path) -> float:
    """The wall time of the whole command."""
    command = [sys.executable, "-m", "glmtune.cli", "generate", str(base), "do_sample=false"]
    command += [f"max_new_tokens={NUM_NEW}", "--input", str(questions), "--output", str(output)]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "GLMTUNE_LANG": "en"})
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)
    return time.perf_counter() - begin


def main() -> None:
    """Answers the questions and appends a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("questions", type=Path, help="JSON rows")
    parser.add_argument("--count", type=int, default=None, help="the first so many; all by default")
    parser.add_argument("--output", type=Path, default=RESULTS, help="a CSV file, to which a row is appended")
    parser.add_argument("--commit", required=True)
    arguments = parser.parse_args()
    rows = json.loads(arguments.questions.read_text(encoding="utf-8"))[: arguments.count]
    with tempfile.TemporaryDirectory() as folder:
        questions, output = Path(folder, "questions.json"), Path(folder, "replies.jsonl")
        questions.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        seconds = seconds_of(arguments.base, questions, output)
        num_replies = len(output.read_text(encoding="utf-8").splitlines())
    row = {"questions": num_replies, "max_new_tokens": NUM_NEW, "seconds": round(seconds, 1)}
    row |= {"questions_per_s": round(num_replies / seconds, 2)}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    append_row(arguments.output, row, arguments.commit, gpu=gpu, transformers=transformers.__version__)


if __name__ == "__main__":
    main()
