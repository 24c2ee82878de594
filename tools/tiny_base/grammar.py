"""The one notation of all templates: `(a|b|)` is a choice and may nest, `{name}` is a slot."""

import random
import re
from collections.abc import Mapping
from string import Formatter

_CHOICE = re.compile(r"\(([^()]*)\)")


def expand(template: str, rng: random.Random) -> str:
    """Takes one branch of every choice, innermost first; slots stay."""
    while (match := _CHOICE.search(template)) is not None:
        template = template[: match.start()] + rng.choice(match[1].split("|")) + template[match.end() :]
    return template


def slots(template: str) -> set[str]:
    """The names of a template's slots."""
    return {name for _, name, _, _ in Formatter().parse(template) if name}


def fill(template: str, values: Mapping[str, str], rng: random.Random) -> str:
    """Expands the choices, then fills the slots."""
    return expand(template, rng).format(**values)
