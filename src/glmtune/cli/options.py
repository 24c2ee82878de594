"""Options and arguments that several commands share, and parsing of their values."""

from typing import Annotated, Any, Literal

import typer

from glmtune.errors import ConfigError
from glmtune.prompts import Template

# Repeated here because the modules that define them take seconds to import; a test checks that they agree.
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
QuantizeName = Literal["auto", "none", "int8", "nf4", "fp8"]
WeightTypeName = Literal["f32", "f16", "bf16", "q8_0"]
OverlongName = Literal["cut", "drop"]
ComparedName = Literal["row", "question"]
TargetName = Literal["messages", "conversations", "sharegpt", "alpaca", "instruction", "qa"]
FaultyName = Literal["stop", "skip"]


def not_empty(value: Any) -> Any:
    """Refuses an empty argument, or one in a list, such as an unset shell variable gives."""
    if any(each is not None and not str(each).strip() for each in (value if isinstance(value, list) else [value])):
        raise ConfigError("an argument is empty; is a shell variable unset?")
    return value


Run = Annotated[
    str, typer.Argument(callback=not_empty, help="A run folder, a checkpoint-N in one, or a base model folder.")
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", callback=not_empty, help="Where the base model is now, if it has moved since the run."),
]
OtherBaseOption = Annotated[
    bool, typer.Option("--other-base", help="Go on even if the base is not the one that the adapter was trained on.")
]
DtypeOption = Annotated[
    DtypeName, typer.Option("--dtype", help="Dtype of the base; auto for one that suits the device.")
]
QuantizeOption = Annotated[
    QuantizeName, typer.Option("--quantize", help="Quantise the base; auto only if it does not fit otherwise.")
]
SystemOption = Annotated[str | None, typer.Option("--system", help='System prompt instead of the run\'s; "" for none.')]
TemplateOption = Annotated[Template | None, typer.Option("--template", help="Prompt format instead of the run's.")]
Sampling = Annotated[
    list[str] | None,
    typer.Argument(help="Sampling options by their transformers names, such as do_sample=true temperature=0.8."),
]
DataFiles = Annotated[
    list[str],
    typer.Argument(callback=not_empty, help="Data files, folders, patterns such as 'data/*.json', or a hub data set."),
]
FieldOption = Annotated[
    list[str] | None, typer.Option("--field", help="Map a column of another name: --field output=answer. Repeatable.")
]
JoinOption = Annotated[str, typer.Option("--join", help="Text between instruction and input.")]


def parse_options(options: list[str] | None) -> dict[str, Any]:
    """Parses `name=value` arguments, with values as in the configuration."""
    from glmtune.config.yaml_text import parse_value

    pairs = _pairs(options, "a sampling option, such as temperature=0.8")
    return {name: parse_value(value) for name, value in pairs.items()}


def parse_fields(fields: list[str] | None) -> dict[str, str]:
    """Parses `--field` options into a mapping from standard names to column names."""
    return _pairs(fields, "a column mapping, such as --field output=answer")


def _pairs(arguments: list[str] | None, what: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for argument in arguments or []:
        name, equals, value = argument.partition("=")
        if not name or not equals:
            raise ConfigError(f"{argument!r} is not {what}")
        name, value = name.strip(), value.strip()
        if name in pairs:
            raise ConfigError(f"{name} is given twice, as {pairs[name]} and as {value}. Keep one")
        pairs[name] = value
    return pairs


def unescape(text: str) -> str:
    """Turns `\\n` and `\\t`, which a shell can pass, into a newline and a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")
