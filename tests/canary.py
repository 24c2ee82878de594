"""Canaries: the private parts of other libraries that are relied on are there, and do what they did.

One that fails after an upgrade says what has to be looked at: the function of glmtune.compat of the same name, or the
override that it names.
"""

from importlib import metadata


def changed(seen: str, what: str) -> str:
    """What a canary says when it fails."""
    return f"{what}. Last seen: {seen}; installed: {metadata.version(seen.split()[0])}"
