"""Metrics of generated answers against their references."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from glmtune.evaluation import libraries
from glmtune.evaluation.measures import Measure, mean

# Of tables and reports, in this order: the name of a metric, what it is called, and how it is written.
METRICS = (
    ("loss", "loss", "{:.4f}"),
    ("perplexity", "perplexity", "{:,.2f}"),
    ("rouge-1", "ROUGE-1", "{:.2f}"),
    ("rouge-2", "ROUGE-2", "{:.2f}"),
    ("rouge-l", "ROUGE-L", "{:.2f}"),
    ("bleu-4", "BLEU-4", "{:.2f}"),
    ("exact_match", "exact match, %", "{:.1f}"),
    ("hits", "reference in the answer, %", "{:.1f}"),
    ("accuracy", "accuracy, %", "{:.1f}"),
    ("ended", "ended by itself, %", "{:.1f}"),
    ("length", "characters per answer", "{:.1f}"),
    ("repetition", "repetition, %", "{:.1f}"),
    ("distinct-1", "distinct-1, %", "{:.1f}"),
    ("distinct-2", "distinct-2, %", "{:.1f}"),
)

# A Chinese character is a unit, and so is a word of letters and digits; of the rest, every sign.
_UNIT = re.compile(r"[a-zA-Z0-9]+|[^\s]")
_REPEATED = 4  # units of the n-grams whose repetition is counted


@dataclass(frozen=True)
class Answer:
    """A generated answer.

    Attributes:
        prompt: What was asked: the last turn before the answer.
        label: The reference.
        predict: The answer.
        has_ended: Whether the model ended it itself, rather than `max_new_tokens`.
        num_tokens: Tokens generated.
    """

    prompt: str
    label: str
    predict: str
    has_ended: bool
    num_tokens: int


def answer_measures(answers: Sequence[Answer]) -> dict[str, Measure]:
    """All metrics of which a paired difference can be drawn; ROUGE and BLEU only where their packages are installed.

    Args:
        answers: At least one.
    """
    predictions = [answer.predict for answer in answers]
    labels = [answer.label for answer in answers]
    measures: dict[str, Measure] = {}
    if not libraries.missing_packages():
        measures |= libraries.rouge(predictions, labels)
        measures["bleu-4"] = libraries.bleu(predictions, labels)
    measures["exact_match"] = mean([100.0 * (answer.predict.strip() == answer.label.strip()) for answer in answers])
    measures["ended"] = mean([100.0 * answer.has_ended for answer in answers])
    measures["length"] = mean([len(answer.predict) for answer in answers])
    measures["repetition"] = mean([100 * repetition(answer.predict) for answer in answers])
    return measures


def diversity(answers: Sequence[Answer]) -> dict[str, float]:
    """Distinct-1 and distinct-2, in percent: how many of the n-grams of all answers together are different ones.

    Source:
        Li et al. (2016), A diversity-promoting objective function for neural conversation models.
    """
    return {f"distinct-{n}": 100 * distinct([answer.predict for answer in answers], n) for n in (1, 2)}


def units(text: str) -> list[str]:
    """The text as Chinese characters, words of Latin letters and digits, and signs."""
    return _UNIT.findall(text)


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of units over all of them; 0 where there are none."""
    ngrams = list(chain.from_iterable(_ngrams(units(text), n) for text in texts))
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def repetition(text: str) -> float:
    """The share of a text's n-grams, of 4 units, that stood in it before.

    Source:
        Welleck et al. (2020), Neural text generation with unlikelihood training (seq-rep-4).
    """
    ngrams = _ngrams(units(text), _REPEATED)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _ngrams(sequence: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(sequence[start : start + n]) for start in range(len(sequence) - n + 1)]
