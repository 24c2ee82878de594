"""Options and arguments that several commands have, and how their values are read."""

from typing import Annotated, Any, Literal

import typer

from glmtune.errors import ConfigError

# Spelt out here, since the modules that define them take seconds to import; a test holds them to those.
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
QuantizeName = Literal["auto", "none", "int8", "nf4", "fp8"]
TemplateName = Literal["chatglm3", "chatglm2", "tutorial"]
TargetName = Literal["messages", "instruction", "qa"]


def not_empty(value: Any) -> Any:
    """Refuses an argument that is given and empty, as an unset shell variable is."""
    if value is not None and not str(value).strip():
        raise ConfigError("an argument is empty; was a shell variable not set?")
    return value


Run = Annotated[
    str, typer.Argument(callback=not_empty, help="A run folder, a checkpoint-N in one, or a base model folder.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", callback=not_empty, help="Where the base model lies now, if the run remembers another place."
    ),
]
DtypeOption = Annotated[DtypeName, typer.Option("--dtype", help="Type of the base; auto for what the device computes.")]
QuantizeOption = Annotated[
    QuantizeName, typer.Option("--quantize", help="Hold the base in fewer bits; auto for what fits.")
]
SystemOption = Annotated[str | None, typer.Option("--system", help='System prompt instead of the run\'s; "" for none.')]
TemplateOption = Annotated[TemplateName | None, typer.Option("--template", help="Prompt format instead of the run's.")]
Sampling = Annotated[
    list[str] | None,
    typer.Argument(help="Sampling options by their transformers names, such as do_sample=true temperature=0.8."),
]
DataFiles = Annotated[list[str], typer.Argument(help="Data files, or a hub data set.")]
FieldOption = Annotated[
    list[str] | None, typer.Option("--field", help="A column of another name: --field output=answer. Repeatable.")
]
JoinOption = Annotated[str, typer.Option("--join", help="What stands between instruction and input.")]


def parse_options(options: list[str] | None) -> dict[str, Any]:
    """`name=value` arguments, values read as those of the configuration are."""
    from glmtune.config.yaml_text import parse_value

    pairs = _pairs(options, "a sampling option, such as temperature=0.8")
    return {name: parse_value(value) for name, value in pairs.items()}


def parse_fields(fields: list[str] | None) -> dict[str, str]:
    """`--field` options: column names by what they stand for."""
    return _pairs(fields, "a column mapping, such as --field output=answer")


def _pairs(arguments: list[str] | None, what: str) -> dict[str, str]:
    pairs = {}
    for argument in arguments or []:
        name, equals, value = argument.partition("=")
        if not name or not equals:
            raise ConfigError(f"{argument!r} is not {what}")
        pairs[name.strip()] = value.strip()
    return pairs


def unescape(text: str) -> str:
    """A newline as a shell can pass it."""
    return text.replace("\\n", "\n").replace("\\t", "\t")
