"""Without these, converting data could change conversations, or write over or into somebody's file."""

import json
import os
import signal

import pytest

from glmtune.data.convert import convert
from glmtune.data.formats import read_conversations
from glmtune.data.output import write_rows
from glmtune.errors import DataError, StorageError

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
    assert capsys.readouterr().out.startswith("4 rows written to ")
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
        yield None, {"question": "q", "answer": "a"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(crash_after_one(), tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.posix  # elsewhere, a signal ends the process at once
@pytest.mark.parametrize(
    ("name", "expected"), [("SIGINT", KeyboardInterrupt()), ("SIGTERM", SystemExit(143)), ("SIGHUP", SystemExit(129))]
)
def test_a_signal_leaves_nothing_half_done(tmp_path, name, expected):
    """A closed terminal or `timeout` would leave a hidden file as large as the data."""

    def rows():
        yield None, {"question": "q", "answer": "a"}
        os.kill(os.getpid(), getattr(signal, name))
        yield None, {"question": "q", "answer": "a"}

    before = signal.signal(getattr(signal, name), signal.default_int_handler)
    try:
        with pytest.raises(type(expected)) as raised:
            write_rows(rows(), tmp_path / "new" / "out.jsonl")
    finally:
        signal.signal(getattr(signal, name), before)
    assert raised.value.args == expected.args
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_another_process_writes_meanwhile_is_kept(tmp_path):
    def rows():
        (tmp_path / "out.jsonl").write_text("theirs")
        yield None, {"question": "q", "answer": "a"}

    with pytest.raises(DataError, match="exists already and is not replaced"):
        write_rows(rows(), tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "theirs"
    assert len(list(tmp_path.iterdir())) == 1


def test_faulty_data_write_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": ""}', encoding="utf-8")
    with pytest.raises(DataError, match='"answer" is empty'):
        convert(path, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_output_that_cannot_be_written(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": "a"}', encoding="utf-8")
    with pytest.raises(DataError, match=r"expected a file named \.json or \.jsonl to write to, found '\.csv'"):
        convert(path, tmp_path / "out.csv")
    with pytest.raises(StorageError, match="a part of the path is a file, not a folder"):
        convert(path, path / "out.jsonl")
    with pytest.raises(StorageError, match="the name is too long"):
        convert(path, tmp_path / f"{'a' * 300}.jsonl")
    with pytest.raises(DataError, match="home folder"):
        convert(path, "~nosuchuser/out.jsonl")


@pytest.mark.parametrize("shape", ["messages", "conversations", "sharegpt", "alpaca"])
def test_every_format_reads_back_as_it_was_or_is_counted(tmp_path, shape):
    paths = [tmp_path / f"{number}.json" for number in range(len(ROWS))]
    for path, rows in zip(paths, ROWS, strict=True):
        path.write_text(json.dumps(rows), encoding="utf-8")
    convert(paths, tmp_path / "out.json", to=shape)
    before, after = read_conversations(paths).items, read_conversations(tmp_path / "out.json").items
    reasons = {
        "sharegpt": ["a turn has metadata that is no call of a tool"],
        "alpaca": ["a tool is called"],
    }.get(shape)
    assert after == [item for row, item in enumerate(before) if row != 1 or not reasons]
    skipped = tmp_path / "out.json.skipped.jsonl"
    assert skipped.exists() == bool(reasons)
    if reasons:
        (row,) = skipped.read_text(encoding="utf-8").splitlines()
        assert json.loads(row)["reasons"] == reasons


TALK = {
    "id": 7,
    "system": "S",
    "tools": [{"name": "天气", "parameters": {}}],
    "conversations": [
        {"from": "human", "value": "杭州天气？"},
        {"from": "function_call", "value": '{"name": "天气", "arguments": {"城市": "杭州", "天": [1, null, true]}}'},
        {"from": "observation", "value": "小雨"},
        {"from": "gpt", "value": "有小雨。"},
    ],
}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (
            "conversations",
            [
                {"role": "system", "content": "S"},
                {"role": "user", "content": "杭州天气？"},
                {
                    "role": "tool",
                    "name": "天气",
                    "parameters": {"城市": "杭州", "天": [1, None, True]},
                    "observation": "小雨",
                },
                {"role": "assistant", "content": "有小雨。"},
            ],
        ),
        ("sharegpt", TALK["conversations"]),
    ],
)
def test_tool_calls_are_written_as_each_format_has_them(tmp_path, shape, expected):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([TALK]), encoding="utf-8")
    convert(path, tmp_path / "out.json", to=shape)
    (row,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert row["conversations"] == expected
    assert row["id"] == 7  # columns that are not read are kept
    assert read_conversations(tmp_path / "out.json").items == read_conversations(path).items


def test_an_input_stays_one_in_alpacas_format(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"问题": "翻译", "input": "hello", "output": "你好", "id": 1}]), encoding="utf-8")
    convert(path, tmp_path / "out.json", {"instruction": "问题"}, to="alpaca")
    (row,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert row == {"id": 1, "instruction": "翻译", "input": "hello", "output": "你好"}


def test_faulty_rows_are_left_out_on_request_and_written_beside(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": ""}\n{"question": "q", "answer": "a"}', encoding="utf-8")
    assert convert(path, tmp_path / "out.jsonl", to="alpaca", faulty="skip") == 1
    assert "1 row left out, being faulty" in capsys.readouterr().out
    (skipped,) = (tmp_path / "out.jsonl.skipped.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(skipped)["reasons"] == ['"answer" is empty. Fill it in or remove the row']
