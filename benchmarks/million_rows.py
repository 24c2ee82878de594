"""A million rows: how long do reading, checking, tokenising and finding near-duplicates take, and in how much memory?

    python benchmarks/million_rows.py --rows 1000000 --tokenizer chatglm3-6b --commit HASH --results results/rows.csv

Rows are made from templates (`templates.py`): questions of 9 to 59 characters, answers of 13 to 270. Each step runs in
a process of its own, reading included. `peak_mib` is the most memory that the process and its workers had together,
looked at each second, what they share counted once (PSS). `datasets alone` reads the same file with
`datasets.load_dataset`. CPU seconds are of the process and its workers, for machines that others use, too; `load` is
that of the machine before the step.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import datasets
from rows import append_row
from templates import write_rows


def read(file: Path, tokenizer: str) -> None:
    from glmtune.data.formats import read_conversations

    read_conversations(file)


def check(file: Path, tokenizer: str) -> None:
    from glmtune.data.checking import examine

    examine(file)


def tokenize(file: Path, tokenizer: str) -> None:
    from glmtune.data.checking import examine
    from glmtune.loading.bases import load_tokenizer

    examine(file, tokenizer=load_tokenizer(tokenizer), max_length=512)


def near_duplicates(file: Path, tokenizer: str) -> None:
    from glmtune.data.formats import read_examples
    from glmtune.data.selection.dedupe import find_duplicates

    find_duplicates(read_examples(file)[0])


def with_datasets(file: Path, tokenizer: str) -> None:
    datasets.load_dataset("json", data_files=str(file), split="train")


STEPS = {
    "datasets alone": with_datasets,
    "reading": read,
    "reading and checking": check,
    "reading, checking and tokenising": tokenize,
    "reading and near-duplicates": near_duplicates,
}


def measure(command: list[str]) -> dict[str, object]:
    """Seconds and memory of a command.

    Raises:
        RuntimeError: It failed.
    """
    load = os.getloadavg()[0]
    began = time.perf_counter()
    process = subprocess.Popen(command).pid
    peak = 0
    while (ended := os.wait4(process, os.WNOHANG))[0] == 0:
        peak = max(peak, sum(map(memory_kib, tree(process))))
        time.sleep(1)
    _, status, usage = ended
    if status:
        raise RuntimeError(f"failed: {command}")
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),  # of the workers that it has waited for, too
        "peak_mib": round(peak / 1024),
        "load": round(load, 1),
    }


def tree(process: int) -> list[int]:
    """The process and all below it."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()
    except OSError:  # it has ended
        return []
    return [process, *(each for child in children for each in tree(int(child)))]


def memory_kib(process: int) -> int:
    """The memory of a process; its share of what it shares with others."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def main() -> None:
    """Measures and appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tokenizer", required=True, help="a base folder")
    parser.add_argument("--steps", nargs="*", default=list(STEPS), help="some of the steps; all of them unless given")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--commit", help="the commit that is measured")
    parser.add_argument("--file", type=Path, help="rows for one step: how this script calls itself")
    arguments = parser.parse_args()
    if arguments.file is not None:
        datasets.disable_progress_bars()
        STEPS[arguments.steps[0]](arguments.file, arguments.tokenizer)
        return
    if arguments.results is None or arguments.commit is None:
        parser.error("--results and --commit are needed")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        write_rows(file, arguments.rows)
        os.environ["HF_DATASETS_CACHE"] = str(Path(folder) / "cache")
        for name in arguments.steps:
            own = [sys.executable, __file__, "--tokenizer", arguments.tokenizer, "--file", str(file), "--steps", name]
            row = {"what": name, "rows": arguments.rows, **measure(own)}
            machine = {"cpu_cores": os.cpu_count(), "datasets": datasets.__version__}
            append_row(arguments.results, row, arguments.commit, **machine)


if __name__ == "__main__":
    main()
