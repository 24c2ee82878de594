"""The terminal chat: a loop around `Chat`."""

import difflib
import re
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import Protocol

from rich.console import Console

from glmtune.errors import GlmtuneError
from glmtune.language import localise
from glmtune.prompts import Message

with suppress(ImportError):  # absent on Windows; importing it gives `input` line editing and a history
    import readline  # noqa: F401

_PROMPT = "You> "
_REPLY = "GLM> "
_HELP = """\
/system TEXT   set the system prompt (without text: show it)
/reset         clear the conversation
/exit, /quit   leave (or Ctrl-D)
/help          show this
Ctrl-C         stop the reply
Begin with a space to send text that starts with a slash"""
_COMMANDS = ("/system", "/reset", "/exit", "/quit", "/help")

# A model may say anything; control characters could move the cursor or recolour the terminal.
_CONTROL_CHARACTERS = dict.fromkeys([*range(0x00, 0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)])


class _Conversing(Protocol):
    """A conversation: `Chat`, or one with a server."""

    history: list[Message]
    system: str | None

    @property
    def num_cut_tokens(self) -> int:
        """Tokens of the last prompt that were left out."""

    @property
    def max_prompt_tokens(self) -> int:
        """The most tokens of a prompt that are read."""

    def stream(self, text: str) -> Generator[str, None, None]:
        """Sends a message and yields the reply as it is generated."""

    def reset(self) -> None:
        """Clears the history."""


def run_terminal_chat(chat: _Conversing, console: Console, input_function: Callable[[str], str] = input) -> bool:
    """Chats until the user leaves.

    Ctrl-C during a reply stops the reply; twice in a row at the prompt, it ends the chat. Errors that the user can fix
    are printed, and the chat continues.

    Args:
        chat: The conversation.
        console: Where to print.
        input_function: Prints its argument, reads a line, and raises EOFError at the end of input, as `input` does.

    Returns:
        Whether all questions could be answered.
    """
    _say(console, "Type /help for commands, /exit to leave.")
    was_interrupted, has_failed = False, False
    while True:
        try:
            line = _clean(input_function(localise(_PROMPT)))
        except EOFError:
            console.print()
            return not has_failed
        except KeyboardInterrupt:
            console.print()
            if was_interrupted:
                return not has_failed
            was_interrupted = True
            _say(console, "Press Ctrl-C again to leave.")
            continue
        except UnicodeDecodeError:
            _say(console, "The input is not UTF-8; check the terminal's encoding.")
            continue
        was_interrupted = False
        if re.match(r"/\w*(\s|$)", line):
            if not _run_command(chat, console, line):
                return not has_failed
        elif line.strip() and not _print_reply(chat, console, line.strip()):
            has_failed = True


def _clean(text: str) -> str:
    """The text without lone surrogates, which a terminal with another encoding may send."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _run_command(chat: _Conversing, console: Console, line: str) -> bool:
    """Runs a command; returns whether the chat continues."""
    command, _, argument = line.partition(" ")
    command = command.strip().lower()
    argument = argument.strip()
    if command in ("/exit", "/quit"):
        return False
    if command == "/reset":
        chat.reset()
        _say(console, "The conversation has been cleared.")
    elif command == "/system":
        if argument:
            chat.system = argument
        _say(console, f"System prompt: {chat.system}" if chat.system else "There is no system prompt.")
    elif command == "/help":
        _say(console, _HELP)
    else:
        nearest = difflib.get_close_matches(command, _COMMANDS, n=1)
        hint = f"Did you mean {nearest[0]}? " if nearest else ""
        _say(console, f"Unknown command: {command}. {hint}Type /help for commands.")
    return True


def _print_reply(chat: _Conversing, console: Console, text: str) -> bool:
    """Prints the reply to a message as it comes; returns whether there was one, if only until Ctrl-C."""
    _write(console, localise(_REPLY))
    try:
        with closing(chat.stream(text)) as pieces:
            for piece in pieces:
                _write(console, piece)
        if chat.history and (tool := chat.history[-1].metadata):
            _write(console, localise(f"\n[tool call: {tool}]"))
        console.print()
        if chat.num_cut_tokens:
            limit = chat.max_prompt_tokens
            _say(
                console,
                f"{chat.num_cut_tokens} tokens of the conversation were left out, since the model reads only {limit} "
                "of a prompt.",
            )
    except KeyboardInterrupt:
        console.print()
        _say(console, "(stopped)")
    except GlmtuneError as error:
        console.print()
        _say(console, f"Error: {error}")
        return False
    return True


def _write(console: Console, text: str) -> None:
    """Writes text as it is, without markup, emoji codes, wrapping, colours or buffering."""
    console.out(_printable(console, text), end="", highlight=False)
    console.file.flush()


def _say(console: Console, text: str) -> None:
    """Prints a message of the program itself."""
    console.print(_printable(console, localise(text)), style="dim", markup=False, emoji=False, highlight=False)


def _printable(console: Console, text: str) -> str:
    """The text without control characters, and with ? for characters outside the terminal's encoding (emoji in GBK)."""
    return text.translate(_CONTROL_CHARACTERS).encode(console.encoding, "replace").decode(console.encoding)
