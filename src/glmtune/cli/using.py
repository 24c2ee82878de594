"""chat, generate, merge and export: using a run."""

import sys
from typing import Annotated, Any, Literal

import typer

from glmtune.cli.options import (
    DtypeName,
    DtypeOption,
    FieldOption,
    ModelOption,
    OtherBaseOption,
    QuantizeOption,
    Run,
    Sampling,
    SystemOption,
    TemplateOption,
    WeightTypeName,
    not_empty,
    parse_fields,
    parse_options,
    unescape,
)
from glmtune.cli.setting_up import hide_loading_bars, load_run, outlive_display
from glmtune.errors import ConfigError
from glmtune.language import localise
from glmtune.language.terminal import TerminalConsole

app = typer.Typer()


@app.command()
def chat(
    run: Annotated[
        str | None,
        typer.Argument(
            callback=not_empty,
            help="A run folder, a checkpoint-N in one, or a base model folder; with --url, a model's name there.",
        ),
    ] = None,
    options: Sampling = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url", callback=not_empty, help="A server to talk to instead; its key is taken from GLMTUNE_API_KEY."
        ),
    ] = None,
    model: ModelOption = None,
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = "auto",
    system: SystemOption = None,
    template: TemplateOption = None,
) -> None:
    """Chat with a run or a base model in the terminal, or with a server."""
    if url is not None:
        _chat_with_server(url, run, options or [], system)
        return
    if run is None:
        raise ConfigError("chat needs a RUN, or --url with a server's address")
    from glmtune.inference.chat import Chat
    from glmtune.inference.options import check_options

    sampling = parse_options(options)
    check_options(sampling)
    loaded = load_run(run, model, dtype, quantize, system)
    conversation = Chat(
        loaded.model,
        loaded.tokenizer,
        template=template or loaded.template,
        system=loaded.system if system is None else system,
        **sampling,
    )
    _converse(conversation)


def _chat_with_server(url: str, model: str | None, options: list[str], system: str | None) -> None:
    from glmtune.server.client import RemoteChat

    if model is not None and "=" in model:  # the name was left out
        conversation = RemoteChat(url, None, system, **parse_options([model, *options]))
    else:
        conversation = RemoteChat(url, model, system, **parse_options(options))
    _converse(conversation)


def _converse(chat: Any) -> None:
    from glmtune.inference.terminal import run_terminal_chat

    are_answered = run_terminal_chat(chat, TerminalConsole(soft_wrap=True))
    if not are_answered and not sys.stdin.isatty():
        raise typer.Exit(1)  # for the script that asked


@app.command()
def generate(
    run: Run,
    options: Sampling = None,
    input_path: Annotated[
        str, typer.Option("--input", help="Questions: JSON, JSONL, CSV, or text with one per line.")
    ] = "",
    output_path: Annotated[
        str,
        typer.Option(
            "--output", help="File for the replies, .jsonl or .csv, in input order; an unfinished one is continued."
        ),
    ] = "",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="The most questions at once; by default what suits the device.")
    ] = None,
    model: ModelOption = None,
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = "auto",
    system: SystemOption = None,
    template: TemplateOption = None,
    field: FieldOption = None,
    join: Annotated[
        str | None, typer.Option("--join", help="Text between instruction and input, if not that of the run.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output instead of continuing it.")
    ] = False,
) -> None:
    """Answer a file of questions."""
    if not input_path or not output_path:
        raise ConfigError("generate needs both --input QUESTIONS and --output REPLIES.jsonl (or .csv)")
    from glmtune.inference.batch import check_generation_files, generate_file
    from glmtune.inference.generate import check_batch_size
    from glmtune.inference.options import check_options

    outlive_display()
    sampling = parse_options(options)
    check_options(sampling)
    check_batch_size(batch_size)
    check_generation_files(input_path, output_path, parse_fields(field))
    loaded = load_run(run, model, dtype, quantize, system)
    try:
        report = generate_file(
            loaded.model,
            loaded.tokenizer,
            input_path,
            output_path,
            template=template or loaded.template,
            system=loaded.system if system is None else system,
            batch_size=batch_size,
            fields=parse_fields(field),
            join=loaded.join if join is None else unescape(join),
            overwrite=overwrite,
            **sampling,
        )
    except KeyboardInterrupt:
        typer.echo(localise("Interrupted; run the same command again to continue."), err=True)
        raise
    typer.echo(localise(report.summary()))


@app.command()
def merge(
    run: Run,
    output: Annotated[str, typer.Option("--output", callback=not_empty, help="New folder for the merged model.")],
    model: ModelOption = None,
    dtype: Annotated[
        DtypeName, typer.Option("--dtype", help="Dtype of the merged weights; auto for the base's own.")
    ] = "auto",
    max_shard_size: Annotated[str, typer.Option("--max-shard-size", help="Maximum size of a weight file.")] = "5GB",
    other_base: OtherBaseOption = False,
) -> None:
    """Merge an adapter into its base: one folder in the official layout."""
    from glmtune.export.merge import merge as run_merge

    outlive_display()
    hide_loading_bars()
    with TerminalConsole(stderr=True).status("Merging and checking ..."):
        result = run_merge(
            run, output, model_path=model, dtype=dtype, max_shard_size=max_shard_size, other_base=other_base
        )
    typer.echo(localise(result.summary()))


@app.command()
def export(
    run: Run,
    to: Annotated[Literal["gguf"], typer.Option("--to", help="The format: gguf, for llama.cpp and Ollama.")] = "gguf",
    output: Annotated[
        str | None,
        typer.Option(
            "--output", callback=not_empty, help="The file; by default the run's name and the type, in this folder."
        ),
    ] = None,
    weight_type: Annotated[
        WeightTypeName | None,
        typer.Option("--type", help="How matrices are stored; by default f16, and f32 of an adapter alone."),
    ] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Write the adapter alone, for a file of its base.")] = False,
    ollama: Annotated[bool, typer.Option("--ollama", help="Write a Modelfile beside it, for Ollama.")] = False,
    model: ModelOption = None,
    other_base: OtherBaseOption = False,
) -> None:
    """Export a run, merged on the way, or a base model for other programs."""
    from glmtune.export.gguf_export import export_gguf

    outlive_display()
    with TerminalConsole(stderr=True).status("Exporting ..."):
        result = export_gguf(
            run,
            output,
            weight_type=weight_type,
            lora=lora,
            ollama=ollama,
            model_path=model,
            other_base=other_base,
        )
    typer.echo(localise(result.summary()))
