"""env, demo and --version: what is installed, and trying it out."""

import os
from pathlib import Path
from typing import Annotated

import typer

from glmtune import __version__
from glmtune.cli.options import not_empty
from glmtune.cli.setting_up import hide_loading_bars, outlive_display
from glmtune.language import localise
from glmtune.language.terminal import TerminalConsole

app = typer.Typer()


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
        str, typer.Option("--output", callback=not_empty, help="Where the run and the merged model go.")
    ] = "demo-output",
) -> None:
    """Train, compare and merge on the built-in tiny base."""
    from glmtune.demo import run_demo

    outlive_display()
    hide_loading_bars()
    run_demo(Path(output), TerminalConsole())


def print_version(is_requested: bool) -> None:
    """Prints the version and exits, if requested."""
    if is_requested:
        typer.echo(f"glmtune {__version__}")
        raise typer.Exit
