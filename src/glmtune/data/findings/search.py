"""Looks for everything that is worth a look in valid data."""

from array import array
from collections.abc import Sequence
from typing import Any

import numpy
from numpy.typing import NDArray

from glmtune.data.compact import MadeList
from glmtune.data.duplicates.normal_form import bare_form, normal_form
from glmtune.data.duplicates.scripts import script_of
from glmtune.data.findings.finding import Finding
from glmtune.data.findings.leaks import leaked_rows
from glmtune.data.findings.sets import LEAST_LETTERS, alike_part, outliers, same_rows
from glmtune.data.findings.texts import CHECKS, Dialogue
from glmtune.data.formats import Conversations
from glmtune.data.rows import Source
from glmtune.data.stats import DataStats
from glmtune.errors import show_text
from glmtune.language.plurals import count
from glmtune.prompts import Conversation

_SCRIPTS = {"simplified": 1, "traditional": 2}
_FEW = 0.2  # a share of rows that are the exception
_LEAST_LEARNT = 0.05
_MOST_SHOWN = 40


def find(conversations: Conversations) -> list[Finding]:
    """Looks at the texts of conversations, one by one and together.

    Args:
        conversations: Valid conversations.

    Returns:
        The findings, with the rows of each; none for clean data.
    """
    sources = conversations.sources
    rows: dict[str, array[int]] = {check.name: array("q") for check in CHECKS}
    glances = numpy.zeros(len(conversations), _GLANCE)
    for index, item in enumerate(conversations.items):
        dialogue = Dialogue(item)
        for check in CHECKS:
            if check.is_found(dialogue):
                rows[check.name].append(index)
        glances[index] = _glance(dialogue)
    return [
        *_same_questions(conversations, glances),
        *(
            Finding(
                check.name,
                f"{check.message}: {count(len(rows[check.name]), 'rows')}",
                check.mend,
                _places(sources, rows[check.name]),
            )
            for check in CHECKS
            if rows[check.name]
        ),
        *_other_script(conversations, glances["script"]),
        *_alike(conversations, glances),
        *_lengths(conversations, glances["length"]),
    ]


# What is kept of each row to compare it with the others: hashes, instead of a million texts.
_GLANCE = numpy.dtype(
    [
        ("question", numpy.int64),
        ("whole", numpy.int64),
        ("script", numpy.int8),
        ("length", numpy.int64),
        ("opening", numpy.int64),
        ("ending", numpy.int64),
    ]
)


def _glance(dialogue: Dialogue) -> tuple[int, ...]:
    answer = _last_answer(dialogue)
    question = question_key(dialogue.conversation)
    # The brackets of JSON and code are meant to be alike.
    is_text = answer.lstrip()[:1] not in ("{", "[", "`", "<")
    return (
        hash(question),
        hash((question, normal_form(answer), len(dialogue.answers))),
        _SCRIPTS.get(script_of(answer), 0),
        len(answer),
        hash(answer[:LEAST_LETTERS]) if is_text else 0,
        hash(answer[-LEAST_LETTERS:]) if is_text else 0,
    )


def _last_answer(dialogue: Dialogue) -> str:
    return dialogue.answers[-1] if dialogue.answers else ""


class _Places(MadeList[tuple[Source, ...]]):
    """Rows that belong together, by their indices."""

    def __init__(self, sources: Sequence[Source], groups: Sequence[Sequence[int]]) -> None:
        self._sources, self._groups = sources, groups

    def __len__(self) -> int:
        return len(self._groups)

    def make(self, index: int) -> tuple[Source, ...]:
        """The rows of a group."""
        return tuple(self._sources[int(row)] for row in self._groups[index])


def _places(sources: Sequence[Source], rows: Sequence[int] | NDArray[numpy.int64]) -> _Places:
    """Each row by itself."""
    groups: Any = numpy.asarray(rows, numpy.int64).reshape(-1, 1)
    return _Places(sources, groups)


def find_leaks(training: Conversations, evaluation: Conversations) -> list[Finding]:
    """Looks for evaluation rows that stand in training, word by word or nearly so."""
    pairs = leaked_rows(training.items, evaluation.items)
    if not pairs:
        return []
    return [
        Finding(
            "leak",
            f"{len(pairs):,} of {count(len(evaluation), 'rows')} for evaluation stand in training, too",
            "Remove them from one of the two: what the model does with what it was trained on says little",
            [(evaluation.sources[row], training.sources[other]) for row, other in pairs],
        )
    ]


def find_in_tokens(stats: DataStats, max_length: int | None) -> list[Finding]:
    """What tokenising shows: how much is cut off, and how little may be left to learn."""
    found = []
    if stats.num_cut_samples:
        cut = stats.num_cut_tokens
        found.append(
            Finding(
                "cut",
                f"{stats.num_cut_samples:,} of {count(stats.num_samples, 'samples')} are longer than {max_length} "
                f"tokens: {count(cut, 'tokens')} ({100 * cut / (stats.num_tokens + cut):.1f} %) and "
                f"{count(stats.num_dropped_messages, 'messages')} are cut off",
                "Raise data.max_length if memory allows, or leave them out with data.overlong=drop",
            )
        )
    share = stats.num_supervised_tokens / max(stats.num_tokens, 1)
    if share < _LEAST_LEARNT:
        found.append(
            Finding(
                "little_learnt",
                f"only {100 * share:.1f} % of the tokens are learnt",
                "Most of the time goes into prompts: shorten them, or see with glmtune data show whether the answers "
                "are where they should be",
            )
        )
    return found


def question_key(item: Conversation) -> str:
    """What a conversation asks last, in its bare form, with all that was said before."""
    messages = item.messages
    last = max((index for index, each in enumerate(messages) if each.role in ("user", "observation")), default=0)
    before = [f"{each.role}:{normal_form(each.text())}" for each in messages[:last] if each.content]
    return "\n".join([*before, bare_form(messages[last].content)])


def _same_questions(conversations: Conversations, glances: NDArray[Any]) -> list[Finding]:
    """Rows that ask the same: with different answers, or over and over."""
    differing, repeated = [], []
    sources, whole = conversations.sources, glances["whole"]
    for group in same_rows(glances["question"]):
        distinct = {int(whole[row]): row for row in reversed(group)}
        if len(distinct) > 1:
            differing.append(tuple(sorted(distinct.values())))
        if len(distinct) < len(group):
            first = set(distinct.values())
            # The same row again, by the weight of its file, is meant.
            known = {sources[row] for row in first}
            repeated += [row for row in group if row not in first and sources[row] not in known]
    findings = []
    if differing:
        number = sum(map(len, differing))
        findings.append(
            Finding(
                "conflicting_answers",
                f"asked more than once: {count(len(differing), 'questions')}, with {number:,} different answers",
                "Keep one answer of each, or add to the questions what makes the difference; meant as variety, they "
                "may stay",
                _Places(sources, sorted(differing)),
            )
        )
    if repeated:
        findings.append(
            Finding(
                "repeated_rows",
                f"the same as an earlier one: {count(len(repeated), 'rows')}",
                "Remove them with glmtune data dedupe, unless they are meant to count more",
                _places(sources, sorted(repeated)),
            )
        )
    return findings


def _other_script(conversations: Conversations, scripts: NDArray[numpy.int8]) -> list[Finding]:
    """Rows in traditional characters among rows in simplified ones, or the other way round."""
    counts = [int((scripts == script).sum()) for script in (1, 2)]
    fewer = 2 if counts[1] < counts[0] else 1
    number = counts[fewer - 1]
    if not 0 < number < _FEW * sum(counts):
        return []
    name, other = ("traditional", "simplified") if fewer == 2 else ("simplified", "traditional")
    return [
        Finding(
            "other_script",
            f"answers in {name} characters: {count(number, 'rows')}, in {other} ones: {max(counts):,}",
            "Convert them to one script, such as with OpenCC, unless both are wanted",
            _places(conversations.sources, numpy.flatnonzero(scripts == fewer)),
        )
    ]


def _alike(conversations: Conversations, glances: NDArray[Any]) -> list[Finding]:
    def answer_of(row: int) -> str:
        return _last_answer(Dialogue(conversations.items[row]))

    findings = []
    number = len(conversations)
    for name, column, take in (
        ("alike_openings", "opening", lambda text, length: text[:length]),
        ("alike_endings", "ending", lambda text, length: text[-length:]),
    ):
        text, rows = alike_part(glances[column], glances["length"], answer_of, take)
        if rows:
            where = "start" if name == "alike_openings" else "end"
            shown = show_text(text.replace("\n", "⏎"), _MOST_SHOWN)
            findings.append(
                Finding(
                    name,
                    f"{len(rows):,} of {count(number, 'rows')} ({100 * len(rows) / number:.0f} %) have "
                    f'answers that {where} with "{shown}"',
                    "If that is not how the model is to talk, cut it off: it will be learnt before anything else",
                    _places(conversations.sources, rows),
                )
            )
    return findings


def _lengths(conversations: Conversations, lengths: NDArray[numpy.int64]) -> list[Finding]:
    rows = outliers(lengths)
    if not rows:
        return []
    rows.sort(key=lambda row: -int(lengths[row]))
    return [
        Finding(
            "outlier_lengths",
            f"far longer than all others: the answers of {count(len(rows), 'rows')}, up to "
            f"{int(lengths[rows[0]]):,} characters",
            "See whether several rows were joined into one, or a whole page was pasted",
            _places(conversations.sources, rows),
        )
    ]
