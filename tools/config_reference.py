"""Writes docs/reference/configuration.md and its English twin from the configuration's own code.

    python tools/config_reference.py           write the pages
    python tools/config_reference.py --check   fail if they are not what would be written

The Chinese texts are in config_reference_zh.yaml, by the English ones that they translate: where a description in the
code changes, its translation is missing until somebody writes it.
"""

import re
import sys
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from peft import LoraConfig
from transformers import TrainingArguments

from glmtune.config import OFTEN_SET, RunConfig, describe_keys
from glmtune.config.keys import OWN_TRAIN_HINTS
from glmtune.config.other_names import NO_SUCH_SETTING, OTHER_NAMES, OTHER_SECTIONS
from glmtune.config.refused_keys import REFUSED_KEYS
from glmtune.config.replaced_keys import REPLACED_KEYS
from glmtune.models.families import FAMILIES

ROOT = Path(__file__).parents[1]
PAGES = {"zh": "docs/reference/configuration.md", "en": "docs/reference/configuration.en.md"}
CATALOGUE = Path(__file__).with_name("config_reference_zh.yaml")
MESSAGES = ROOT / "src" / "glmtune" / "language" / "zh.yaml"

# What these take is not what their annotations say.
OWN_TYPES = {
    "lora.init_lora_weights": "true, false, text",
    "lora.target_modules": "`auto`, text, list",
    "train.gradient_checkpointing": "`auto`, true, false, whole number",
    "train.resume_from_checkpoint": "true, text",
}
TYPE_NAMES = {bool: "true, false", int: "whole number", float: "number", str: "text", dict: "mapping", list: "list"}
RANKS = {name: rank for rank, name in enumerate(TYPE_NAMES.values())}

INTRO = {
    "zh": "每个键可以写在 YAML 文件里对应的小节下面，也可以在命令行写成 `section.key=value`，以命令行为准。"
    "`lora` 和 `train` 下面用的是 PEFT 的 `LoraConfig` 和 transformers 的 `TrainingArguments` 的参数名，原样交给它们；"
    "这里没有列出的参数也可以写，下面说明不接受的除外。写错的键会报错，并给出最接近的正确写法。"
    "`glmtune train --keys` 按用途列出常用的键。\n\n本页由 `tools/config_reference.py` 根据代码生成。",
    "en": """\
A key can be set in the YAML file, under its section, or on the command line as `section.key=value`; the command line
takes precedence. Keys under `lora` and `train` are the names of PEFT's `LoraConfig` and transformers'
`TrainingArguments` and are passed on to them; their other parameters may be set too, except those refused below. An
unknown key is an error that names the nearest known one. `glmtune train --keys` prints the usual keys by topic.

This page is generated from the code by `tools/config_reference.py`.""",
}
SECTIONS = {
    "model": "The base model.",
    "data": "The training data.",
    "prompt": "Prompt format and system prompt.",
    "lora": "The adapter: names of `peft.LoraConfig`.",
    "train": "The training loop: names of `transformers.TrainingArguments`, and a few of glmtune's own.",
}
REFUSED = "Some settings would not do here what they say. Giving one a value is an error:"
REPLACED = "These are names from older versions of transformers, or from other tools. The error says what to write:"
ELSEWHERE = (
    "Names from LLaMA-Factory, ms-swift, Axolotl, alpaca-lora and the official demos, in whichever section they are "
    "written:"
)
TARGETS = "What `lora.target_modules=auto` means, by the `model_type` in the base's `config.json`:"
OPTIM = "schedule_free, lomo and adalomo need a training loop of their own."


def load_catalogue() -> dict[str, str]:
    """The Chinese text of each English one: what the command line says, and what is on these pages alone."""
    messages = yaml.safe_load(MESSAGES.read_text(encoding="utf-8"))["glmtune"]
    return {**messages, **yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))}


def chinese(catalogue: dict[str, str], missing: set[str]) -> Callable[[str], str]:
    """A function that translates; what it has no text for, it adds to `missing`."""

    def translate(text: str) -> str:
        if text in catalogue:
            return catalogue[text]
        if plain := re.fullmatch(r"use (\S+)", text):
            return f"改用 {plain[1]}"
        missing.add(text)
        return text

    return translate


def type_parts(hint: Any) -> list[str]:
    """What an annotation takes, without None."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return [f"`{member}`" for member in members]
    if origin in (typing.Union, types.UnionType):
        parts = [part for member in members if member is not type(None) for part in type_parts(member)]
        # Python may keep one order for equal unions, that of the one which was made first.
        return sorted(dict.fromkeys(parts), key=lambda part: (not part.startswith("`"), RANKS.get(part, 0)))
    if origin is typing.Annotated:
        return type_parts(members[0])
    plain = origin or hint
    if isinstance(plain, type):
        found = next((name for kind, name in TYPE_NAMES.items() if issubclass(plain, kind)), None)
        return [found or "text"]  # an enumeration is written as text
    return ["text"]


def type_of(key: str) -> str:
    """What a key takes, in words."""
    if key in OWN_TYPES:
        return OWN_TYPES[key]
    section, name = key.split(".")
    if section in ("lora", "train"):
        target = LoraConfig if section == "lora" else TrainingArguments
        hint = typing.get_type_hints(target).get(name) or OWN_TRAIN_HINTS[name]
    else:
        hint = RunConfig.model_fields[section].annotation.model_fields[name].annotation
    return ", ".join(type_parts(hint))


def default_of(key: str) -> Any:
    """The default of a key that is passed on, as its class has it."""
    if key == "train.per_device_eval_batch_size":
        return None  # glmtune's own: that of training
    section, name = key.split(".")
    default = (LoraConfig if section == "lora" else TrainingArguments).__dataclass_fields__[name].default
    return getattr(default, "value", default)


def show_default(value: Any, translate: Callable[[str], str]) -> str:
    """A default, as YAML writes it."""
    if value is None or value == {} or value == "":
        return translate("none")
    if isinstance(value, float) and 0 < value < 1e-3:
        mantissa, exponent = f"{value:e}".split("e")
        return f"`{float(mantissa):g}e{int(exponent)}`"
    if isinstance(value, str):
        return f"`{value}`" if value.strip() else '`"\\n"`'
    return f"`{yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}`"


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    headings = list(headings)
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def family_targets() -> str:
    """What each family adapts by default, as a list."""
    named = {each.config_class.model_type: ", ".join(f"`{name}`" for name in each.lora_targets) for each in FAMILIES}
    return "\n".join(f"- `{model_type}`: {targets}" for model_type, targets in named.items())


def write_page(intro: str, translate: Callable[[str], str]) -> str:
    """One page.

    Args:
        intro: What stands above the tables.
        translate: Turns an English text into one of the page's language.
    """
    described = [(key, default, text) for key, (default, text) in describe_keys().items()]
    described += [(key, default_of(key), text) for key, (_, text) in OFTEN_SET.items()]
    page = [f"# {translate('Configuration')}", intro]
    headings = [translate(heading) for heading in ("key", "type", "default", "what it does")]
    for section, about in SECTIONS.items():
        rows = [
            [
                f"`{key}`",
                show_type(type_of(key), translate),
                show_default(default, translate),
                as_code(translate(text)),
            ]
            for key, default, text in described
            if key.startswith(f"{section}.")
        ]
        page += [f"## {section}", translate(about), table(headings, rows)]
        if section == "lora":
            page += [translate(TARGETS), family_targets()]
    refused = [[f"`{key}`", as_code(translate(text))] for key, text in REFUSED_KEYS.items()]
    refused.append(["`train.optim`", as_code(translate(OPTIM))])
    page += [f"## {translate('What is refused')}", translate(REFUSED)]
    page.append(table([translate("key"), translate("why")], refused))
    replaced = [
        [f"`{section}.{key}`", as_code(translate(text))]
        for section, keys in REPLACED_KEYS.items()
        for key, text in keys.items()
    ]
    page += [f"## {translate('Names from elsewhere')}", translate(REPLACED)]
    page.append(table([translate("not"), translate("but")], replaced))
    page += [translate(ELSEWHERE), table([translate("not"), translate("but")], write_other_names(translate))]
    return "\n\n".join(page) + "\n"


def write_other_names(translate: Callable[[str], str]) -> list[list[str]]:
    """Rows for the names of other tools, those with the same counterpart in one row."""
    by_advice: dict[str, list[str]] = {}
    for names in (OTHER_SECTIONS, OTHER_NAMES):
        for name, ours in names.items():
            by_advice.setdefault(f"`{ours}`", []).append(f"`{name}`")
    for name, advice in NO_SUCH_SETTING.items():
        by_advice.setdefault(as_code(translate(advice)), []).append(f"`{name}`")
    return [[", ".join(names), advice] for advice, names in by_advice.items()]


def show_type(text: str, translate: Callable[[str], str]) -> str:
    """A type in the page's language: its values as code, its words as words."""
    shown = []
    for part in text.split(", "):
        is_value = part.startswith("`") or part in ("true", "false")
        shown.append(f"`{part.strip('`')}`" if is_value else translate(part))
    return " / ".join(shown)


def as_code(text: str) -> str:
    """Full keys within a description, and settings of one, set as code."""
    return re.sub(r"(?<![`\w.])((?:model|data|prompt|lora|train)\.[\w.]+(?:=[\w.\[\]]+)?)(?<!\.)", r"`\1`", text)


def make_pages() -> tuple[dict[str, str], set[str]]:
    """Both pages by language, and the English texts that have no Chinese one."""
    missing: set[str] = set()
    translate = chinese(load_catalogue(), missing)
    pages = {"zh": write_page(INTRO["zh"], translate), "en": write_page(INTRO["en"], lambda text: text)}
    return pages, missing


def main() -> None:
    """Writes the pages, or checks them."""
    pages, missing = make_pages()
    if missing:
        texts = "\n".join(f"  {text!r}" for text in sorted(missing))
        sys.exit(f"{CATALOGUE.name} has no Chinese for:\n{texts}")
    for language, text in pages.items():
        path = ROOT / PAGES[language]
        if "--check" in sys.argv[1:]:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                sys.exit(f"{PAGES[language]} is out of date; run python tools/config_reference.py")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
