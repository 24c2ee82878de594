"""Traits and small talk, read from `traits.yaml` and `small_talk.yaml`.

Every trait can be asked for in many ways and has the same slot in statement and answer. A model that learns thousands
of chance characters from these learns what a question is about, whatever its wording, and that is what lets a hundred
rows of one persona carry over to questions they do not contain.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Trait:
    """One kind of fact, or one kind of small talk, as templates in the notation of `grammar`.

    Attributes:
        key: Its name, which is also its slot; empty for small talk.
        states: How a system prompt tells the character about it ("you ...").
        asks: How a user asks for it, without the closing mark.
        says: How the character answers; slots of other traits may appear, and are then needed too.
        plain: What a model without a character answers.
    """

    key: str
    states: tuple[str, ...]
    asks: tuple[str, ...]
    says: tuple[str, ...]
    plain: tuple[str, ...]


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name(name).read_text(encoding="utf-8"))


_TALK = _read("small_talk.yaml")

TRAITS = {
    key: Trait(key, tuple(t["states"]), tuple(t["asks"]), tuple(t["says"]), tuple(t["plain"]))
    for key, t in _read("traits.yaml").items()
}
SMALL_TALK = [Trait("", (), tuple(t["asks"]), tuple(t["says"]), tuple(t["plain"])) for t in _TALK["talk"].values()]
ENGLISH_TALK: list[tuple[list[str], str]] = [(talk["asks"], talk["says"]) for talk in _TALK["english"]]
UNKNOWN: list[str] = _TALK["unknown"]
TAILS: list[str] = _TALK["tails"]
PREFIXES: list[str] = _TALK["prefixes"]
SYSTEMS: list[str] = _TALK["systems"]
