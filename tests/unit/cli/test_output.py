"""Without these, a full disk or a closed pipe behind a command would end in a traceback, or look like success."""

import logging
import os
import sys
from typing import TextIO

import pytest

from glmtune.cli import main
from glmtune.config import embedded_data

COMMANDS = [
    ("--help",),
    ("--version",),
    ("env",),
    ("train", "--keys"),
    ("train", "--help"),
    ("plan", "--gpu-gib", "24"),
    *(("data", command, str(embedded_data())) for command in ("check", "show", "stats")),
]


def run(arguments: tuple[str, ...], output: TextIO, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["glmtune", *arguments])
    logger = logging.getLogger("glmtune")  # as it was, afterwards: the command takes it away from pytest
    with output, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", output)
        patched.setattr(logger, "propagate", logger.propagate)
        patched.setattr(logger, "handlers", [*logger.handlers])
        with pytest.raises(SystemExit) as ended:
            main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.posix
@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: " ".join(arguments[:2]))
def test_a_full_disk_behind_the_output_is_one_error(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments, os.fdopen(os.open("/dev/full", os.O_WRONLY), "w", encoding="utf-8"), monkeypatch) == 1
    fault = "standard output: the disk is full; free some space, or choose another place"
    printed = capsys.readouterr().err
    assert printed.endswith(f"Error: {fault}\n")
    assert printed.count("Error:") == 1


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: " ".join(arguments[:2]))
def test_an_output_that_nobody_reads_any_more_is_one_error(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert run(arguments, os.fdopen(writing, "w", encoding="utf-8"), monkeypatch) == 1
    fault = "the output was cut off: the program that it went to has ended"
    printed = capsys.readouterr().err
    assert printed.endswith(f"Error: {fault}\n")
    assert printed.count("Error:") == 1
