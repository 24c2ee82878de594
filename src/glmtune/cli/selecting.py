"""glmtune data: dedupe, split, sample and merge."""

from typing import Annotated

import typer

from glmtune.cli.options import ComparedName, DataFiles, FieldOption, JoinOption, not_empty, parse_fields, unescape
from glmtune.language.terminal import TerminalConsole

app = typer.Typer()

_Output = Annotated[str, typer.Option("--output", callback=not_empty, help="The JSON or JSONL file to write.")]
_Seed = Annotated[int, typer.Option("--seed", help="Decides which rows are drawn.")]
_Threshold = Annotated[
    float, typer.Option("--threshold", help="How similar near-duplicates are at least, from 0 to 1.")
]


@app.command()
def dedupe(
    files: DataFiles,
    output: _Output,
    compare: Annotated[
        ComparedName, typer.Option("--by", help="What is compared: whole rows, or questions alone.")
    ] = "row",
    near: Annotated[bool, typer.Option("--near/--exact", help="Near-duplicates too, or exact ones only.")] = True,
    threshold: _Threshold = 0.8,
    removed: Annotated[
        str | None, typer.Option("--removed", callback=not_empty, help="A file for the rows that are removed.")
    ] = None,
    field: FieldOption = None,
    join: JoinOption = "\\n",
) -> None:
    """Remove rows that say what an earlier one says."""
    from glmtune.data import selection

    selection.dedupe(
        files,
        output,
        fields=parse_fields(field),
        join=unescape(join),
        compare=compare,
        near=near,
        threshold=threshold,
        removed=removed,
        console=TerminalConsole(),
    )


@app.command()
def split(
    files: DataFiles,
    output: Annotated[str, typer.Option("--output", callback=not_empty, help="The folder for train and eval files.")],
    fraction: Annotated[
        float | None, typer.Option("--fraction", help="Share of the rows for evaluation; 0.05 unless given.")
    ] = None,
    number: Annotated[int | None, typer.Option("--count", help="How many rows are for evaluation, instead.")] = None,
    seed: _Seed = 42,
    threshold: _Threshold = 0.7,
    field: FieldOption = None,
    join: JoinOption = "\\n",
) -> None:
    """Split rows into training and evaluation, with near-duplicates on one side."""
    from glmtune.data import selection

    selection.split(
        files,
        output,
        fields=parse_fields(field),
        join=unescape(join),
        fraction=fraction,
        number=number,
        seed=seed,
        threshold=threshold,
        console=TerminalConsole(),
    )


@app.command()
def sample(
    files: DataFiles,
    output: _Output,
    fraction: Annotated[float | None, typer.Option("--fraction", help="Which share of the rows.")] = None,
    number: Annotated[int | None, typer.Option("--count", help="How many rows.")] = None,
    seed: _Seed = 42,
    field: FieldOption = None,
) -> None:
    """Draw rows at random."""
    from glmtune.data import selection

    selection.sample(
        files,
        output,
        fields=parse_fields(field),
        fraction=fraction,
        number=number,
        seed=seed,
        console=TerminalConsole(),
    )


@app.command()
def merge(files: DataFiles, output: _Output, seed: _Seed = 42, field: FieldOption = None) -> None:
    """Mix files by weight: general.json:0.2 takes a fifth of its rows, mine.json all."""
    from glmtune.data import selection

    selection.merge(files, output, fields=parse_fields(field), seed=seed, console=TerminalConsole())
