"""Twenty kinds of small edits of a Chinese question, each of which leaves what it asks as it was."""

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

_NEIGHBOURS = "的地得了着过是在有和就都而及与以"
_TRADITIONAL = str.maketrans(
    "们这来时国说对会为开过还样问从两长间现见经动学给听书车门话种应关点电",
    "們這來時國說對會為開過還樣問從兩長間現見經動學給聽書車門話種應關點電",
)
_FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
_PUNCTUATION = "，。！？；：、“”‘’（）《》—…,.!?;:()"


def _at(text: str, draw: random.Random) -> int:
    return draw.randrange(1, len(text) - 1)


def _substituted(text: str, draw: random.Random) -> str:
    place = _at(text, draw)
    return text[:place] + draw.choice(_NEIGHBOURS) + text[place + 1 :]


def _deleted(text: str, draw: random.Random) -> str:
    place = _at(text, draw)
    return text[:place] + text[place + 1 :]


def _doubled(text: str, draw: random.Random) -> str:
    place = _at(text, draw)
    return text[:place] + text[place] + text[place:]


def _swapped(text: str, draw: random.Random) -> str:
    place = _at(text, draw)
    return text[: place - 1] + text[place] + text[place - 1] + text[place + 1 :]


def _inserted(text: str, draw: random.Random, added: str) -> str:
    place = _at(text, draw)
    return text[:place] + added + text[place:]


def _quoted(text: str, draw: random.Random) -> str:
    place = _at(text, draw)
    return f"{text[: place - 1]}“{text[place - 1 : place + 1]}”{text[place + 1 :]}"


EDITS: Mapping[str, Callable[[str, random.Random], str]] = MappingProxyType(
    {
        "punctuation at the end": lambda text, _: text.rstrip(_PUNCTUATION) + "？！",
        "no punctuation": lambda text, _: "".join(char for char in text if char not in _PUNCTUATION),
        "half-width punctuation": lambda text, _: text.translate(str.maketrans("，。！？；：（）", ",.!?;:()")),
        "full-width letters": lambda text, _: f"AI{text}".translate(_FULL_WIDTH),
        "upper case": lambda text, _: f"ai {text}".upper(),
        "a space": lambda text, draw: _inserted(text, draw, " "),
        "a line break": lambda text, draw: _inserted(text, draw, "\n"),
        "a zero-width space": lambda text, draw: _inserted(text, draw, "\u200b"),
        "an ideographic space in front": lambda text, _: "\u3000\u3000" + text,
        "quotation marks": _quoted,
        "an emoji": lambda text, _: text + "😊",
        "traditional characters": lambda text, _: text.translate(_TRADITIONAL),
        "a substituted character": _substituted,
        "a missing character": _deleted,
        "a doubled character": _doubled,
        "swapped characters": _swapped,
        "courtesy in front": lambda text, _: "请问" + text,
        "thanks at the end": lambda text, _: text + "谢谢",
        "a particle at the end": lambda text, _: text.rstrip(_PUNCTUATION) + "呢？",
        "你 and 您": lambda text, _: text.replace("你", "您") if "你" in text else text + "您",
    }
)
