"""The reader's language: code, logs and exceptions are English; what a person reads may be Chinese, never both at once.

`localise` is applied where text meets a person: on the command line, in the terminal chat, in the demo, in pictures.
The Chinese wording lies in `zh.yaml`, by the English one; `tools/untranslated.py` lists what is missing in it.
"""

import os
from typing import Literal

Language = Literal["zh", "en"]


def language() -> Language:
    """The reader's language: by GLMTUNE_LANG where that is set, else by the locale."""
    for name in ("GLMTUNE_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(name):
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"


def localise(text: str) -> str:
    """A message in the reader's language.

    Args:
        text: A message of ours in English, with whatever names, numbers and further messages stand in it.

    Returns:
        The message in the reader's language. What the catalogue does not know stays as it is.
    """
    if language() == "en":
        return text
    from glmtune.language.catalogue import chinese

    return chinese(text)
