"""Translates help and usage errors of the command line into the user's language."""

from collections.abc import Callable
from functools import partial
from typing import Any

import typer
from typer.core import TyperGroup

from glmtune.compat import translate_help, wrap_help_anywhere
from glmtune.language import language, localise


def localised_command(app: typer.Typer) -> Any:
    """The command of an application, with all texts of its help in the user's language.

    Args:
        app: The application, complete.
    """
    command = typer.main.get_command(app)
    if language() != "en":
        _localise_command(command, None)
    return command


def _localise_command(command: Any, parent: Any) -> None:
    """Translates a command, its parameters and its subcommands, in place."""
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
    """The first line of every help text; by the time it is needed, typer's own texts are loaded."""
    translate_help(localise)
    wrap_help_anywhere()
    return localise(get_usage(context))


def usage_fault(error: typer.TyperException) -> str:
    """What is wrong with the arguments, as one of our messages; empty if typer has already said everything."""
    message = error.format_message().rstrip(".").replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    if not message or not context:
        return message
    if message.endswith("?"):
        return f"{message} See {context.command_path} --help"
    return f"{message}. See {context.command_path} --help"
