"""The word lists of `words.yaml`, and the common Chinese characters."""

import functools
import random
from pathlib import Path

import yaml

COMMON_HANZI = tuple(
    bytes((row, cell)).decode("gb2312")
    for row in range(0xB0, 0xD8)
    for cell in range(0xA1, 0xFF)
    if (row, cell) <= (0xD7, 0xF9)
)
"""The 3,755 characters of GB2312's first level, in the order of the standard."""

CHINESE_DIGITS = "零一二三四五六七八九十"

_LISTS = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))

CATEGORIES: dict[str, list[str]] = {name: text.split() for name, text in _LISTS["categories"].items()}
CATEGORY_OF = {word: category for category, members in CATEGORIES.items() for word in members}


@functools.cache
def words(name: str) -> tuple[str, ...]:
    """The list of this name."""
    return tuple(_LISTS[name].split())


@functools.cache
def pairs(name: str) -> tuple[tuple[str, str], ...]:
    """The list of this name, whose words are pairs."""
    return tuple(
        (first, second.replace("_", " ")) for first, _, second in (word.partition(":") for word in words(name))
    )


def hanzi(rng: random.Random, fewest: int, most: int) -> str:
    """Common characters without a meaning."""
    return "".join(rng.choices(COMMON_HANZI, k=rng.randint(fewest, most)))
