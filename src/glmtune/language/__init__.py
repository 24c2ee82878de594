"""The user's language: code, logs and exceptions are English; what the user sees is English or Chinese, never both.

`localise` is applied where text reaches the user: on the command line, in the terminal chat, the demo and plots.
`zh.yaml` maps each English message to its Chinese; `tools/untranslated.py` lists those that are missing.
"""

import os
from typing import Literal

Language = Literal["zh", "en"]


def language() -> Language:
    """The user's language: from GLMTUNE_LANG if it is set, else from the locale."""
    for name in ("GLMTUNE_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(name):
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"


def localise(text: str) -> str:
    """Translates a message into the user's language.

    Args:
        text: One of our messages in English, including any names, numbers and further messages in it.

    Returns:
        The message in the user's language. What the catalogue does not contain is left as it is.
    """
    if language() == "en":
        return text
    from glmtune.language.catalogue import chinese

    return chinese(text)
