"""Looks for everything that is worth a look in valid data."""

from collections.abc import Sequence

import numpy

from glmtune.data.duplicates.normal_form import bare_form, normal_form
from glmtune.data.duplicates.scripts import script_of
from glmtune.data.findings.finding import Finding
from glmtune.data.findings.leaks import leaked_rows
from glmtune.data.findings.sets import alike_part, outliers, same_rows
from glmtune.data.findings.texts import CHECKS, Dialogue
from glmtune.data.formats import Conversations
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
    rows: dict[str, list[int]] = {check.name: [] for check in CHECKS}
    questions: list[int] = []
    whole: list[int] = []
    scripts: list[int] = []
    answers: list[str] = []
    for index, item in enumerate(conversations.items):
        dialogue = Dialogue(item)
        for check in CHECKS:
            if check.is_found(dialogue):
                rows[check.name].append(index)
        answer = dialogue.answers[-1] if dialogue.answers else ""
        answers.append(answer)
        question = question_key(item)
        questions.append(hash(question))
        whole.append(hash((question, normal_form(answer), len(dialogue.answers))))
        scripts.append(_SCRIPTS.get(script_of(answer), 0))
    sources = conversations.sources
    return [
        *_same_questions(conversations, questions, whole),
        *(
            Finding(
                check.name,
                f"{count(len(rows[check.name]), 'rows')}: {check.message}",
                check.mend,
                [(sources[row],) for row in rows[check.name]],
            )
            for check in CHECKS
            if rows[check.name]
        ),
        *_other_script(conversations, scripts),
        *_alike(conversations, answers),
        *_lengths(conversations, answers),
    ]


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


def _same_questions(conversations: Conversations, questions: Sequence[int], whole: Sequence[int]) -> list[Finding]:
    """Rows that ask the same: with different answers, or over and over."""
    differing, repeated = [], []
    sources = conversations.sources
    for group in same_rows(questions):
        distinct = {whole[row]: row for row in reversed(group)}
        if len(distinct) > 1:
            differing.append(tuple(sources[row] for row in sorted(distinct.values())))
        if len(distinct) < len(group):
            first = set(distinct.values())
            repeated += [(sources[row],) for row in group if row not in first]
    findings = []
    if differing:
        number = sum(map(len, differing))
        findings.append(
            Finding(
                "conflicting_answers",
                f"asked more than once: {count(len(differing), 'questions')}, with {number:,} different answers",
                "Keep one answer of each, or add to the questions what makes the difference; meant as variety, they "
                "may stay",
                sorted(differing, key=lambda place: (place[0].path, place[0].row)),
            )
        )
    if repeated:
        findings.append(
            Finding(
                "repeated_rows",
                f"the same as an earlier one: {count(len(repeated), 'rows')}",
                "Remove them with glmtune data dedupe, unless they are meant to count more",
                sorted(repeated, key=lambda place: (place[0].path, place[0].row)),
            )
        )
    return findings


def _other_script(conversations: Conversations, scripts: Sequence[int]) -> list[Finding]:
    """Rows in traditional characters among rows in simplified ones, or the other way round."""
    by_script = numpy.asarray(scripts)
    counts = [int((by_script == script).sum()) for script in (1, 2)]
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
            [(conversations.sources[row],) for row in numpy.flatnonzero(by_script == fewer).tolist()],
        )
    ]


def _alike(conversations: Conversations, answers: Sequence[str]) -> list[Finding]:
    findings = []
    for name, text, rows in (
        ("alike_openings", *alike_part(answers, lambda text, length: text[:length])),
        ("alike_endings", *alike_part(answers, lambda text, length: text[-length:])),
    ):
        if rows:
            where = "start" if name == "alike_openings" else "end"
            shown = show_text(text.replace("\n", "⏎"), _MOST_SHOWN)
            findings.append(
                Finding(
                    name,
                    f"{len(rows):,} of {count(len(answers), 'rows')} ({100 * len(rows) / len(answers):.0f} %) have "
                    f'answers that {where} with "{shown}"',
                    "If that is not how the model is to talk, cut it off: it will be learnt before anything else",
                    [(conversations.sources[row],) for row in rows],
                )
            )
    return findings


def _lengths(conversations: Conversations, answers: Sequence[str]) -> list[Finding]:
    lengths = numpy.fromiter(map(len, answers), numpy.int64, len(answers))
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
            [(conversations.sources[row],) for row in rows],
        )
    ]
