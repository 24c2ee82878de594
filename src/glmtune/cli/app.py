"""The application: its commands, and the setup and error handling around them."""

import io
import logging
import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

from glmtune.cli import about, data, evaluating, serving, training, using
from glmtune.cli.output import OutputLostError, checked_output
from glmtune.errors import GlmtuneError, show_text
from glmtune.language.command_line import localised_command, usage_fault
from glmtune.language.terminal import TerminalConsole, log_to_terminal

# Before torch is imported: expandable segments waste less memory when steps differ in size.
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name of the same setting
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

app = typer.Typer(
    help="Fine-tune ChatGLM3-6B and its family with LoRA.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(training.app)
app.add_typer(using.app)
app.add_typer(evaluating.app)
app.add_typer(serving.app)
app.add_typer(data.app, name="data")
app.add_typer(about.app)


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=about.print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Accepts the options that precede a command."""


def main() -> None:
    """Runs the command line; errors that the user can fix are printed as one message, without a traceback."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # occupy the number of a closed standard stream, so that no file of ours gets it
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # print ? for what the terminal's encoding lacks
            stream.reconfigure(errors="replace")
    log_to_terminal()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns that it cannot keep a cache in the home folder
    try:
        with checked_output():
            code = _run()
    except OutputLostError as error:
        _print_error(str(error))
        code = 1
    sys.exit(code)


def _run() -> int:
    """Runs the command, and returns its exit code."""
    try:
        return int(localised_command(app)(standalone_mode=False) or 0)
    except OutputLostError:
        raise
    except GlmtuneError as error:
        _print_error(str(error))
        return 1
    except OSError as error:
        if "--install-completion" not in sys.argv:  # what is not foreseen is a bug, and shows its traceback
            raise
        from glmtune.files import say_os_error

        place = "" if error.filename is None else f"{error.filename}: "
        _print_error(
            f"--install-completion: {place}{say_os_error(error)}. glmtune --show-completion prints the script instead"
        )
        return 1
    except typer.TyperException as error:
        if fault := usage_fault(error):
            _print_error(fault)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _print_error(fault: str) -> None:
    message = "\n".join(show_text(line) for line in f"Error: {fault}".split("\n"))
    with suppress(OSError):  # standard error may be lost too
        TerminalConsole(stderr=True, soft_wrap=True).print(message, style="red", highlight=False)
