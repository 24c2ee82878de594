"""Tries rules: a question becomes a task and its object, and the two become a question again.

Each way is taken only if the other leads back, so that what was converted once can be converted for ever.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from glmtune.data.conversion.grammar_en import ENGLISH
from glmtune.data.conversion.grammar_zh import CHINESE
from glmtune.data.conversion.rule import Command, Form, Grammar, Parts

_GRAMMARS = {"zh": CHINESE, "en": ENGLISH}
_PLACE = re.compile(r"\{([a-z]+)\}")
_END = "。．.？?！!：:，,;； \t\n　"
_LONGEST_COMMAND = 240  # characters; what is longer is a text itself
_LONGEST_BARE_COMMAND = 80  # one that points at nothing but names a text
_LONGEST_QUESTION = 200
# Answer the question from the text below: who won?
_ASKED_IN_COMMAND = re.compile(
    r"(?P<head>(?P<command>[^\n：:]{4,80})[：:] *[^\n：:？?]{3,80}[？?]) *\n+(?=\s*\S)(?!\s*\w{1,12}[：:])"
)
_MOST_CUTS = 12
_LONGEST_ON_ONE_LINE = 80


def split_question(question: str) -> Parts | None:
    """A question as an instruction and its input.

    Args:
        question: What a person asks.

    Returns:
        The parts, of which `join_parts` makes a question with the same parts; None if no rule fits.
    """
    found = _split(question)
    if found is None:
        return None
    back = join_parts(found.task, found.object)
    again = _split(back[1]) if back else None
    return found if again and (again.task, again.object) == (found.task, found.object) else None


def join_parts(task: str, object: str) -> tuple[str, str] | None:
    """An instruction and its input as one question.

    Args:
        task: The instruction.
        object: The input; not blank.

    Returns:
        The name of the rule, and the question; `split_question` makes the same parts of it, but for courtesies and the
        sign at the end of the instruction. None if no rule fits.
    """
    # A form may complete the object with a sign at its end; what keeps even that comes first.
    for end in ("", _END):
        for name, question in _joined(task, object):
            parts = _split(question)
            if parts and parts.object.rstrip(end) == object.rstrip(end) and _plain(parts.task) == _plain(task):
                return name, question
    return None


def _plain(task: str) -> str:
    """A task without what makes no difference to it."""
    grammar = _grammar_of(task)
    core = _without_courtesies(grammar, task)[0].rstrip(_END)
    if re.fullmatch(grammar.lone_verbs[0], core, re.IGNORECASE):
        core += grammar.lone_verbs[1]
    return re.sub(r"\s+", " ", core).casefold()


def _grammar_of(text: str) -> Grammar:
    """The language that a text begins in."""
    letter = re.search(r"[A-Za-z\u4e00-\u9fff]", text)
    return _GRAMMARS["zh" if letter and letter[0] >= "\u4e00" else "en"]


def _split(question: str) -> Parts | None:
    by_letter = _grammar_of(question)
    for grammar in (by_letter, *(each for each in _GRAMMARS.values() if each is not by_letter)):
        if parts := _by_command(grammar, question) or _by_form(grammar, question) or _by_quotation(grammar, question):
            return parts
    return None


# Commands: a task, a sign or a new line, a text.


def _by_command(grammar: Grammar, question: str) -> Parts | None:
    if asked := _ASKED_IN_COMMAND.match(question):
        found = _read_command(grammar, asked["command"])
        if found and found[0] == "question about a text":
            about = _as_task(
                grammar, _without_courtesies(grammar, asked["head"])[0], was_polite=False, is_question=True
            )
            return Parts(found[0], about, question[asked.end() :])
    for head, sign, text in _cuts(question):
        if not text.strip() or _leads_to_options(grammar, head):
            continue
        if sign == "." and not _ends_for_sure(grammar, head, text):
            continue
        if found := _read_command(grammar, head):
            return Parts(*found, text)
    return _by_command_below(grammar, question)


def _cuts(question: str) -> Iterator[tuple[str, str, str]]:
    """The places where a task may end: the part before, a colon, a newline or a full stop, and the part after."""
    signs = re.finditer(
        r"(?P<colon>：|:(?!//)(?!(?<=\d:)\d))|(?P<line>\n+)|(?P<stop>[。？！]|[.?!](?=[ \"“'])|[~～](?= ))",
        question[:400],
    )
    for number, sign in enumerate(signs):
        if number == _MOST_CUTS:
            return
        head, text = question[: sign.end()], question[sign.end() :]
        if sign["colon"]:
            # A newline is a sign of its own; the indentation after it belongs to the text.
            text = re.sub(r"^[ \t　]*\n+|^[ \t　]+", "", text)
            yield head, ":", text
        elif sign["line"]:
            yield head, "\n", text
        else:
            yield head, ".", text.lstrip(" ")


def _leads_to_options(grammar: Grammar, head: str) -> bool:
    is_question = head.rstrip()[-1:] in "？?"
    return not is_question and re.search(rf"(?:{grammar.options})$", head.rstrip(_END), re.IGNORECASE) is not None


def _ends_for_sure(grammar: Grammar, head: str, text: str) -> bool:
    """Whether a full stop within a line is where the task ends: the rest is no further sentence of it."""
    return (
        not re.search(r"[：:]", head)
        and re.search(grammar.strong_pointer, head, re.IGNORECASE) is not None
        and re.match(grammar.more_orders, text) is None
        and not text.startswith("\n")
    )


def _by_command_below(grammar: Grammar, question: str) -> Parts | None:
    """A text, and in the last line a task that points at what stands above."""
    text, line, head = question.rstrip().rpartition("\n")
    for upward, downward in grammar.upward.items():
        if line and text.strip() and upward in head:
            found = _read_command(grammar, head.replace(upward, downward, 1))
            if found:
                return Parts(*found, text.rstrip("\n"))
    return None


def _read_command(grammar: Grammar, head: str) -> tuple[str, str] | None:
    """The name of the rule that knows a command, and the instruction that it is."""
    if len(head) > _LONGEST_COMMAND:
        return None
    core, was_polite = _without_courtesies(grammar, head)
    if re.search(grammar.two_tasks, core, re.IGNORECASE):
        return None
    first, *_ = re.split(r"(?<=[。！？?!])|(?<=\n)|(?<=[a-z]\.)(?= )", core, maxsplit=1)
    if re.search(grammar.not_a_task, first, re.IGNORECASE):
        return None
    points = re.search(grammar.pointer, first) is not None
    has_text = re.search(grammar.texts, first) is not None and len(first) <= _LONGEST_BARE_COMMAND
    for rule in grammar.rules:
        for command in rule.commands:
            if _is_command(grammar, command, first, points or has_text):
                return rule.name, _as_task(grammar, core, was_polite)
            if command.about and _is_asked(grammar, command, first):
                return rule.name, _as_task(grammar, core, was_polite, is_question=True)
    if _is_asked(grammar, None, first):
        return "question about a text", _as_task(grammar, core, was_polite, is_question=True)
    return None


def _is_command(grammar: Grammar, command: Command, first: str, points: bool) -> bool:
    if command.bare and re.fullmatch(_filled(command.bare, grammar.places), first.strip(_END), re.IGNORECASE):
        return True
    begins = _command_pattern(grammar.lead, command.verbs, grammar.verb_end).match(first)
    return points and begins is not None and re.search(command.about, first, re.IGNORECASE) is not None


@cache
def _command_pattern(lead: str, verbs: str, end: str) -> re.Pattern[str]:
    return re.compile(rf"{lead}(?:{verbs}){end}", re.IGNORECASE)


def _is_asked(grammar: Grammar, command: Command | None, first: str) -> bool:
    """Whether a sentence asks something about a text that it points at."""
    is_question = re.match(grammar.asking, first, re.IGNORECASE) is not None
    return is_question and (command is None or re.search(command.about, first, re.IGNORECASE) is not None)


def _as_task(grammar: Grammar, core: str, was_polite: bool, *, is_question: bool = False) -> str:
    task = core.strip().rstrip("：:，,；; \n")
    if re.fullmatch(grammar.lone_verbs[0], task.rstrip(_END), re.IGNORECASE):
        task = task.rstrip(_END) + grammar.lone_verbs[1]
    if was_polite and not is_question:
        task = grammar.please + task
    task = _begin(grammar, task)
    if task[-1] in "。．.？?！!":
        return task
    return task + (grammar.question_mark if is_question else grammar.full_stop)


def _begin(grammar: Grammar, sentence: str) -> str:
    return sentence[0].upper() + sentence[1:] if grammar.has_capitals else sentence


def _without_courtesies(grammar: Grammar, text: str) -> tuple[str, bool]:
    """A request without what is said out of politeness, and whether something was."""
    core = text.strip()
    begins = re.match(rf"(?:{grammar.courtesies})*", core, re.IGNORECASE)
    courtesies = begins[0] if begins else ""
    closings = [grammar.closings]
    if re.search(grammar.leave[0], courtesies, re.IGNORECASE):
        closings.append(grammar.leave[1])
    rest = core[len(courtesies) :].rstrip(_END + "~～")
    rest = re.sub(rf"(?:{'|'.join(closings)})+$", "", rest, flags=re.IGNORECASE).rstrip(_END)
    if not rest:
        return core, False
    for typo, meant in grammar.typos.items():
        rest = re.sub(rf"^{typo}", meant, rest, flags=re.IGNORECASE)
    is_question = core[-1] in "？?" and not re.search(grammar.leave[0], courtesies, re.IGNORECASE)
    return rest + (core[-1] if is_question else ""), bool(courtesies)


# A quotation in the middle of a command: Translate "X" into French.


def _by_quotation(grammar: Grammar, question: str) -> Parts | None:
    if "\n" in question or (pointed := grammar.point(question)) is None:
        return None
    head, text = pointed
    if not text.strip() or (found := _read_command(grammar, head)) is None:
        return None
    return Parts(*found, text)


# Forms: an object within the question.


@dataclass(frozen=True)
class _CompiledForm:
    rule: str
    form: Form
    questions: tuple[re.Pattern[str], ...]
    task: re.Pattern[str]
    object: re.Pattern[str]


@cache
def _forms(name: str) -> list[_CompiledForm]:
    """All forms of a language, in the order of its rules."""
    grammar = _GRAMMARS[name]
    return [
        _compile(rule.name, form, {**grammar.places, **form.where}, grammar.quotable)
        for rule in grammar.rules
        for form in rule.forms
    ]


def _compile(rule: str, form: Form, places: Mapping[str, str], quotable: str) -> _CompiledForm:
    is_quoted = re.search(r"[“\"]\{x\}[”\"]", form.asks) is not None
    object_places = {**places, "x": f"{places['x']}|{quotable}"} if is_quoted else places
    can_lack_number = any("{n}?" in question for question in form.reads)
    questions = [*form.reads, *([_as_pattern(form.asks, can_lack_number)] if form.asks else [])]
    return _CompiledForm(
        rule,
        form,
        tuple(re.compile(_filled(question, places), re.IGNORECASE) for question in questions),
        re.compile(_filled(_as_pattern(form.task, can_lack_number), places), re.IGNORECASE),
        re.compile(_filled(_as_pattern(form.object, can_lack_number), object_places), re.IGNORECASE),
    )


def _as_pattern(text: str, can_lack_number: bool) -> str:
    """The regular expression of a text with places; a number may be missing from it."""
    pattern = re.escape(text.rstrip(_END)).replace(r"\{", "{").replace(r"\}", "}")
    return re.sub(r"\{n\}(\\ )?", r"(?:{n}\1)?", pattern) if can_lack_number else pattern


def _filled(pattern: str, places: Mapping[str, str]) -> str:
    """A regular expression with a named group for each place, which holds the same wherever it stands again."""
    seen: set[str] = set()

    def fill(match: re.Match[str]) -> str:
        place = match[1]
        if place in seen:
            return f"(?P={place})"
        seen.add(place)
        held = _PLACE.sub(lambda inner: f"(?:{places[inner[1]]})", places[place])
        return f"(?P<{place}>{held})"

    return _PLACE.sub(fill, pattern)


def _by_form(grammar: Grammar, question: str) -> Parts | None:
    core = _without_courtesies(grammar, question)[0].strip().rstrip(_END)
    if not core or len(core) > _LONGEST_QUESTION or "\n" in core:
        return None
    found = _match_forms(grammar, core)
    if (conditional := _split_condition(grammar, core)) is None:
        return found
    rest, sign, condition = conditional
    if found and condition not in found.object:
        return found
    # A condition is part of the task, never of the object.
    if (found := _match_forms(grammar, rest)) is None:
        return None
    return Parts(found.rule, _with_condition(grammar, found.task, sign, condition), found.object)


def _split_condition(grammar: Grammar, sentence: str) -> tuple[str, str, str] | None:
    """A question without its condition, the sign between, and the condition: in simple terms; 不超过100字."""
    for pattern in grammar.conditions:
        if found := re.fullmatch(pattern, sentence, re.IGNORECASE):
            return found["rest"], found["sign"], found["condition"]
    return None


def _with_condition(grammar: Grammar, sentence: str, sign: str, condition: str) -> str:
    end = sentence[-1] if sentence[-1] in _END else ""
    if grammar.condition_sign and end in ("？", "?"):
        return f"{sentence}{condition}{grammar.full_stop}"
    if not grammar.condition_sign and sign.strip() in (".", "?", "!"):
        return f"{sentence} {condition[0].upper()}{condition[1:]}{grammar.full_stop}"
    return f"{sentence.rstrip(_END)}{grammar.condition_sign or sign}{condition}{end}"


def _match_forms(grammar: Grammar, core: str) -> Parts | None:
    if re.search(grammar.not_asked, core):
        return None
    for compiled in _forms(grammar.name):
        form = compiled.form
        for pattern in compiled.questions:
            match = pattern.fullmatch(core)
            if match and (values := _values(grammar, form, match)):
                task = _begin(grammar, _fill(form.task, values))
                return Parts(compiled.rule, task, _fill(form.object, values))
    return None


def _values(grammar: Grammar, form: Form, match: re.Match[str]) -> dict[str, str] | None:
    """What stands in the places of a form; None if it is not what may stand there."""
    values = {name: (value or "").strip() for name, value in match.groupdict().items()}
    for name in ("x", "xs", "s", "a", "b"):
        value = values.get(name, "")
        is_quoted = value[:1] in tuple('“「『‘"《')  # whatever it says, it is one thing
        if f"{{{name}}}" in form.object and not is_quoted and re.search(grammar.not_an_object, value, re.IGNORECASE):
            return None
    return grammar.complete(values, form.thing)


def _fill(text: str, values: Mapping[str, str]) -> str:
    """A text with its places filled in; a place that stays empty takes the space after it along."""
    filled = _PLACE.sub(lambda match: values[match[1]] or "\0", text)
    return re.sub("\0 | ?\0", "", filled)


# The way back.


def _joined(task: str, object: str) -> Iterator[tuple[str, str]]:
    """The questions that may be made of a task and its object, the best first."""
    grammar = _grammar_of(task)
    for compiled in _forms(grammar.name):
        if compiled.form.asks and (values := _read_parts(grammar, compiled, task, object)):
            yield compiled.rule, _begin(grammar, _fill(compiled.form.asks, values))
    if conditional := _split_condition(grammar, task.strip().rstrip(_END)):
        rest, sign, condition = conditional
        for compiled in _forms(grammar.name):
            if compiled.form.asks and (values := _read_parts(grammar, compiled, rest, object)):
                question = _begin(grammar, _fill(compiled.form.asks, values))
                yield compiled.rule, _with_condition(grammar, question, sign, condition)
    found = _read_command(grammar, task)
    if found is None:
        return
    name, head = found[0], task.strip()
    if head[-1] not in "？?！!":
        head = head.rstrip("。．.：: ")
        if not re.search(r"[：:\n]", head) and "\n" not in object and len(object) <= _LONGEST_ON_ONE_LINE:
            yield name, f"{head}{grammar.colon}{object}"
        yield name, f"{head}{grammar.colon.rstrip()}\n{object}"
    yield name, f"{head}\n{object}"
    yield name, f"{task.strip()}\n{object}"


def _read_parts(grammar: Grammar, compiled: _CompiledForm, task: str, object: str) -> dict[str, str] | None:
    """What stands in the places of a task and its object; None if they are not of this form."""
    in_task = compiled.task.fullmatch(task.strip().rstrip(_END))
    in_object = in_task and compiled.object.fullmatch(object.strip().rstrip(_END))
    if not in_task or not in_object:
        return None
    values = {**in_task.groupdict(), **in_object.groupdict()}
    return grammar.complete({name: value or "" for name, value in values.items()}, compiled.form.thing)
