"""ROUGE and BLEU as the field's Chinese tools compute them: rouge-chinese on jieba's words, and sacrebleu's `zh`."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import numpy
from numpy.typing import NDArray

from glmtune.evaluation.measures import Measure, mean

HOW_TO_INSTALL = "pip install 'glmtune[eval]'"
_PACKAGES = {"rouge_chinese": "rouge-chinese", "jieba": "jieba", "sacrebleu": "sacrebleu"}
_ROUGES = ("rouge-1", "rouge-2", "rouge-l")
_NUM_ORDERS = 4
_DEEPEST = 20_000  # rouge-chinese walks from word to word of a sentence by recursion


def missing_packages() -> list[str]:
    """The packages for ROUGE and BLEU that are not installed."""
    return [name for module, name in _PACKAGES.items() if find_spec(module) is None]


def rouge(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, Measure]:
    """The mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L, in percent; a row without words on either side has 0.

    Args:
        predictions: The answers.
        labels: The references.
    """
    from rouge_chinese import Rouge

    scores: dict[str, list[float]] = {name: [] for name in _ROUGES}
    with _deep_recursion():
        for prediction, label in zip(predictions, labels, strict=True):
            found = " ".join(_words(prediction)), " ".join(_words(label))
            if all(text.split() for text in found):
                (result,) = Rouge().get_scores(*found)
            else:
                result = {name: {"f": 0.0} for name in _ROUGES}
            for name in _ROUGES:
                scores[name].append(100 * result[name]["f"])
    return {name: mean(values) for name, values in scores.items()}


def _words(text: str) -> list[str]:
    import jieba

    jieba.setLogLevel(logging.WARNING)  # it says on standard error where its dictionary lies
    return list(jieba.cut(text))


@contextmanager
def _deep_recursion() -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, _DEEPEST))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def bleu(predictions: Sequence[str], labels: Sequence[str]) -> Measure:
    """BLEU-4 of all rows together, from 0 to 100: sacrebleu's corpus BLEU with its Chinese tokenizer.

    Args:
        predictions: The answers.
        labels: The references.
    """
    scorer = _bleu_scorer()
    rows = [scorer.sentence_score(prediction, [label]) for prediction, label in zip(predictions, labels, strict=True)]
    statistics = [[*row.counts, *row.totals, row.sys_len, row.ref_len] for row in rows]
    return Measure(numpy.asarray(statistics, dtype=numpy.float64), partial(_corpus_bleu, scorer))


@cache
def _bleu_scorer() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize="zh", effective_order=True)  # of no effect on the counts, it only silences a warning


def _corpus_bleu(scorer: Any, sums: NDArray[numpy.float64]) -> float:
    counts = [int(number) for number in sums]
    return float(
        scorer.compute_bleu(
            correct=counts[:_NUM_ORDERS],
            total=counts[_NUM_ORDERS : 2 * _NUM_ORDERS],
            sys_len=counts[-2],
            ref_len=counts[-1],
            smooth_method="exp",
        ).score
    )
