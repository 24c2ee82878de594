"""The Chinese catalogue: English templates, each with its Chinese one, and how a message finds its own.

A template is a message with `{0}`, `{1}` ... where names, numbers or further messages stand. The Chinese one may put
them in another order, or leave some out. `{0|none=无}` says how a single word in that place is put; `{0!}` takes a
message that the catalogue knows, and nothing else.
"""

import re
from functools import cache, lru_cache
from importlib import resources
from typing import Any

import yaml

_PLACE = re.compile(r"\{(\d+)(!?(?:\|[^|={}]+=[^|{}]*)*)\}")
_SEPARATOR = re.compile(r"(?<=\S)(?:: |; |, |\. )")
_FULL_WIDTH = {": ": "：", "; ": "；", ", ": "，", ". ": "。"}
_EDGES = re.compile(r"(\s*(?:[-;,:.] )?\s*)(.*?)(\s*)", re.DOTALL)
_CHINESE = re.compile(r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
# Longer lines hold a file's content, or another library's dump, and are not taken apart.
_MOST_TAKEN_APART = 2000
# A part of a line has to be recognised by so many letters.
_LEAST_LETTERS = 6


class Template:
    """A message in both languages.

    Args:
        english: The English text, with `{0}`, `{1}` ... in that order.
        chinese: The Chinese text.
    """

    def __init__(self, english: str, chinese: str) -> None:
        self._literals = [_PLACE.split(english)[index] for index in range(0, len(_PLACE.split(english)), 3)]
        self._chinese = _PLACE.split(chinese)
        self.num_letters = sum(map(len, self._literals))
        self.longest = max(self._literals, key=len)
        self.is_word = len(self._literals) == 1 and " " not in english
        self._has_lines = any("\n" in literal for literal in self._literals)

    def match(self, text: str) -> list[str] | None:
        """What stands in the template's places; None where the text is another one.

        Each place takes as little as it can. Of a template that has no line breaks itself, only the end may have some.
        """
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
        found.append(text[position:end])
        if not self._has_lines and ("\n" in "".join(found[:-1]) or (last and "\n" in found[-1])):
            return None
        return found

    def fill(self, found: list[str]) -> str | None:
        """The Chinese text with what stood in the places, put into Chinese where it is known too.

        None where something has to be known and is not.
        """
        filled = self._chinese[0]
        for index in range(1, len(self._chinese), 3):
            place, choices, literal = self._chinese[index : index + 3]
            text = found[int(place)]
            words = dict(choice.split("=", 1) for choice in choices.split("|")[1:])
            put = words[text] if text in words else chinese(text, is_whole=False)
            if choices.startswith("!") and put == text:
                return None
            text = put if put == text else put.strip(" ")
            # The spaces around a place are those between Chinese and Latin words.
            if filled.endswith(" ") and _CHINESE.match(filled[-2:]) and (not text or _CHINESE.match(text[0])):
                filled = filled[:-1]
            filled += text
            if literal.startswith(" ") and _CHINESE.match(filled[-1:]) and _CHINESE.match(literal[1:]):
                literal = literal[1:]
            filled += literal
        return filled


@cache
def entries() -> dict[str, dict[str, str]]:
    """The catalogue as it is written: our own messages, and those of other libraries that are quoted in them."""
    text = (resources.files("glmtune.language") / "zh.yaml").read_text(encoding="utf-8")
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    catalogue: dict[str, dict[str, str]] = yaml.load(text, loader)
    return catalogue


@cache
def _templates() -> list[Template]:
    """All templates, those first that say most."""
    templates = [Template(english, text) for part in entries().values() for english, text in part.items()]
    return sorted(templates, key=lambda template: -template.num_letters)


@lru_cache(maxsize=4096)
def chinese(text: str, is_whole: bool = True) -> str:
    """A message in Chinese.

    Args:
        text: The English message.
        is_whole: Whether this is all that is said. A single word within a message may be a name, and is left alone.

    Returns:
        The Chinese message; the text itself where nothing of it is known.
    """
    edges = _EDGES.fullmatch(text)
    before, core, after = edges.groups() if edges else ("", text, "")
    if not core:
        return text
    known = _by_template(core, is_whole)
    if known is None and "\n" in core:
        known = "\n".join(chinese(line, is_whole) for line in core.split("\n"))
    if known is None and len(core) <= _MOST_TAKEN_APART:
        known = _by_parts(core)
    if known is None or known == core:
        return text
    return _FULL_WIDTH.get(before, before) + known + after


def _by_template(text: str, is_whole: bool, least_letters: int = 0) -> str | None:
    for template in _templates():
        if template.num_letters < least_letters:
            return None
        if template.longest in text and (is_whole or not template.is_word):
            found = template.match(text)
            if found is not None and (filled := template.fill(found)) is not None:
                return filled
    return None


def _by_parts(text: str) -> str | None:
    """A line that was put together of several messages, such as a place and a fault, or two sentences."""
    separators = list(_SEPARATOR.finditer(text))
    for separator in separators:
        known = _by_template(text[separator.end() :], is_whole=False, least_letters=_LEAST_LETTERS)
        if known is not None:
            return chinese(text[: separator.start()], is_whole=False) + _FULL_WIDTH[separator[0]] + known
    for separator in reversed(separators):
        known = _by_template(text[: separator.start()], is_whole=False, least_letters=_LEAST_LETTERS)
        if known is not None:
            return known + _FULL_WIDTH[separator[0]] + chinese(text[separator.end() :], is_whole=False)
    return None
