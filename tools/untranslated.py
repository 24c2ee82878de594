"""Lists messages that have no Chinese form, and Chinese forms of messages that are gone.

    python tools/untranslated.py             messages without an entry, as YAML to be filled in; then stale entries
    python tools/untranslated.py --all       every message of the source, where it stands

Messages are string literals of the source that read as prose, or are given to what prints or raises. What is none of
them all the same is in tools/not_messages.yaml, with the reason.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "glmtune"
CATALOGUE = PACKAGE / "language" / "zh.yaml"
NOT_MESSAGES = Path(__file__).with_name("not_messages.yaml")

# What is given to these reaches a person, be it a single word.
_SHOWN_BY = {
    *("print", "echo", "localise", "_label", "add_column", "add_row", "add_task", "status", "Table", "TextColumn"),
}
_LOGGED_BY = {"debug", "info", "warning", "error", "exception"}
_SHOWN_AS = {"help", "title", "description", "label"}
# What is given to these is compared with, looked up or cut off.
_NOT_SHOWN_BY = {
    *(
        "compile",
        "match",
        "fullmatch",
        "search",
        "sub",
        "split",
        "finditer",
        "findall",
        "getLogger",
        "encode",
        "decode",
    ),
    *("startswith", "endswith", "removeprefix", "removesuffix", "partition", "rpartition", "replace", "get", "strip"),
    *("_names", "with_name", "with_suffix", "glob", "rglob", "Literal", "TypeVar", "getenv", "setdefault"),
}
_PLACE = re.compile(r"\{\d+\}")
_PERCENT = re.compile(r"%[-+ #0]*(?:\d+|\*)?(?:\.\d+)?[sdrfgxeE]")
_BRACES = re.compile(r"\{[^{}]*\}")
_WORD = re.compile(r"[A-Za-z]{2,}")


@dataclass(frozen=True)
class Message:
    """A message of the source.

    Attributes:
        template: The text, `{0}`, `{1}` ... for what is filled in, spaces and separators at its ends left out.
        place: File and line.
        is_prose: Whether it has to have a Chinese form.
    """

    template: str
    place: str
    is_prose: bool

    def lines(self) -> list[str]:
        """The templates of its lines, for a text whose lines are told apart."""
        return [normalise(line) for line in self.template.split("\n")]


def normalise(template: str) -> str:
    """The template with its places counted from 0, without what joins it to other texts."""
    template = re.sub(r"(\{\d+\}){2,}", "{0}", template)
    numbers = iter(range(1000))
    template = _PLACE.sub(lambda _: f"{{{next(numbers)}}}", template)
    return re.sub(r"^\s*(?:[-;,:.] )?\s*|\s+$", "", template)


def messages() -> list[Message]:
    """All string literals of the package, joined where the source joins them."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += list(_Collector(path.relative_to(PACKAGE).as_posix()).collect(tree))
    return found


class _Collector:
    def __init__(self, name: str) -> None:
        self._name = name

    def collect(self, node: ast.AST, is_shown: bool = False, is_hidden: bool = False) -> Iterator[Message]:
        """The messages at or below a node."""
        text = _text_of(node)
        if text is not None:
            yield self._message(text, node, is_shown, is_hidden)
            for inner in _values_in(node):
                yield from self.collect(inner)
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # a docstring
        if isinstance(node, ast.FunctionDef) and any("command" in ast.unparse(each) for each in node.decorator_list):
            yield self._message(ast.get_docstring(node) or "", node, is_shown=True)
        if isinstance(node, ast.Call):
            yield from self._collect_call(node)
            return
        is_hidden = isinstance(node, ast.Compare | ast.Subscript)
        for _, child in ast.iter_fields(node):
            for each in child if isinstance(child, list) else [child]:
                if isinstance(each, ast.AST):
                    yield from self.collect(each, is_shown and isinstance(node, ast.IfExp | ast.List), is_hidden)

    def _collect_call(self, node: ast.Call) -> Iterator[Message]:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        if name in _LOGGED_BY and node.args and (text := _text_of(node.args[0])) is not None:
            yield self._message(_PERCENT.sub("{0}", text), node, is_shown=True)
            node.args = node.args[1:]
        is_shown = name in _SHOWN_BY or name.endswith("Error")
        yield from self.collect(node.func)
        for argument in node.args:
            yield from self.collect(argument, is_shown, name in _NOT_SHOWN_BY)
        for keyword in node.keywords:
            yield from self.collect(keyword.value, keyword.arg in _SHOWN_AS)

    def _message(self, text: str, node: ast.AST, is_shown: bool, is_hidden: bool = False) -> Message:
        template = normalise(text)
        letters = _PLACE.sub(" ", template)
        is_prose = bool(_WORD.search(letters)) and (is_shown or " " in template) and not is_hidden
        return Message(template, f"{self._name}:{getattr(node, 'lineno', 0)}", is_prose)


def _text_of(node: ast.AST) -> str | None:
    """The template of an expression that makes text of literals; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"\{:[^{}]*\}", "{0}", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else _constant(part) or _counted(part) or "{0}"
            for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text_of(node.left), _text_of(node.right)
        if left is not None or right is not None:
            return (left or "{0}") + (right or "{0}")
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and (text := _text_of(node.left)) is not None:
        return _PERCENT.sub("{0}", text)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        text = _text_of(node.func.value)
        if text is not None and node.func.attr == "format":
            return _BRACES.sub("{0}", text)
    return None


def _constant(part: ast.AST) -> str | None:
    """What stands in the place of an f-string that is filled with a literal."""
    return part.value.value if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Constant) else None


def _counted(part: ast.AST) -> str | None:
    """What stands in the place of an f-string that is filled with a number of things: `count(number, "rows")`."""
    call = part.value if isinstance(part, ast.FormattedValue) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "count":
        noun = call.args[1]
        return f"{{0}} {noun.value}" if isinstance(noun, ast.Constant) else None
    return None


def _values_in(node: ast.AST) -> Iterator[ast.AST]:
    """What is filled into a text: its literals are texts of their own."""
    if isinstance(node, ast.JoinedStr):
        yield from (part.value for part in node.values if isinstance(part, ast.FormattedValue))
    elif isinstance(node, ast.BinOp):
        for side in (node.left, node.right):
            yield from [side] if _text_of(side) is None else _values_in(side)
    elif isinstance(node, ast.Call):
        yield from node.args


def catalogue() -> dict[str, dict[str, str]]:
    """The catalogue's parts."""
    parts: dict[str, dict[str, str]] = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    return parts


def not_messages() -> dict[str, dict[str, str]]:
    """What is no message for a person: modules, and single texts, each with the reason."""
    parts: dict[str, dict[str, str]] = yaml.safe_load(NOT_MESSAGES.read_text(encoding="utf-8"))
    return parts


def untranslated() -> dict[str, str]:
    """Messages without a Chinese form: template -> where it stands."""
    known, excepted = catalogue()["glmtune"], not_messages()
    missing: dict[str, str] = {}
    for message in messages():
        module = message.place.rpartition(":")[0]
        if not message.is_prose or module in excepted["modules"] or message.template in known:
            continue
        for line in message.lines():
            if _is_prose_line(line) and line not in known and line not in excepted["texts"]:
                missing.setdefault(line, message.place)
    return missing


def _is_prose_line(line: str) -> bool:
    return bool(_WORD.search(_PLACE.sub(" ", line)))


def stale() -> list[str]:
    """Entries of the catalogue, and exceptions, that no literal of the source has any more."""
    found = {text for message in messages() for text in (message.template, *message.lines())}
    excepted = not_messages()
    modules = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    texts = [text for text in (*catalogue()["glmtune"], *excepted["texts"]) if text not in found]
    return texts + [module for module in excepted["modules"] if module not in modules]


def entry(english: str, chinese: str) -> str:
    """An entry as the catalogue has it: the English on one line, the Chinese below it."""
    return f"  {_quoted(english)}:\n    {_quoted(chinese)}\n"


def _quoted(text: str) -> str:
    if "\n" in text or "\\" in text:
        escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    return "'{}'".format(text.replace("'", "''"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true")
    if parser.parse_args().all:
        for message in messages():
            if message.is_prose:
                print(f"{message.place}: {message.template!r}")
        return
    missing, gone = untranslated(), stale()
    module = ""
    for template, place in missing.items():
        if place.rpartition(":")[0] != module:
            module = place.rpartition(":")[0]
            print(f"\n  # {module}")
        print(entry(template, ""), end="")
    for text in gone:
        print(f"stale: {text!r}")
    sys.exit(bool(missing or gone))


if __name__ == "__main__":
    main()
