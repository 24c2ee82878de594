"""Reads YAML as people write it, on the command line or in a configuration file."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from glmtune.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML without its traps.

    `1e-4` is a number; `010` is not octal, and `1:30` is not base 60; only true and false are booleans, so that
    `eval_strategy: no` is a word; a date is text; a duplicate key is an error. Aliases are refused: they are not
    needed here, and a few lines of them can expand to gigabytes, or to a cycle.
    """

    yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":timestamp", ":int"))]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # type: ignore[no-untyped-call]
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, f"*{event.anchor} is an alias; write the value itself", event.start_mark
            )
        return super().compose_node(parent, index)  # type: ignore[no-untyped-call, arg-type]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                first, second = (node.value[place][0].start_mark.line + 1 for place in (keys.index(key), index))
                raise ConfigError(f'"{key}" is given twice, in line {first} and in line {second}. Keep one')
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]{0,99})$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?i:true|false)$"), list("tTfF"))

# Constructing a value can also raise errors other than YAMLError: `!!int x`, `!!bool x`, thousands of brackets.
_YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, RecursionError)


def spell_value(value: Any) -> str:
    """A value as it is typed on the command line: `true`, `null`, `0.1`, `auto`, `\\n`."""
    text = json.dumps(value, ensure_ascii=False)
    return text[1:-1] if isinstance(value, str) else text


def parse_value(text: str) -> Any:
    """Reads a value from the command line by the same rules as those in a configuration file.

    A value that begins with an asterisk is text: a pattern of files such as `*.json`, whose quotes the shell removes,
    and not an alias of YAML, which has no meaning here.

    Args:
        text: The value as typed.

    Returns:
        A number, boolean, text, list or dictionary; None for an empty text.

    Raises:
        ConfigError: It is not a YAML value, or a mapping in it has a key twice; the message quotes the text.
    """
    if text.lstrip().startswith("*"):
        return text.strip()
    try:
        return yaml.load(text, _Loader)
    except _YAML_ERRORS as error:
        raise ConfigError(f"{text!r:.80} is not a YAML value; put it in quotes, inside those of the shell") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a configuration file.

    Raises:
        ConfigError: It cannot be read, is not YAML, or contains something other than sections.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ConfigError as error:  # a key that is given twice
        raise ConfigError(f"{path}: {error}") from error
    except _YAML_ERRORS as error:
        raise ConfigError(f"{path}: not YAML in UTF-8: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections such as model: and data:; found a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}
