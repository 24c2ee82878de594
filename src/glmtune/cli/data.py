"""glmtune data: check, show, stats and convert."""

from typing import Annotated, Any

import typer

from glmtune.cli import selecting
from glmtune.cli.options import (
    DataFiles,
    FaultyName,
    FieldOption,
    JoinOption,
    OverlongName,
    SystemOption,
    TargetName,
    TemplateOption,
    not_empty,
    parse_fields,
    unescape,
)
from glmtune.cli.setting_up import tokenizer_of
from glmtune.errors import ConfigError
from glmtune.language.terminal import TerminalConsole

app = typer.Typer(help="Check, show, count, convert and select data.", no_args_is_help=True)
app.add_typer(selecting.app)


@app.command()
def check(
    files: DataFiles,
    evaluation: Annotated[
        list[str] | None,
        typer.Option("--eval", callback=not_empty, help="Data to evaluate on: none of it should be in the others."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", callback=not_empty, help="Base model whose tokenizer tells how much is cut off and learnt."
        ),
    ] = None,
    template: TemplateOption = None,
    system: SystemOption = None,
    max_length: Annotated[int | None, typer.Option("--max-length", min=8, help="As data.max_length.")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, for programs.")] = False,
    field: FieldOption = None,
    join: JoinOption = "\\n",
) -> None:
    """Report all errors in data files, with row numbers, and what else is worth a look."""
    from glmtune.adapters.inheritance import prompt_record
    from glmtune.data import checking

    tokenizer = tokenizer_of(model) if model else None
    settings: dict[str, Any] = {
        "fields": parse_fields(field),
        "join": unescape(join),
        "eval_paths": evaluation,
        "tokenizer": tokenizer,
        "template": template or (prompt_record(None, model, tokenizer).template if tokenizer else "chatglm3"),
        "system": system,
        "max_length": max_length,
    }
    if not as_json:
        checking.check(files, **settings, console=TerminalConsole())
        return
    result = checking.examine(files, **settings)
    typer.echo(checking.to_json(result))
    if result.faults:
        raise typer.Exit(1)


@app.command()
def show(
    files: DataFiles,
    model: Annotated[
        str | None,
        typer.Option("--model", callback=not_empty, help="The base model; the tiny built-in one if left out."),
    ] = None,
    template: TemplateOption = None,
    system: SystemOption = None,
    max_length: Annotated[int | None, typer.Option("--max-length", min=8, help="As data.max_length.")] = 512,
    start: Annotated[int, typer.Option("--start", min=1, help="The first row to show, counting from 1.")] = 1,
    count: Annotated[int, typer.Option("--count", min=1, help="How many samples to show.")] = 3,
    field: FieldOption = None,
    join: JoinOption = "\\n",
) -> None:
    """Print samples token by token, with what is learnt in colour."""
    from glmtune.adapters.inheritance import prompt_record
    from glmtune.data import inspection

    tokenizer = tokenizer_of(model)
    inspection.show(
        files,
        tokenizer,
        template=template or prompt_record(None, model, tokenizer).template,
        system=system,
        max_length=max_length,
        start=start,
        num_samples=count,
        fields=parse_fields(field),
        join=unescape(join),
        console=TerminalConsole(),
    )


@app.command()
def stats(
    files: DataFiles,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            callback=not_empty,
            help="Base model whose tokenizer counts tokens; without it, characters are counted.",
        ),
    ] = None,
    template: TemplateOption = None,
    system: SystemOption = None,
    max_length: Annotated[int | None, typer.Option("--max-length", min=8, help="As data.max_length.")] = 512,
    overlong: Annotated[OverlongName, typer.Option("--overlong", help="As data.overlong.")] = "cut",
    eval_fraction: Annotated[
        float, typer.Option("--eval-fraction", min=0.0, max=0.99, help="As data.eval_fraction: also show the split.")
    ] = 0.0,
    html: Annotated[
        str | None, typer.Option("--html", callback=not_empty, help="Write a page with all this and more.")
    ] = None,
    field: FieldOption = None,
    join: JoinOption = "\\n",
) -> None:
    """Print counts and a histogram of lengths, or write a page about the data."""
    if html is not None and eval_fraction:
        raise ConfigError("--eval-fraction is shown in the terminal only; leave it out, or --html")
    from glmtune.adapters.inheritance import prompt_record
    from glmtune.data import inspection

    tokenizer = tokenizer_of(model) if model else None
    settings: dict[str, Any] = {
        "tokenizer": tokenizer,
        "template": template or (prompt_record(None, model, tokenizer).template if tokenizer else "chatglm3"),
        "system": system,
        "max_length": max_length,
        "overlong": overlong,
        "fields": parse_fields(field),
        "join": unescape(join),
    }
    if html is None:
        inspection.stats(files, **settings, eval_fraction=eval_fraction, console=TerminalConsole())
        return
    from glmtune.data.stats_page import write_stats_page

    write_stats_page(files, html, **settings)
    TerminalConsole(soft_wrap=True).print(f"page: {html}", highlight=False)


@app.command()
def convert(
    files: DataFiles,
    to: Annotated[
        TargetName,
        typer.Option("--to", help="A format to write; instruction and qa are made from each other, by rules."),
    ] = "messages",
    output: Annotated[
        str | None, typer.Option("--output", callback=not_empty, help="The JSON or JSONL file to write.")
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Show ten rows before and after, and write nothing.")
    ] = False,
    faulty: Annotated[FaultyName, typer.Option("--faulty", help="As data.faulty.")] = "stop",
    field: FieldOption = None,
    join: JoinOption = "\\n",
) -> None:
    """Write data in another format, and say what cannot be kept."""
    if output is None and not preview:
        raise ConfigError("data convert needs --output FILE, or --preview to write nothing")
    console = TerminalConsole()
    if to == "instruction" or to == "qa":
        from glmtune.data.conversion import convert as conversion

        if preview or output is None:
            conversion.preview(files, to, fields=parse_fields(field), console=console)
        else:
            conversion.convert_file(files, output, to, fields=parse_fields(field), console=console)
        return
    from glmtune.data.convert import convert as write_converted

    if output is None or preview:
        raise ConfigError("--preview is for --to instruction and --to qa; other formats need --output FILE")
    write_converted(
        files, output, fields=parse_fields(field), join=unescape(join), to=to, faulty=faulty, console=console
    )
