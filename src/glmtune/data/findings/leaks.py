"""Evaluation rows that stand in training."""

import math
from collections import Counter
from collections.abc import Sequence

from glmtune.data.duplicates.near import grams, near_pairs, similarity
from glmtune.data.duplicates.normal_form import bare_form, normal_form
from glmtune.prompts import Conversation

_LEAST_SIMILAR = 0.7
_LEAST_ALIKE_ANSWERS = 0.5
_MOST_COUNTED = 20_000  # texts from which is learnt how common a gram is


def leaked_rows(training: Sequence[Conversation], evaluation: Sequence[Conversation]) -> list[tuple[int, int]]:
    """Finds evaluation rows that training has, too.

    A row is in training if a row there asks the same (`bare_form`), or nearly the same and has a similar answer. What
    many questions have in common, such as the instruction of a template, counts little for whether two are similar.

    Args:
        training: The training rows.
        evaluation: The evaluation rows.

    Returns:
        For each such row, its index and that of a training row, in order.
    """
    known: dict[str, int] = {}
    for index, item in enumerate(training):
        known.setdefault(bare_form(_question(item)), index)
    found: dict[int, int] = {}
    for index, item in enumerate(evaluation):
        other = known.get(bare_form(_question(item)))
        if other is not None:
            found[index] = other
    del known
    found |= _nearly(training, evaluation, found)
    return sorted(found.items())


def _nearly(
    training: Sequence[Conversation], evaluation: Sequence[Conversation], found: dict[int, int]
) -> dict[int, int]:
    texts = [normal_form(_question(item)) for item in (*training, *evaluation)]
    num_training = len(training)
    weights = _Weights(texts)
    more: dict[int, int] = {}
    for first, second in near_pairs(texts, _LEAST_SIMILAR):
        row = second - num_training
        if first < num_training <= second and row not in found and row not in more:
            answers = [normal_form(_answer(item)) for item in (training[first], evaluation[row])]
            is_similar = weights.similarity(texts[first], texts[second]) >= _LEAST_SIMILAR
            if is_similar and similarity(*answers) >= _LEAST_ALIKE_ANSWERS:
                more[row] = first
    return more


class _Weights:
    """How much a gram says: the fewer texts have it, the more. Counted in some of the texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        some = texts[:: -(-len(texts) // _MOST_COUNTED)]
        self._counts: Counter[str] = Counter()
        for text in some:
            self._counts.update(grams(text))
        self._num_texts = len(some)

    def similarity(self, first: str, second: str) -> float:
        """The Jaccard index with weights."""
        one, other = grams(first), grams(second)
        shared = sum(map(self._weight, one & other))
        return shared / (shared + sum(map(self._weight, one ^ other)))

    def _weight(self, gram: str) -> float:
        return math.log1p(self._num_texts / max(self._counts[gram], 1))


def _question(item: Conversation) -> str:
    return "\n".join([each.content for each in item.messages if each.role == "user"])


def _answer(item: Conversation) -> str:
    return "\n".join([each.content for each in item.messages if each.role == "assistant"])
