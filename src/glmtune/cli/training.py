"""train and plan."""

from typing import Annotated

import typer

from glmtune.cli.options import not_empty
from glmtune.cli.setting_up import hide_loading_bars, outlive_display, read_config
from glmtune.errors import ConfigError
from glmtune.language import localise
from glmtune.language.terminal import TerminalConsole

app = typer.Typer()


@app.command()
def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG.yaml] [section.key=value ...]",
            help="A configuration file, or demo for the demo's, and overrides. Without any, the demo's base and data "
            "are used.",
        ),
    ] = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="List the usual configuration keys by topic, with their defaults.")
    ] = False,
) -> None:
    """Train a LoRA adapter.

    For example: glmtune train examples/chatglm3-6b.yaml data.path=train.json train.learning_rate=1e-4
    """
    if keys:
        _list_keys()
        return
    outlive_display()
    config = read_config(arguments)
    from glmtune.training.processes import is_first_process, leave_processes
    from glmtune.training.run import TrainingInterrupted
    from glmtune.training.run import train as run_training
    from glmtune.training.summary import closing_lines

    hide_loading_bars()
    try:
        message, code = "\n".join(closing_lines(run_training(config))), 0
    except TrainingInterrupted as interruption:
        message, code = str(interruption), 130
    finally:
        leave_processes()
    if is_first_process():
        typer.echo(localise(message), err=code != 0)
    raise typer.Exit(code)


def _list_keys() -> None:
    """Prints the usual keys by topic."""
    from glmtune.config import grouped_keys
    from glmtune.config.yaml_text import spell_value

    for topic, keys in grouped_keys().items():
        typer.echo(localise(topic))
        for key, (default, description) in keys.items():
            typer.echo(f"  {key:<35} {spell_value(default):<18} {localise(description)}")
        typer.echo()
    typer.echo(
        localise("Any other parameter of LoraConfig (lora.NAME) or TrainingArguments (train.NAME) may be set too.")
    )


@app.command()
def plan(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG.yaml] [section.key=value ...]", help="As for glmtune train."),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            callback=not_empty,
            help="The card to plan for, such as 4090, A100-80G or T4; by default, the GPU here.",
        ),
    ] = None,
    gpu_gib: Annotated[
        float | None,
        typer.Option(
            "--gpu-gib", help="Memory of the card to plan for, in GiB; by default, the free memory of the GPU here."
        ),
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option("--tflops", help="What the card reaches in 16 bits, in TFLOP/s, if you have measured it."),
    ] = None,
) -> None:
    """Estimate the GPU memory and time of a run, and choose settings with which it fits.

    For example: glmtune plan examples/chatglm3-6b.yaml data.path=train.json --gpu 4090
    """
    from glmtune.config import say_base
    from glmtune.planning.card import plan_for_card
    from glmtune.planning.planned import CONTEXT_GIB
    from glmtune.planning.report import print_plan

    if gpu_gib is not None and not CONTEXT_GIB < gpu_gib < 1e6:
        raise ConfigError(
            f"--gpu-gib: expected a number above {CONTEXT_GIB}, which CUDA itself takes; found {gpu_gib:g}"
        )
    if tflops is not None and not 0 < tflops < 1e6:
        raise ConfigError(f"--tflops: expected a number above 0; found {tflops:g}")

    config = read_config(arguments)
    data, planned, about = plan_for_card(config, gpu, gpu_gib, tflops)
    console = TerminalConsole()
    lines = [say_base(config.model.path), *data.stats.lines(), data.split_line(), about]
    for line in filter(None, lines):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    print_plan(planned, console)
    planned.check()
