"""Without these, a run could end because what it prints is no longer read."""

import io
import os

import pytest
from rich.console import Console

from glmtune.training.display import surviving


def test_printing_where_nobody_reads_raises_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    pipe = os.fdopen(writer, "w", encoding="utf-8", buffering=1)
    console = Console(file=surviving(pipe))
    for _ in range(3):
        console.print("loss 1.0")
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"nobody reads")


def test_what_can_be_read_is_shown() -> None:
    shown = io.StringIO()
    Console(file=surviving(shown), width=80).print("loss 1.0")
    assert shown.getvalue() == "loss 1.0\n"
    print("closed from the start", file=surviving(None), flush=True)
