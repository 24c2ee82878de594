"""The application: its commands, and what happens around each of them."""

import io
import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from glmtune.cli import about, data, training, using
from glmtune.errors import GlmtuneError, show_text

# Before torch is imported: memory in pieces that grow, of which less is lost between steps of different sizes.
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name of the same setting
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

app = typer.Typer(
    help="Fine-tune ChatGLM3-6B and its family with LoRA. 用 LoRA 微调 ChatGLM3-6B。",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(
    help="Check, show, count and convert data files. 检查、查看、统计、转换数据。", no_args_is_help=True
)
app.command()(training.train)
app.command()(training.plan)
app.command()(using.chat)
app.command()(using.generate)
app.command()(using.merge)
app.add_typer(data_app, name="data")
data_app.command()(data.check)
data_app.command()(data.show)
data_app.command()(data.stats)
data_app.command()(data.convert)
app.command()(about.env)
app.command()(training.demo)


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=about.print_version, is_eager=True, help="Print the version. 版本。"),
    ] = False,
) -> None:
    """Takes the options that stand before a command."""


def main() -> None:
    """Runs the command line: faults of the user's making are one message without a traceback."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a standard stream that was closed, whose number a file of ours must not get
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding shows ? for what it cannot
            stream.reconfigure(errors="replace")
    try:
        app()
    except GlmtuneError as error:
        message = "\n".join(show_text(line) for line in f"错误 Error: {error}".split("\n"))
        Console(stderr=True, soft_wrap=True).print(message, style="red", markup=False, highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
