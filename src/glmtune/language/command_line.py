"""Help and usage errors of the command line in the reader's language, from an application written in English."""

from collections.abc import Callable
from functools import partial
from typing import Any

import typer
from typer.core import TyperGroup

from glmtune.compat import translate_help
from glmtune.language import language, localise


def localised_command(app: typer.Typer) -> Any:
    """The command of an application, which help is printed from, with all texts in the reader's language.

    Args:
        app: The application, complete.
    """
    command = typer.main.get_command(app)
    if language() != "en":
        _localise_command(command, None)
    return command


def _localise_command(command: Any, parent: Any) -> None:
    """Puts a command, its parameters, and the commands below it into the reader's language, in place."""
    context = typer.Context(command, parent=parent, **command.context_settings)
    command.get_usage = partial(_usage, command.get_usage)
    for texts in (command, *command.get_params(context)):
        for name in ("help", "options_metavar", "subcommand_metavar"):
            if isinstance(text := getattr(texts, name, None), str):
                setattr(texts, name, localise(text))
    if isinstance(command, TyperGroup):
        for below in command.commands.values():
            _localise_command(below, context)


def _usage(get_usage: Callable[[Any], str], context: Any) -> str:
    """The line that every help begins with; only now typer's own texts are loaded."""
    translate_help(localise)
    return localise(get_usage(context))


def usage_fault(error: typer.TyperException) -> str:
    """What is wrong with the arguments, as a message of ours; empty where all there was to say is said already."""
    message = error.format_message().rstrip(".").replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    return f"{message}. See {context.command_path} --help" if message and context else message
