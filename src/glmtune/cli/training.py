"""train, plan and demo."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from glmtune.cli.options import not_empty
from glmtune.cli.setting_up import hide_loading_bars, outlive_display, read_config
from glmtune.errors import ConfigError


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
    """Train a LoRA adapter. 训练 LoRA。

    For example: glmtune train examples/chatglm3-6b.yaml data.path=train.json train.learning_rate=1e-4
    """
    from glmtune.config import describe_keys

    if keys:
        for key in describe_keys():
            typer.echo(f"{key.key:<38} {key.default!r:<28} {key.description}")
        return
    outlive_display()
    config = read_config(arguments)
    from glmtune.training.processes import is_first_process, leave_processes
    from glmtune.training.trainer import TrainingInterrupted
    from glmtune.training.trainer import train as run_training

    hide_loading_bars()
    try:
        folder = run_training(config).output_dir
        message, code = f"完成 Done: {folder}\n  glmtune chat {shlex.quote(str(folder))}", 0
    except TrainingInterrupted as interruption:
        message, code = str(interruption), 130
    finally:
        leave_processes()
    if is_first_process():
        typer.echo(message, err=code != 0)
    raise typer.Exit(code)


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
    """Say what a run will take of the GPU, how long, and with which settings it fits. 估算显存与时间。

    For example: glmtune plan examples/chatglm3-6b.yaml data.path=train.json --gpu-gib 8
    """
    from glmtune.config import say_base
    from glmtune.planning.plan import CONTEXT_GIB, plan_for_card

    if gpu_gib is not None and not CONTEXT_GIB < gpu_gib < 1e6:
        raise ConfigError(
            f"--gpu-gib: expected a number above {CONTEXT_GIB}, what CUDA itself takes; found {gpu_gib:g}"
        )
    if tflops is not None and not 0 < tflops < 1e6:
        raise ConfigError(f"--tflops: expected a number above 0; found {tflops:g}")

    config = read_config(arguments)
    stats, planned = plan_for_card(config, gpu_gib, tflops)
    console = Console()
    console.print(say_base(config.model.path), markup=False, highlight=False, soft_wrap=True)
    for line in stats.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    planned.print(console)
    planned.check()


def demo(
    output: Annotated[
        str, typer.Option("--output", callback=not_empty, help="Where the run and the merged model go.")
    ] = "demo-output",
) -> None:
    """Train, compare and merge on the built-in tiny base. 一分钟体验。"""
    from glmtune.demo import run_demo

    outlive_display()
    hide_loading_bars()
    run_demo(Path(output), Console())
