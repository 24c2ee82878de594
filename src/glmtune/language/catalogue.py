"""The Chinese catalogue: English templates with their translations, and matching a message to its template.

A template is a message with placeholders `{0}`, `{1}` ... for names, numbers or further messages. The translation may
use them in another order, or leave some out. `{0|none=无}` translates a single word in that place; `{0!}` matches only
a message that is itself in the catalogue.
"""

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib import resources
from typing import Any, NamedTuple

import yaml

from glmtune.language.plurals import in_plural

_PLACE = re.compile(r"\{(\d+)(!?(?:\|[^|={}]+=[^|{}]*)*)\}")
_SEPARATOR = re.compile(r"(?<=\S)(?:: |; |, |\. )")
_FULL_WIDTH = {": ": "：", "; ": "；", ", ": "，", ". ": "。"}
_EDGES = re.compile(r"(\s*(?:[-;,:.] )?\s*)(.*?)(\s*)", re.DOTALL)
_CHINESE = re.compile(r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
# Lines with more separators are lists of names or output of another library, and are not split.
_MOST_SEPARATORS = 24
# The least number of known letters for which part of a line counts as recognised.
_ERROR = "Error: "
_LEAST_LETTERS = 6


class _Reading(NamedTuple):
    """A message in Chinese.

    Attributes:
        text: The Chinese text; the English one if nothing in it is known.
        num_known: Number of letters of the English text that are in the catalogue.
    """

    text: str
    num_known: int


class CatalogueEntry:
    """A message in both languages.

    Args:
        english: The English text, with `{0}`, `{1}` ... in ascending order.
        chinese: The Chinese text.
    """

    def __init__(self, english: str, chinese: str) -> None:
        self._literals = _PLACE.split(english)[::3]
        self._chinese = _PLACE.split(chinese)
        self.num_letters = sum(map(len, self._literals))
        self.longest = max(self._literals, key=len)
        self.is_word = len(self._literals) == 1 and " " not in english

    def match(self, text: str) -> list[str] | None:
        """The texts of the placeholders, each as short as possible; None if the text does not match."""
        first, last = self._literals[0], self._literals[-1]
        if len(self._literals) == 1:
            return [] if text == first else None
        position, end = len(first), len(text) - len(last)
        if end < position or not text.startswith(first) or not text.endswith(last):
            return None
        found = []
        for literal in self._literals[1:-1]:
            at = text.find(literal, position, end)
            if at < 0:
                return None
            found.append(text[position:at])
            position = at + len(literal)
        return [*found, text[position:end]]

    def fill(self, found: list[str]) -> _Reading | None:
        """The Chinese text with the placeholders filled in, translated where they are known too.

        None if a placeholder has to be known (`{0!}`) and is not.
        """
        filled, num_known = self._chinese[0], self.num_letters
        for index in range(1, len(self._chinese), 3):
            place, choices, literal = self._chinese[index : index + 3]
            text = found[int(place)]
            words = dict(choice.split("=", 1) for choice in choices.split("|")[1:])
            put = _Reading(words[text], len(text)) if text in words else read(text, is_whole=False)
            if choices.startswith("!") and not put.num_known:
                return None
            text = put.text.strip(" ") if put.num_known else text
            num_known += put.num_known
            # Spaces around a placeholder separate Chinese from Latin words.
            if filled.endswith(" ") and _CHINESE.match(filled[-2:]) and (not text or _CHINESE.match(text[0])):
                filled = filled[:-1]
            filled += text
            if literal.startswith(" ") and _CHINESE.match(filled[-1:]) and _CHINESE.match(literal[1:]):
                literal = literal[1:]
            filled += literal
        return _Reading(filled, num_known)


@cache
def entries() -> dict[str, dict[str, str]]:
    """The catalogue as written: our own messages, and those of other libraries that ours quote."""
    text = (resources.files("glmtune.language") / "zh.yaml").read_text(encoding="utf-8")
    loader: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    catalogue: dict[str, dict[str, str]] = yaml.load(text, loader)
    return catalogue


@cache
def _templates() -> list[CatalogueEntry]:
    """All templates, those with most letters first."""
    templates = [CatalogueEntry(english, text) for part in entries().values() for english, text in part.items()]
    return sorted(templates, key=lambda template: -template.num_letters)


def chinese(text: str) -> str:
    """Translates a message into Chinese.

    Args:
        text: The English message.

    Returns:
        The Chinese message; the text itself if nothing in it is known.
    """
    if text.startswith(_ERROR):  # or it could be taken for the beginning of what the first placeholder stands for
        return f"错误：{chinese(text.removeprefix(_ERROR))}"
    written, in_plurals = read(text, is_whole=True), read(in_plural(text), is_whole=True)
    return (in_plurals if in_plurals.num_known > written.num_known else written).text


@lru_cache(maxsize=4096)
def read(text: str, is_whole: bool) -> _Reading:
    """Finds the templates that together cover most of a message.

    Args:
        text: The English message.
        is_whole: Whether this is the whole message. A single word within a message may be a name, and is left alone.
    """
    edges = _EDGES.fullmatch(text)
    before, core, after = edges.groups() if edges else ("", text, "")
    best = _best(core, is_whole)
    if after and not best.num_known:
        best, after = _best(core + after, is_whole), ""  # the message may end with a colon
    if not best.num_known:
        return _Reading(text, 0)
    return _Reading(_FULL_WIDTH.get(before, before) + best.text + after, best.num_known)


def _best(text: str, is_whole: bool) -> _Reading:
    readings = _readings(text, is_whole) if text.strip() else ()
    return max(readings, key=lambda reading: reading.num_known, default=_Reading(text, 0))


def _readings(text: str, is_whole: bool) -> Iterator[_Reading]:
    """The possible readings of a message: line by line, as a whole, or part by part."""
    readings = [template.fill(found) for template, found in _matches(text, is_whole)]
    if "\n" in text:
        lines = [read(line, is_whole) for line in text.split("\n")]
        yield _Reading("\n".join(line.text for line in lines), sum(line.num_known for line in lines))
    yield from filter(None, readings)
    if "\n" not in text:
        yield from _readings_by_parts(text)


def _matches(text: str, is_whole: bool) -> Iterator[tuple[CatalogueEntry, list[str]]]:
    for template in _templates():
        if template.longest in text and (is_whole or not template.is_word):
            found = template.match(text)
            if found is not None:
                yield template, found


def _readings_by_parts(text: str) -> Iterator[_Reading]:
    """Readings of a line that combines several messages, such as a place and a fault, or two sentences."""
    separators = list(_SEPARATOR.finditer(text))
    for separator in separators if len(separators) <= _MOST_SEPARATORS else ():
        left, right = read(text[: separator.start()], False), read(text[separator.end() :], False)
        if max(left.num_known, right.num_known) >= _LEAST_LETTERS:
            is_place = separator[0] == ": " and " " not in left.text  # a file or a key that the rest is about
            num_known = left.num_known + right.num_known + is_place
            yield _Reading(left.text + _FULL_WIDTH[separator[0]] + right.text, num_known)
