"""Numbers of things in English, "1 row" or "2 rows"; the catalogue knows only the plural."""

import re
from typing import Literal

Noun = Literal[
    "samples",
    "rows",
    "messages",
    "characters",
    "tokens",
    "steps",
    "conversations",
    "replies",
    "prompts",
    "questions",
    "findings",
]
_SINGULAR: dict[Noun, str] = {
    "samples": "sample",
    "rows": "row",
    "messages": "message",
    "characters": "character",
    "tokens": "token",
    "steps": "step",
    "conversations": "conversation",
    "replies": "reply",
    "prompts": "prompt",
    "questions": "question",
    "findings": "finding",
}
_PLURAL = {singular: plural for plural, singular in _SINGULAR.items()}
_ONE = re.compile(rf"(?<![\w.,])1 ({'|'.join(_PLURAL)})\b")


def count(number: int, noun: Noun) -> str:
    """A number of things: `1 row`, `2,000 rows`.

    `tools/untranslated.py` reads a call with a literal noun as that noun, so a message has one entry in the catalogue.

    Args:
        number: How many.
        noun: Of what, in the plural.
    """
    return f"{number:,} {noun if number != 1 else _SINGULAR[noun]}"


def in_plural(text: str) -> str:
    """A message with every `1 row` written as `1 rows`, as the catalogue has it."""
    return _ONE.sub(lambda found: f"1 {_PLURAL[found[1]]}", text)
