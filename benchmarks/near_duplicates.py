"""Which MinHash finds near-duplicates of Chinese questions, and how fast? datasketch beside rensa.

    python benchmarks/near_duplicates.py --data huanhuan.json --commit HASH --results results/near_duplicates.csv

Both get the same characters and bigrams of the same normal forms, 96 hashes, and 24 bands of 4. The questions are those
of the data of 8 characters and more, and each of 500 of them again with each of 20 kinds of small edits. `recall` is
the share of edits of a kind that are found as similar (0.7 and 0.8); `of_similar` the share found of those whose exact
similarity is so.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
from rows import append_row
from small_edits import EDITS

from glmtune.data.duplicates.near import gram_hashes, near_pairs, similarity
from glmtune.data.duplicates.normal_form import normal_form

NUM_HASHES, NUM_BANDS, NUM_ROWS = 96, 24, 4
NUM_EDITED = 500
Pairs = set[tuple[int, int]]


def with_datasketch(texts: Sequence[str], threshold: float) -> Pairs:
    """The library's own LSH, given grams that are hashed already; candidates are compared exactly, as with rensa."""
    from datasketch import MinHash, MinHashLSH

    hashes, offsets = gram_hashes(texts)
    hashes = hashes & numpy.uint64(0xFFFFFFFF)
    index = MinHashLSH(params=(NUM_BANDS, NUM_ROWS), num_perm=NUM_HASHES)
    found: Pairs = set()
    permutations = MinHash(num_perm=NUM_HASHES, seed=42, scheme="affine32").permutations
    for number in range(len(texts)):
        digest = MinHash(num_perm=NUM_HASHES, seed=42, hashfunc=int, permutations=permutations, scheme="affine32")
        digest.update_batch(hashes[int(offsets[number]) : int(offsets[number + 1])].tolist())
        for other in index.query(digest):
            if similarity(texts[other], texts[number]) >= threshold:
                found.add((other, number))
        index.insert(number, digest, check_duplication=False)
    return found


def with_rensa(texts: Sequence[str], threshold: float) -> Pairs:
    """Digests of rensa; bands, buckets and the exact comparison are glmtune's."""
    return set(near_pairs(texts, threshold))


METHODS: dict[str, Callable[[Sequence[str], float], Pairs]] = {"datasketch": with_datasketch, "rensa": with_rensa}


def measure(questions: Sequence[str], method: str, threshold: float) -> list[dict[str, object]]:
    """A row for each kind of edit, and one for all."""
    draw = random.Random(0)
    chosen = draw.sample(range(len(questions)), NUM_EDITED)
    edited = [(kind, index, edit(questions[index], draw)) for kind, edit in EDITS.items() for index in chosen]
    texts = [normal_form(text) for text in (*questions, *(text for _, _, text in edited))]
    began = time.perf_counter()
    pairs = METHODS[method](texts, threshold)
    rate = round(len(texts) / (time.perf_counter() - began))
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    # Texts that are all alike are connected through each other, so the same text counts as found.
    canonical: dict[str, int] = {}
    for number, text in enumerate(texts):
        canonical.setdefault(text, number)
    known = {tuple(sorted((canonical[texts[one]], canonical[texts[other]]))) for one, other in pairs}
    rows: list[dict[str, object]] = []
    total, num_similar, num_found = 0, 0, 0
    for kind in EDITS:
        similar = found = 0
        for number, (name, index, _) in enumerate(edited, start=len(questions)):
            if name == kind:
                is_found = texts[index] == texts[number] or (
                    tuple(sorted((canonical[texts[index]], canonical[texts[number]]))) in known
                )
                found += is_found
                similar += similarity(texts[index], texts[number]) >= threshold
        rows.append({"edit": kind, "recall": found / NUM_EDITED, "of_similar": found / similar if similar else 1.0})
        total, num_similar, num_found = total + NUM_EDITED, num_similar + similar, num_found + found
    rows.append({"edit": "all", "recall": num_found / total, "of_similar": num_found / num_similar})
    shared = {"library": method, "threshold": threshold, "texts": len(texts), "texts_per_s": rate, "peak_mib": peak}
    return [
        {**shared, **row, "recall": f"{row['recall']:.4f}", "of_similar": f"{row['of_similar']:.4f}"} for row in rows
    ]


def main() -> None:
    """Measures and appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="the commit that is measured")
    arguments = parser.parse_args()
    rows = json.loads(arguments.data.read_text(encoding="utf-8"))
    texts = {
        "questions": [row["instruction"] for row in rows if len(row["instruction"]) >= 8],
        "questions and answers": [row["instruction"] + row["output"] for row in rows if len(row["instruction"]) >= 8],
    }
    versions = {name: importlib.metadata.version(name) for name in METHODS}
    for (what, questions), threshold, method in itertools.product(texts.items(), (0.7, 0.8), METHODS):
        process = os.fork()  # so that each has a peak of its own
        if process == 0:
            for row in measure(list(dict.fromkeys(questions)), method, threshold):
                machine = {"cpu_cores": os.cpu_count(), **versions}
                append_row(arguments.results, {"what": what, **row}, arguments.commit, **machine)
            sys.exit()
        os.waitpid(process, 0)


if __name__ == "__main__":
    main()
