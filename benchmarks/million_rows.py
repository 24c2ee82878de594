"""A million rows: how long do reading, checking, tokenising and finding near-duplicates take, and in how much memory?

    python benchmarks/million_rows.py --rows 1000000 --tokenizer chatglm3-6b --commit HASH --results results/rows.csv

Rows are made from templates (`templates.py`). Each step runs in a process of its own, after reading; `peak_mib` is that
of the whole process. `datasets alone` reads the same file with `datasets.load_dataset`. CPU seconds are of the process
and its workers, for machines that others use, too.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
from rows import append_row
from templates import write_rows


def read(file: Path) -> object:
    from glmtune.data.formats import read_conversations

    return read_conversations(file)


def check(file: Path) -> object:
    from glmtune.data.checking import examine

    return examine(file)


def tokenize(file: Path, tokenizer: str) -> object:
    from glmtune.data.checking import examine
    from glmtune.loading.bases import load_tokenizer

    return examine(file, tokenizer=load_tokenizer(tokenizer), max_length=512)


def near_duplicates(file: Path) -> object:
    from glmtune.data.formats import read_examples
    from glmtune.data.selection.dedupe import find_duplicates

    return find_duplicates(read_examples(file)[0])


def with_datasets(file: Path) -> object:
    return datasets.load_dataset("json", data_files=str(file), split="train")


def measure(step: Callable[[Path], object], file: Path) -> dict[str, object]:
    """Seconds and memory of a step, in this process."""
    began = time.perf_counter()
    step(file)
    seconds = time.perf_counter() - began
    own, workers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(own.ru_utime + own.ru_stime + workers.ru_utime + workers.ru_stime, 1),
        "peak_mib": round(own.ru_maxrss / 1024),
        "worker_peak_mib": round(workers.ru_maxrss / 1024),
    }


def main() -> None:
    """Measures and appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tokenizer", required=True, help="a base folder")
    parser.add_argument("--steps", nargs="*", help="some of the steps; all of them unless given")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="the commit that is measured")
    arguments = parser.parse_args()
    steps: dict[str, Callable[[Path], object]] = {
        "datasets alone": with_datasets,
        "reading": read,
        "reading and checking": check,
        "reading, checking and tokenising": lambda file: tokenize(file, arguments.tokenizer),
        "reading and near-duplicates": near_duplicates,
    }
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        write_rows(file, arguments.rows)
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        for name in arguments.steps or steps:
            process = os.fork()
            if process == 0:
                row = {"what": name, "rows": arguments.rows, **measure(steps[name], file)}
                machine = {"cpu_cores": os.cpu_count(), "datasets": datasets.__version__}
                append_row(arguments.results, row, arguments.commit, **machine)
                os._exit(0)  # without the clean-up below, which is the parent's
            if os.waitpid(process, 0)[1]:
                raise RuntimeError(f"{name}: the step failed")


if __name__ == "__main__":
    main()
