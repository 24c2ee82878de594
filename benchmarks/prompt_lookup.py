"""What would speculation from the prompt gain for one greedy stream? Drafts are looked up, none is computed.

    python benchmarks/prompt_lookup.py --data huanhuan.json --tokenizer chatglm3-6b --commit HASH \
        --results benchmarks/results/prompt_lookup.csv

The reference answers stand for the greedy replies. Before each step, the last three tokens, or else the last two, are
looked up in prompt and reply so far; what followed them last time is the draft. A step confirms as much of it as is
right and gives one more token. Steps cost what `decode.csv` says of one row, and of eight where there is a draft.
"""

import argparse
import csv
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
from rows import append_row
from workload import load_samples

from glmtune.models.chatglm import ChatGLMTokenizer
from glmtune.prompts import IGNORED_LABEL

DECODE = Path(__file__).with_name("results") / "decode.csv"


class Counts(NamedTuple):
    """Of one reply or several.

    Attributes:
        tokens: Tokens of the replies.
        found: Tokens before which something was found to draft.
        first_right: Those of which the first drafted token was right.
        plain_steps: Steps without a draft.
        drafted_steps: Steps that check a draft.
    """

    tokens: int
    found: int
    first_right: int
    plain_steps: int
    drafted_steps: int


def draft(before: Sequence[int], sizes: Sequence[int], most: int) -> Sequence[int]:
    """What followed the last tokens when they last occurred; the first of some sizes that is found."""
    for size in sizes:
        for start in range(len(before) - size - 1, -1, -1):
            if before[start : start + size] == before[len(before) - size :]:
                return before[start + size : start + size + most]
    return []


def replay(prompt: list[int], reply: list[int], sizes: Sequence[int], most: int) -> Counts:
    """Generates a reply; its first token comes with the prompt's pass."""
    sequence = prompt + reply
    drafts = [draft(sequence[:end], sizes, most) for end in range(len(prompt) + 1, len(sequence))]
    found = sum(bool(each) for each in drafts)
    right = [0] * len(drafts)
    for number, each in enumerate(drafts):
        following = reply[number + 1 :]
        while right[number] < min(len(each), len(following)) and each[right[number]] == following[right[number]]:
            right[number] += 1
    place = plain = drafted = 0
    while place < len(drafts):
        plain, drafted = plain + (not drafts[place]), drafted + bool(drafts[place])
        place += 1 + right[place]
    return Counts(len(reply), found, sum(count > 0 for count in right), plain, drafted)


def step_ms() -> tuple[float, float]:
    """Milliseconds of a step of one row and of eight, as last measured."""
    with DECODE.open(newline="", encoding="utf-8") as stream:
        steps = {
            row["streams"]: row["step_ms_median"]
            for row in csv.DictReader(stream)
            if (row["case"], row["context"]) == ("engine", "64 to 320")
        }
    return float(steps["1"]), float(steps["8"])


def replies(data: Path, tokenizer: Path) -> Iterator[tuple[list[int], list[int]]]:
    """Prompts and answers as ids, the token that ends an answer included."""
    with tempfile.TemporaryDirectory() as cache:
        datasets.config.HF_DATASETS_CACHE = Path(cache)
        for sample in load_samples(data, ChatGLMTokenizer.from_pretrained(tokenizer)):
            ids, labels = sample["input_ids"], sample["labels"]
            start = next(place for place, label in enumerate(labels) if label != IGNORED_LABEL)
            yield ids[:start], ids[start:]


def main() -> None:
    """Counts and appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with the published tokenizer")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="the commit that is measured")
    arguments = parser.parse_args()
    pairs = list(replies(arguments.data, arguments.tokenizer))
    one_row, eight_rows = step_ms()
    for sizes, most in (((3, 2), 4), ((3, 2), 7), ((3,), 7), ((3, 2, 1), 7)):
        counts = Counts(*map(sum, zip(*(replay(*pair, sizes, most) for pair in pairs), strict=True)))
        decoded = counts.tokens - len(pairs)
        speculative_ms = counts.plain_steps * one_row + counts.drafted_steps * eight_rows
        row = {
            "n_grams": " then ".join(map(str, sizes)),
            "most_drafted": most,
            "replies": len(pairs),
            "tokens": counts.tokens,
            "found_percent": round(100 * counts.found / decoded, 2),
            "first_right_percent": round(100 * counts.first_right / decoded, 2),
            "tokens_per_step": round(decoded / (counts.plain_steps + counts.drafted_steps), 4),
            "step_ms_one_row": one_row,
            "step_ms_eight_rows": eight_rows,
            "speedup": round(decoded * one_row / speculative_ms, 4),
        }
        append_row(arguments.results, row, arguments.commit)


if __name__ == "__main__":
    main()
