"""Rows written to a file and read back."""

import json
from pathlib import Path

import pytest

from glmtune.data.formats import read_conversations, scan


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes rows to a file in the current folder and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write_rows(*rows, name: str = "train.json") -> str:
        Path(name).write_text(json.dumps(rows, ensure_ascii=True), encoding="utf-8")
        return name

    return write_rows


@pytest.fixture
def read_one(write):
    """The messages of one row."""
    return lambda row, **more: read_conversations(write(row), **more).items[0].messages


@pytest.fixture
def faults_of(write):
    """The faults of some rows, without the name of the file."""

    def faults(*rows, **more) -> list[str]:
        _, found = scan(write(*rows), **more)
        return [fault.removeprefix("train.json, ").removeprefix("train.json: ") for fault in found]

    return faults
