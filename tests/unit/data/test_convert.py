"""Without these, converting data could change conversations, or write over or into somebody's file."""

import json

import pytest

from glmtune.data.convert import write_messages
from glmtune.data.formats import read_conversations
from glmtune.data.inspection import convert
from glmtune.errors import DataError, StorageError
from glmtune.prompts import Conversation, Message

TOOLS = [{"type": "function", "function": {"name": "t"}}]
ROWS = [
    [{"instruction": "翻译", "input": "hello", "output": "你好\n\u2028", "system": "S", "history": [["q", "a"]]}],
    [
        {
            "tools": TOOLS,
            "conversations": [
                {"role": "user", "content": "q"},
                {"role": "tool", "name": "t", "parameters": {"x": [1, "二"]}, "observation": ""},
                {"role": "assistant", "content": "a", "loss": False},
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "print(1)", "metadata": "interpreter"},
            ],
        }
    ],
    [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}] * 2,
]


def test_reloads_to_the_same_conversations(tmp_path, capsys):
    paths = [tmp_path / f"{number}.json" for number in range(len(ROWS))]
    for path, rows in zip(paths, ROWS, strict=True):
        path.write_text(json.dumps(rows), encoding="utf-8")
    output = tmp_path / "new" / "out.jsonl"
    convert(paths, output, join="|")
    assert capsys.readouterr().out.startswith("4 conversations written to ")
    assert read_conversations(output).items == read_conversations(paths, join="|").items
    lines = output.read_text(encoding="utf-8").split("\n")
    assert len(lines) == 5
    assert "你好" in lines[0]  # readable, not escaped
    assert set(json.loads(lines[0])) == {"messages"}


def test_an_existing_file_is_never_replaced(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(row := '{"question": "q", "answer": "a"}', encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl: the file exists already"):
        convert(path, path)
    assert path.read_text(encoding="utf-8") == row


def test_no_link_is_followed(tmp_path):
    """Neither one in the place of the output, nor one that somebody laid where an unfinished file may be expected."""
    path, victim = tmp_path / "a.jsonl", tmp_path / "victim"
    path.write_text('{"question": "q", "answer": "a"}', encoding="utf-8")
    (tmp_path / "out.jsonl").symlink_to(victim)
    with pytest.raises(DataError, match="exists already"):
        convert(path, tmp_path / "out.jsonl")
    for name in (".part", ".tmp", ".unfinished"):
        (tmp_path / f"new.jsonl{name}").symlink_to(victim)
    convert(path, tmp_path / "new.jsonl")
    assert not victim.exists()
    assert not (tmp_path / "new.jsonl").is_symlink()


def test_a_crash_leaves_nothing_half_done(tmp_path):
    def crash_after_one():
        yield Conversation((Message("user", "q"), Message("assistant", "a")))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_messages(crash_after_one(), tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_faulty_data_write_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": ""}', encoding="utf-8")
    with pytest.raises(DataError, match='"answer" is empty'):
        convert(path, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_output_that_cannot_be_written(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": "a"}', encoding="utf-8")
    with pytest.raises(DataError, match=r"expected a file named \.jsonl to write to, found '\.json'"):
        convert(path, tmp_path / "out.json")
    with pytest.raises(StorageError, match="a part of the path is a file, not a folder"):
        convert(path, path / "out.jsonl")
    with pytest.raises(StorageError, match="the name is too long"):
        convert(path, tmp_path / f"{'a' * 300}.jsonl")
    with pytest.raises(DataError, match="home folder"):
        convert(path, "~nosuchuser/out.jsonl")
