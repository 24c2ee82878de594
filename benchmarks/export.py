"""Time and peak memory of exporting a base of ChatGLM3-6B's shape to GGUF.

    python benchmarks/export.py FOLDER TOKENIZER_FOLDER [--layers N] [--types f16 q8_0] [--csv results/export.csv]

FOLDER is filled with random bf16 weights if it does not exist (see full_shape.py); the files are deleted again.
Each export runs in a process of its own, and `seconds` includes writing the file through to the disk. Linux only:
the figures of memory are from /proc/self/status. `peak_rss_gb` (VmHWM, which the kernel keeps) is what was resident
at the most: the process's own memory, the libraries, and the pages of the weight that is mapped at that moment,
which the system can drop at any time. `peak_anonymous_gb` (RssAnon, sampled every 20 ms) is the process's own
memory alone.
"""

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

CHILD = """
import json, resource, sys, threading, time
def memory(name):
    lines = open("/proc/self/status").read().split("\\n")
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) * 1024
from glmtune.export.gguf_export import export_gguf
peak, is_done = 0, threading.Event()
def watch():
    global peak
    while not is_done.wait(0.02):
        peak = max(peak, memory("RssAnon"))
start_rss = memory("VmRSS")
used = resource.getrusage(resource.RUSAGE_SELF)
thread = threading.Thread(target=watch); thread.start()
start = time.perf_counter()
result = export_gguf(sys.argv[1], sys.argv[2], weight_type=sys.argv[3])
seconds = time.perf_counter() - start
is_done.set(); thread.join()
now = resource.getrusage(resource.RUSAGE_SELF)
cpu_seconds = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
print(json.dumps({"seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1),
    "file_gb": round(result.num_bytes / 1e9, 2), "tensors": result.num_tensors,
    "start_rss_gb": round(start_rss / 1e9, 2), "peak_rss_gb": round(memory("VmHWM") / 1e9, 2),
    "peak_anonymous_gb": round(peak / 1e9, 2)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tokenizer_folder", type=Path)
    parser.add_argument("--layers", type=int, default=28, help="fewer than 28 for a base that is smaller")
    parser.add_argument("--types", nargs="+", default=["f16", "q8_0"])
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    if not options.folder.is_dir():
        from full_shape import build_random_base

        build_random_base(options.folder, options.tokenizer_folder, num_layers=options.layers)
    rows = []
    for weight_type in options.types:
        target = options.folder.with_name(f"{options.folder.name}-{weight_type}.gguf")
        target.unlink(missing_ok=True)
        command = [sys.executable, "-c", CHILD, options.folder, target, weight_type]
        run = subprocess.run(command, capture_output=True, text=True)
        target.unlink(missing_ok=True)
        if run.returncode:
            sys.exit(run.stderr)
        found = json.loads(run.stdout.splitlines()[-1])
        rows.append({"type": weight_type, "layers": options.layers, **found, **_place()})
        print(rows[-1], flush=True)
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def _place() -> dict[str, str]:
    """Where and with what this was measured."""
    import torch

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
