"""What is installed: env and --version."""

import os

import typer

from glmtune import __version__


def env() -> None:
    """Print versions and devices, for a bug report. 环境信息。"""
    import torch

    from glmtune.adapters.run_folder import current_versions

    for package, version in current_versions().items():
        typer.echo(f"{package:<14}{version}")
    if not torch.cuda.is_available():
        typer.echo(f"{'device':<14}CPU, {os.cpu_count()} cores")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        typer.echo(f"{f'cuda:{index}':<14}{properties.name}, {properties.total_memory / 2**30:.1f} GiB")


def print_version(is_asked: bool) -> None:
    """Prints the version and ends, where that is asked for."""
    if is_asked:
        typer.echo(f"glmtune {__version__}")
        raise typer.Exit
