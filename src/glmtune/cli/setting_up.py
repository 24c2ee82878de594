"""What commands do before their work: read the configuration, load models, prepare the terminal."""

import sys
from typing import TYPE_CHECKING, Any

import typer

from glmtune.cli.options import DtypeName, QuantizeName
from glmtune.language import localise
from glmtune.language.terminal import TerminalConsole

if TYPE_CHECKING:
    from glmtune.config import RunConfig
    from glmtune.loading.runs import Loaded


def read_config(arguments: list[str] | None) -> "RunConfig":
    """Reads the configuration from a file, if the first argument is one, and the overrides after it."""
    from glmtune.config import load_arguments

    return load_arguments(arguments or [])


def outlive_display() -> None:
    """Keeps a command that writes files running when its terminal is closed or its output has no reader."""
    from glmtune.training.display import surviving

    sys.stdout, sys.stderr = surviving(sys.stdout), surviving(sys.stderr)


def hide_loading_bars() -> None:
    """Hides the progress bar that transformers draws for every load; our own status line says what is loaded."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def load_run(run: str, model: str | None, dtype: DtypeName, quantize: QuantizeName, system: str | None) -> "Loaded":
    """Loads a run or base to chat with, and prints what was loaded."""
    from glmtune.loading.runs import load

    hide_loading_bars()
    with TerminalConsole(stderr=True).status("Loading the model ..."):
        loaded = load(run, model_path=model, dtype=dtype, quantize=quantize)
    typer.echo(localise(f"base: {loaded.base_path}; adapter: {loaded.adapter_path or 'none'}"), err=True)
    used = loaded.system if system is None else system
    typer.echo(localise(f"System prompt: {used}" if used else "There is no system prompt."), err=True)
    return loaded


def tokenizer_of(model: str | None) -> Any:
    """Loads the tokenizer of a base; None for that of the tiny built-in one."""
    from glmtune.loading.bases import load_tokenizer

    return load_tokenizer(model)
