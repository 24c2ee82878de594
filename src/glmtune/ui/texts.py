"""The page's texts in the reader's language: the browser's, until the switch says otherwise."""

import html
from typing import Any

import gradio as gr

from glmtune.language import Language
from glmtune.language.catalogue import chinese

# What the page runs in the browser when it opens: the language that was chosen here before, else the browser's.
_BROWSER = "navigator.language.toLowerCase().startsWith('zh') ? 'zh' : 'en'"
READ_LANGUAGE = f"() => [localStorage.getItem('glmtune-language') || ({_BROWSER})]"
# For screen readers, and for scripts that wait until the texts are there.
TELL_LANGUAGE = "to => { document.documentElement.lang = document.body.dataset.language = to; }"
# Of an event that is answered in a moment. Gradio's queue is for the others: a browser closes its stream of answers
# when none is left, and an event that is put into the queue just then can be lost.
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
KEEP_LANGUAGE = "(chosen) => { localStorage.setItem('glmtune-language', chosen); return [chosen]; }"


def translated(text: str, to: Language) -> str:
    """A message in a language, whichever the process has."""
    return chinese(text) if to == "zh" else text


def warn(text: str, to: Language) -> None:
    """Shows a message for a moment. It may quote what is in a file, and would be rendered as HTML."""
    gr.Warning(html.escape(translated(text, to)))


class Texts:
    """Remembers which component shows which text, so that the switch can change them all."""

    def __init__(self) -> None:
        self._texts: list[tuple[Any, dict[str, str]]] = []

    def add(self, component: Any, **texts: str) -> Any:
        """Remembers the English texts of a component by its properties, and returns the component."""
        self._texts.append((component, texts))
        return component

    @property
    def components(self) -> list[Any]:
        """All components with texts."""
        return [component for component, _ in self._texts]

    def updates(self, to: Language) -> list[Any]:
        """What changes each of them to a language, in the order of `components`."""
        changes: list[dict[str, Any]] = [
            {name: translated(text, to) for name, text in texts.items()} for _, texts in self._texts
        ]
        return [gr.update(**change) for change in changes]
