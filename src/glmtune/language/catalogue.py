"""The Chinese catalogue: English templates, each with its Chinese one, and how a message finds its own.

A template is a message with `{0}`, `{1}` ... where names, numbers or further messages stand. The Chinese one may put
them in another order, or leave some out. `{0|none=无}` says how a single word in that place is put; `{0!}` takes a
message that the catalogue knows, and nothing else.
"""

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib import resources
from typing import Any, NamedTuple

import yaml

_PLACE = re.compile(r"\{(\d+)(!?(?:\|[^|={}]+=[^|{}]*)*)\}")
_SEPARATOR = re.compile(r"(?<=\S)(?:: |; |, |\. )")
_FULL_WIDTH = {": ": "：", "; ": "；", ", ": "，", ". ": "。"}
_EDGES = re.compile(r"(\s*(?:[-;,:.] )?\s*)(.*?)(\s*)", re.DOTALL)
_CHINESE = re.compile(r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
# Lines with more separators hold a list of names, or another library's dump, and are not taken apart.
_MOST_SEPARATORS = 24
# A part of a line has to be recognised by so many letters.
_LEAST_LETTERS = 6


class _Reading(NamedTuple):
    """What a message is in Chinese.

    Attributes:
        text: The Chinese text; the English one where nothing of it is known.
        num_known: How many letters of the English text are in the catalogue.
    """

    text: str
    num_known: int


class CatalogueEntry:
    """A message in both languages.

    Args:
        english: The English text, with `{0}`, `{1}` ... in that order.
        chinese: The Chinese text.
    """

    def __init__(self, english: str, chinese: str) -> None:
        self._literals = _PLACE.split(english)[::3]
        self._chinese = _PLACE.split(chinese)
        self.num_letters = sum(map(len, self._literals))
        self.longest = max(self._literals, key=len)
        self.is_word = len(self._literals) == 1 and " " not in english

    def match(self, text: str) -> list[str] | None:
        """What stands in the template's places, each taking as little as it can; None where the text is another one."""
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
        """The Chinese text with what stood in the places, put into Chinese where it is known too.

        None where something has to be known and is not.
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
            # The spaces around a place are those between Chinese and Latin words.
            if filled.endswith(" ") and _CHINESE.match(filled[-2:]) and (not text or _CHINESE.match(text[0])):
                filled = filled[:-1]
            filled += text
            if literal.startswith(" ") and _CHINESE.match(filled[-1:]) and _CHINESE.match(literal[1:]):
                literal = literal[1:]
            filled += literal
        return _Reading(filled, num_known)


@cache
def entries() -> dict[str, dict[str, str]]:
    """The catalogue as it is written: our own messages, and those of other libraries that are quoted in them."""
    text = (resources.files("glmtune.language") / "zh.yaml").read_text(encoding="utf-8")
    loader: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    catalogue: dict[str, dict[str, str]] = yaml.load(text, loader)
    return catalogue


@cache
def _templates() -> list[CatalogueEntry]:
    """All templates, those first that say most."""
    templates = [CatalogueEntry(english, text) for part in entries().values() for english, text in part.items()]
    return sorted(templates, key=lambda template: -template.num_letters)


def chinese(text: str) -> str:
    """A message in Chinese.

    Args:
        text: The English message.

    Returns:
        The Chinese message; the text itself where nothing of it is known.
    """
    return read(text, is_whole=True).text


@lru_cache(maxsize=4096)
def read(text: str, is_whole: bool) -> _Reading:
    """Finds the templates that together say most of a message.

    Args:
        text: The English message.
        is_whole: Whether this is all that is said. A single word within a message may be a name, and is left alone.
    """
    edges = _EDGES.fullmatch(text)
    before, core, after = edges.groups() if edges else ("", text, "")
    best = _best(core, is_whole)
    if after and not best.num_known:
        best, after = _best(core + after, is_whole), ""  # it may end with a colon that nothing follows
    if not best.num_known:
        return _Reading(text, 0)
    return _Reading(_FULL_WIDTH.get(before, before) + best.text + after, best.num_known)


def _best(text: str, is_whole: bool) -> _Reading:
    readings = _readings(text, is_whole) if text.strip() else ()
    return max(readings, key=lambda reading: reading.num_known, default=_Reading(text, 0))


def _readings(text: str, is_whole: bool) -> Iterator[_Reading]:
    """All that a message may be, best guesses first: line by line, as a whole, or part by part."""
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
    """A line that was put together of several messages, such as a place and a fault, or two sentences."""
    separators = list(_SEPARATOR.finditer(text))
    for separator in separators if len(separators) <= _MOST_SEPARATORS else ():
        left, right = read(text[: separator.start()], False), read(text[separator.end() :], False)
        if max(left.num_known, right.num_known) >= _LEAST_LETTERS:
            is_place = separator[0] == ": " and " " not in left.text  # a file or a key, at which something is said
            num_known = left.num_known + right.num_known + is_place
            yield _Reading(left.text + _FULL_WIDTH[separator[0]] + right.text, num_known)
