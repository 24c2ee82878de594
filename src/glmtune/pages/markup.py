"""HTML elements from Python values, with everything that is not markup escaped."""

from html import escape

from glmtune.errors import show_text


class Markup(str):
    """HTML, as opposed to text, which is escaped when it is put into an element."""

    __slots__ = ()


def element(tag: str, *content: str, **attributes: str | int | float) -> Markup:
    """An HTML element.

    Args:
        tag: Its name.
        content: Markup, and text, which is escaped. Control characters of a text are shown as escape sequences; its
            line breaks stay.
        attributes: Its attributes, escaped likewise; a trailing underscore of a name is left out (`class_`), others
            become hyphens.

    Returns:
        The element; without content, it has an end tag all the same.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_escaped(str(value))}"' for name, value in attributes.items()
    )
    return Markup(f"<{tag}{written}>{joined(*content)}</{tag}>")


def joined(*content: str) -> Markup:
    """Markup and escaped texts, one after the other."""
    return Markup("".join(each if isinstance(each, Markup) else _escaped(each) for each in content))


def _escaped(text: str) -> str:
    return escape("\n".join(show_text(line) for line in text.replace("\r\n", "\n").split("\n")))
