"""Checks values that are passed on to another library, against its type annotations and against allowed ranges."""

import math
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import Field
from enum import Enum
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError

_PLAIN = {int, float, bool, str, NoneType}


class _Range(NamedTuple):
    """A range of numbers, and whether it includes its ends."""

    least: float
    most: float = 1e9
    with_least: bool = True
    with_most: bool = True

    def allows(self, value: float) -> bool:
        """Whether a number is in the range."""
        above = value >= self.least if self.with_least else value > self.least
        return above and (value <= self.most if self.with_most else value < self.most)

    def describe(self, value: float) -> str:
        """What was expected in the place of a number that is not allowed; its upper end only where that matters."""
        least = f"at least {self.least:g}" if self.with_least else f"a number above {self.least:g}"
        if self.most >= 1e9 and not value > self.most:
            return least
        most = f"{self.most:,.15g}"
        return f"{least} and at most {most}" if self.with_most else f"{least} and below {most}"


_AT_LEAST_0, _AT_LEAST_1, _ABOVE_0 = _Range(0), _Range(1), _Range(0, with_least=False)
_BELOW_1 = _Range(0, 1, with_most=False)
# The range that numpy's generator accepts.
_SEED = _Range(0, 2**32 - 1)
# Numbers of any other key must be at least 0.
_RANGES: Mapping[str, _Range] = MappingProxyType(
    {
        "train.per_device_train_batch_size": _AT_LEAST_1,
        "train.per_device_eval_batch_size": _AT_LEAST_1,
        "train.gradient_accumulation_steps": _AT_LEAST_1,
        "train.eval_accumulation_steps": _AT_LEAST_1,
        "train.early_stopping_patience": _AT_LEAST_1,
        "train.eval_generate": _AT_LEAST_1,
        "train.max_tokens_per_device": _AT_LEAST_1,
        "train.logging_steps": _ABOVE_0,
        "train.save_steps": _ABOVE_0,
        "train.eval_steps": _ABOVE_0,
        "train.num_train_epochs": _ABOVE_0,
        "train.ddp_timeout": _ABOVE_0,
        "train.ddp_bucket_cap_mb": _AT_LEAST_1,
        "train.max_steps": _Range(-1),
        "train.local_rank": _Range(-1),
        "train.adam_beta1": _BELOW_1,
        "train.adam_beta2": _BELOW_1,
        "train.seed": _SEED,
        "train.data_seed": _SEED,
        "lora.r": _AT_LEAST_1,
        "lora.lora_alpha": _ABOVE_0,
        "lora.lora_dropout": _BELOW_1,
        "lora.qalora_group_size": _AT_LEAST_1,
    }
)


def check_value(name: str, value: Any, hint: Any, field: Field[Any] | None = None) -> tuple[Any, str | None]:
    """Checks a value and converts it to the type that it should have.

    Args:
        name: The key, with its section.
        value: The value as read from YAML.
        hint: The type annotation.
        field: The dataclass field, whose metadata may list the allowed words.

    Returns:
        The value, with text that stands for a number converted to it; and what is wrong with it, if anything.
    """
    members = _members(hint)
    if value is None and NoneType in members:
        return None, None
    if members <= _PLAIN:
        if isinstance(value, bool) and bool not in members:  # pydantic would take true for 1
            return value, _type_fault(name, value, members)
        try:
            value = TypeAdapter(hint, config=ConfigDict(coerce_numbers_to_str=True)).validate_python(value)
        except ValidationError:
            return value, _type_fault(name, value, members)
    elif (fault := _kind_fault(name, value, members)) is not None:
        return value, fault
    if name == "train.optim_args" and not all(re.fullmatch(r"[^=]+=[^=]+", part) for part in value.split(",")):
        return value, f"{name}: expected arguments of the optimiser as name=value,name=value; found {_show(value)}"
    words = _words(members) or (field.metadata.get("choices") if field is not None else None)
    if words and isinstance(value, str) and value not in words and (value or str in members):
        return value, f"{name}: expected one of {', '.join(sorted(words))}; found {value!r}"
    return value, _range_fault(name, value)


def _members(hint: Any) -> set[Any]:
    """The members of a union type; for any other type, the type itself."""
    if isinstance(hint, UnionType) or typing.get_origin(hint) is typing.Union:
        return {member for each in typing.get_args(hint) for member in _members(each)}
    return {hint}


def plain_types(hint: Any) -> tuple[type, ...]:
    """The types that a value of a type annotation has in JSON, apart from null."""
    types: set[type] = set()
    for member in _members(hint) - {NoneType}:
        origin = typing.get_origin(member) or member
        types |= {type(word) for word in typing.get_args(member)} if origin is Literal else {origin}
    types |= {int} if float in types else set()
    return tuple(sorted(types, key=lambda each: each.__name__))


def _type_fault(name: str, value: Any, members: Iterable[Any]) -> str:
    expected = " or ".join(sorted(member.__name__ for member in members if member is not NoneType))
    return f"{name}: expected {expected}; found {_show(value)}"


def _kind_fault(name: str, value: Any, members: Iterable[Any]) -> str | None:
    """A fault if the value is of none of the allowed kinds: a word, a list, a mapping, a number ..."""
    kinds: dict[str, tuple[type, ...]] = {}
    for member in members:
        origin = typing.get_origin(member) or member
        if origin is Literal:
            for word in typing.get_args(member):
                kinds["a word" if isinstance(word, str) else "true or false"] = (type(word),)
        elif isinstance(origin, type) and issubclass(origin, Enum):
            kinds["a word"] = (str,)
        elif origin in (int, float):
            kinds["a number"] = (int, float)
        elif origin in (bool, str):
            kinds["true or false" if origin is bool else "a word"] = (origin,)
        elif origin in (list, set, tuple):
            kinds["a list"] = (list,)
        elif origin is not NoneType:  # a mapping, or a configuration class that can be made from one
            kinds["a mapping"] = (dict,)
    is_boolean = isinstance(value, bool)
    if any(isinstance(value, types) and (not is_boolean or bool in types) for types in kinds.values()):
        if isinstance(value, str) and "a mapping" in kinds and not _is_file(value):
            return f"{name}: expected a mapping, or a JSON file that holds one; found {value!r}"
        return None
    return f"{name}: expected {' or '.join(sorted(kinds))}; found {_show(value)}"


def _is_file(text: str) -> bool:
    """Whether a text is JSON, or the path of a file."""
    return text.lstrip().startswith("{") or Path(text).is_file()


def _words(members: Iterable[Any]) -> set[str]:
    """The words that a type allows; empty if it allows any text."""
    words: set[str] = set()
    for member in members:
        if isinstance(member, type) and issubclass(member, Enum):
            words |= {str(each.value) for each in member}
        elif typing.get_origin(member) is Literal:
            words |= {word for word in typing.get_args(member) if isinstance(word, str)}
    return set() if any("[" in word for word in words) else words  # such as pissa_niter_[number of iters]


def _range_fault(name: str, value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    allowed = _RANGES.get(name, _AT_LEAST_0)
    if math.isfinite(value) and allowed.allows(value):
        return None
    return f"{name}: expected {allowed.describe(value)}; found {_show(value)}"


def _show(value: Any) -> str:
    return f"{value!r:.80}"


def path_fault(value: str) -> str | None:
    """What is wrong with a path, regardless of what exists on disk."""
    try:
        Path(value).expanduser()
    except RuntimeError:
        return f"{value} is in the home folder of a user who does not exist"
    return "a path cannot contain a null character" if "\0" in value else None
