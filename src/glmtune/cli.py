"""The `glmtune` command. Every handler imports what it needs itself, so that help and mistakes answer at once."""

import io
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from glmtune.errors import ConfigError, GlmtuneError, show_text
from glmtune.language import localise
from glmtune.language.command_line import localised_command, usage_fault
from glmtune.language.terminal import TerminalConsole, log_to_terminal

# Before torch is imported: memory in pieces that grow, of which less is lost between steps of different sizes.
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name of the same setting
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

app = typer.Typer(
    help="Fine-tune ChatGLM3-6B and its family with LoRA.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Check, show, count and convert data files.", no_args_is_help=True)
app.add_typer(data_app, name="data")


def _not_empty(value: Any) -> Any:
    """Refuses an argument that is given and empty, as an unset shell variable is."""
    if value is not None and not str(value).strip():
        raise ConfigError("an argument is empty; was a shell variable not set?")
    return value


Run = Annotated[
    str, typer.Argument(callback=_not_empty, help="A run folder, a checkpoint-N in one, or a base model folder.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", callback=_not_empty, help="Where the base model lies now, if the run remembers another place."
    ),
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
QuantizeOption = Annotated[
    str, typer.Option("--quantize", help="Hold the base in fewer bits: none, int8, nf4, fp8; auto for what fits.")
]
SystemOption = Annotated[str | None, typer.Option("--system", help='System prompt instead of the run\'s; "" for none.')]
TemplateOption = Annotated[
    str | None, typer.Option("--template", help="chatglm3, chatglm2 or tutorial instead of the run's.")
]
Sampling = Annotated[
    list[str] | None,
    typer.Argument(help="Sampling options by their transformers names, such as do_sample=true temperature=0.8."),
]
DataFiles = Annotated[list[str], typer.Argument(help="Data files, or a hub data set.")]
FieldOption = Annotated[
    list[str] | None, typer.Option("--field", help="A column of another name: --field output=answer. Repeatable.")
]
JoinOption = Annotated[str, typer.Option("--join", help="What stands between instruction and input.")]


@app.command()
def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG.yaml] [section.key=value ...]",
            help="A configuration file and changes to it. Without any, the demo's base and data are used.",
        ),
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="List the configuration keys and their defaults.")] = False,
) -> None:
    """Train a LoRA adapter.

    For example: glmtune train examples/chatglm3-6b.yaml data.path=train.json train.learning_rate=1e-4
    """
    from glmtune.config import describe_keys

    if keys:
        for key in describe_keys():
            typer.echo(f"{key.key:<38} {key.default!r:<28} {localise(key.description)}")
        return
    _outlive_display()
    config = _load_config(arguments)
    from glmtune.training.processes import is_first_process, leave_processes
    from glmtune.training.run import TrainingInterrupted
    from glmtune.training.run import train as run_training

    _hide_loading_bars()
    try:
        folder = run_training(config).output_dir
        message, code = f"Done: {folder}\n  glmtune chat {shlex.quote(str(folder))}", 0
    except TrainingInterrupted as interruption:
        message, code = str(interruption), 130
    finally:
        leave_processes()
    if is_first_process():
        typer.echo(localise(message), err=code != 0)
    raise typer.Exit(code)


@app.command()
def plan(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG.yaml] [section.key=value ...]", help="As for glmtune train."),
    ] = None,
    gpu_gib: Annotated[
        float | None,
        typer.Option(
            "--gpu-gib", help="Memory of the card to plan for, in GiB; what the GPU here has free if left out."
        ),
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option("--tflops", help="What the card computes in 16 bits; for the time, else the GPU's here, or 50."),
    ] = None,
) -> None:
    """Say what a run will take of the GPU, how long, and with which settings it fits.

    For example: glmtune plan examples/chatglm3-6b.yaml data.path=train.json --gpu-gib 8
    """
    from glmtune.config import say_base
    from glmtune.planning.card import plan_for_card
    from glmtune.planning.planned import CONTEXT_GIB
    from glmtune.planning.report import print_plan

    if gpu_gib is not None and not CONTEXT_GIB < gpu_gib < 1e6:
        raise ConfigError(
            f"--gpu-gib: expected a number above {CONTEXT_GIB}, what CUDA itself takes; found {gpu_gib:g}"
        )
    if tflops is not None and not 0 < tflops < 1e6:
        raise ConfigError(f"--tflops: expected a number above 0; found {tflops:g}")

    config = _load_config(arguments)
    stats, planned = plan_for_card(config, gpu_gib, tflops)
    console = TerminalConsole()
    console.print(say_base(config.model.path), markup=False, highlight=False, soft_wrap=True)
    for line in stats.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    print_plan(planned, console)
    planned.check()


@app.command()
def chat(
    run: Run,
    options: Sampling = None,
    model: ModelOption = None,
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = "auto",
    system: SystemOption = None,
    template: TemplateOption = None,
) -> None:
    """Chat with a run or a base model in the terminal."""
    from glmtune.inference.chat import Chat
    from glmtune.inference.terminal import run_terminal_chat

    loaded = _load(run, model, dtype, quantize)
    conversation = Chat(
        loaded.model,
        loaded.tokenizer,
        template=_template(template) or loaded.template,
        system=loaded.system if system is None else system,
        **_parse_options(options),
    )
    run_terminal_chat(conversation, TerminalConsole(soft_wrap=True))


@app.command()
def generate(
    run: Run,
    options: Sampling = None,
    input_path: Annotated[str, typer.Option("--input", help="Questions: JSON, JSONL, CSV, or text, one a line.")] = "",
    output_path: Annotated[
        str, typer.Option("--output", help="Replies, JSONL, in input order; continued if begun.")
    ] = "",
    batch_size: Annotated[int, typer.Option("--batch-size", help="Questions answered at once.")] = 8,
    model: ModelOption = None,
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = "auto",
    system: SystemOption = None,
    template: TemplateOption = None,
    field: FieldOption = None,
    join: Annotated[
        str | None, typer.Option("--join", help="What stands between instruction and input, if not what the run had.")
    ] = None,
) -> None:
    """Answer a file of questions."""
    if not input_path or not output_path:
        raise ConfigError("generate needs both --input QUESTIONS and --output REPLIES.jsonl")
    from glmtune.inference.batch import check_generation_files, generate_file

    _outlive_display()
    check_generation_files(input_path, output_path, _parse_fields(field))
    loaded = _load(run, model, dtype, quantize)
    try:
        report = generate_file(
            loaded.model,
            loaded.tokenizer,
            input_path,
            output_path,
            template=_template(template) or loaded.template,
            system=loaded.system if system is None else system,
            batch_size=batch_size,
            fields=_parse_fields(field),
            join=loaded.join if join is None else _unescape(join),
            **_parse_options(options),
        )
    except KeyboardInterrupt:
        typer.echo(localise("Interrupted; run the same command again to go on."), err=True)
        raise
    typer.echo(localise(report.summary()))


@app.command()
def merge(
    run: Run,
    output: Annotated[str, typer.Option("--output", callback=_not_empty, help="The new folder.")],
    model: ModelOption = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Type of the merged weights; auto is the base's own.")] = "auto",
    max_shard_size: Annotated[str, typer.Option("--max-shard-size", help="Largest weight file.")] = "5GB",
) -> None:
    """Merge an adapter into its base: one folder in the official layout."""
    from glmtune.export.merge import merge as run_merge

    _outlive_display()
    _hide_loading_bars()
    with TerminalConsole(stderr=True).status("Merging and checking ..."):
        result = run_merge(run, output, model_path=model, dtype=_dtype(dtype), max_shard_size=max_shard_size)
    typer.echo(localise(result.summary()))


@data_app.command()
def check(files: DataFiles, field: FieldOption = None, join: JoinOption = "\\n") -> None:
    """Report all faults of data files, with row numbers."""
    from glmtune.data import inspect

    inspect.check(files, fields=_parse_fields(field), join=_unescape(join), console=TerminalConsole())


@data_app.command()
def show(
    files: DataFiles,
    model: Annotated[
        str | None,
        typer.Option("--model", callback=_not_empty, help="The base model; the tiny built-in one if left out."),
    ] = None,
    template: TemplateOption = None,
    system: SystemOption = None,
    max_length: Annotated[int | None, typer.Option("--max-length", min=8, help="As data.max_length.")] = 512,
    start: Annotated[int, typer.Option("--start", min=1, help="The first row to show, from 1.")] = 1,
    count: Annotated[int, typer.Option("--count", min=1, help="How many.")] = 3,
    field: FieldOption = None,
    join: JoinOption = "\\n",
) -> None:
    """Print samples token by token, what is learnt in colour."""
    from glmtune.adapters.inheritance import prompt_record
    from glmtune.data import inspect

    tokenizer = _load_tokenizer(model)
    inspect.show(
        files,
        tokenizer,
        template=_template(template) or prompt_record(None, model, tokenizer).template,
        system=system,
        max_length=max_length,
        start=start,
        num_samples=count,
        fields=_parse_fields(field),
        join=_unescape(join),
        console=TerminalConsole(),
    )


@data_app.command()
def stats(
    files: DataFiles,
    model: Annotated[
        str | None, typer.Option("--model", callback=_not_empty, help="Count its tokens; without it, characters.")
    ] = None,
    template: TemplateOption = None,
    system: SystemOption = None,
    max_length: Annotated[int | None, typer.Option("--max-length", min=8, help="As data.max_length.")] = 512,
    field: FieldOption = None,
    join: JoinOption = "\\n",
) -> None:
    """Print counts and a histogram of lengths."""
    from glmtune.adapters.inheritance import prompt_record
    from glmtune.data import inspect

    tokenizer = _load_tokenizer(model) if model else None
    inspect.stats(
        files,
        tokenizer,
        template=_template(template) or (prompt_record(None, model, tokenizer).template if tokenizer else "chatglm3"),
        system=system,
        max_length=max_length,
        fields=_parse_fields(field),
        join=_unescape(join),
        console=TerminalConsole(),
    )


@data_app.command()
def convert(
    files: DataFiles,
    output: Annotated[str, typer.Option("--output", callback=_not_empty, help="The JSONL file to write.")],
    field: FieldOption = None,
    join: JoinOption = "\\n",
) -> None:
    """Write any readable format as `messages`, one JSON object a line."""
    from glmtune.data import inspect

    inspect.convert(files, output, fields=_parse_fields(field), join=_unescape(join), console=TerminalConsole())


@app.command()
def env() -> None:
    """Print versions and devices, for a bug report."""
    import torch

    from glmtune.adapters.run_folder import current_versions

    for package, version in current_versions().items():
        typer.echo(f"{package:<14}{version}")
    if not torch.cuda.is_available():
        typer.echo(f"{'device':<14}{localise(f'CPU, {os.cpu_count()} cores')}")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        typer.echo(f"{f'cuda:{index}':<14}{properties.name}, {properties.total_memory / 2**30:.1f} GiB")


@app.command()
def demo(
    output: Annotated[
        str, typer.Option("--output", callback=_not_empty, help="Where the run and the merged model go.")
    ] = "demo-output",
) -> None:
    """Train, compare and merge on the built-in tiny base."""
    from glmtune.demo import run_demo

    _outlive_display()
    _hide_loading_bars()
    run_demo(Path(output), TerminalConsole())


def _load_config(arguments: list[str] | None) -> Any:
    """The configuration of a file, if the first argument is one, and the overrides behind it."""
    from glmtune.config import load_config

    given = arguments or []
    has_file = bool(given) and "=" not in given[0]
    return load_config(given[0] if has_file else None, given[1:] if has_file else given)


def _outlive_display() -> None:
    """For commands whose work is in files: they go on when their terminal is closed, or nobody reads their output."""
    from glmtune.training.display import surviving

    sys.stdout, sys.stderr = surviving(sys.stdout), surviving(sys.stderr)


def _hide_loading_bars() -> None:
    """transformers draws a bar for every load; ours say what is being loaded."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _load(run: str, model: str | None, dtype: str, quantize: str) -> Any:
    from glmtune.loading.runs import load

    checked_dtype: Any = _dtype(dtype)
    if quantize not in ("auto", "none", "int8", "nf4", "fp8"):
        raise ConfigError(f"--quantize: expected auto, none, int8, nf4 or fp8; found {quantize!r}")
    _hide_loading_bars()
    with TerminalConsole(stderr=True).status("Loading the model ..."):
        loaded = load(run, model_path=model, dtype=checked_dtype, quantize=quantize)  # type: ignore[arg-type]
    typer.echo(localise(f"base: {loaded.base_path}; adapter: {loaded.adapter_path or 'none'}"), err=True)
    return loaded


def _load_tokenizer(model: str | None) -> Any:
    from glmtune.config import embedded_base
    from glmtune.loading.bases import load_tokenizer

    return load_tokenizer(model or embedded_base())


def _dtype(name: str) -> Any:
    if name not in ("auto", "float32", "bfloat16", "float16"):
        raise ConfigError(f"--dtype: expected auto, float32, bfloat16 or float16; found {name!r}")
    return name


def _template(name: str | None) -> Any:
    from glmtune.prompts import TEMPLATES

    if name is not None and name not in TEMPLATES:
        raise ConfigError(f"--template: expected one of {', '.join(TEMPLATES)}; found {name!r}")
    return name


def _parse_options(options: list[str] | None) -> dict[str, Any]:
    """`name=value` arguments, values read as those of the configuration are."""
    from glmtune.yaml_text import parse_value

    pairs = _pairs(options, "a sampling option, such as temperature=0.8")
    return {name: parse_value(value) for name, value in pairs.items()}


def _parse_fields(fields: list[str] | None) -> dict[str, str]:
    return _pairs(fields, "a column mapping, such as --field output=answer")


def _pairs(arguments: list[str] | None, what: str) -> dict[str, str]:
    pairs = {}
    for argument in arguments or []:
        name, equals, value = argument.partition("=")
        if not name or not equals:
            raise ConfigError(f"{argument!r} is not {what}")
        pairs[name.strip()] = value.strip()
    return pairs


def _unescape(text: str) -> str:
    """A newline as a shell can pass it."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def main() -> None:
    """Runs the command line: faults of the user's making are one message without a traceback."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a standard stream that was closed, whose number a file of ours must not get
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding shows ? for what it cannot
            stream.reconfigure(errors="replace")
    log_to_terminal()
    try:
        sys.exit(localised_command(app)(standalone_mode=False))
    except GlmtuneError as error:
        _print_error(str(error))
        sys.exit(1)
    except typer.TyperException as error:
        if fault := usage_fault(error):
            _print_error(fault)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _print_error(fault: str) -> None:
    message = "\n".join(show_text(line) for line in f"Error: {fault}".split("\n"))
    TerminalConsole(stderr=True, soft_wrap=True).print(message, style="red", markup=False, highlight=False)


if __name__ == "__main__":
    main()
