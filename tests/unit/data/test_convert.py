import json

import pytest

from glmtune.data.formats import read_conversations
from glmtune.data.inspect import convert
from glmtune.errors import DataError

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


def test_may_replace_its_own_input(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": "a"}', encoding="utf-8")
    convert(path, path)
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert json.loads(path.read_text(encoding="utf-8")) == {"messages": messages}


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
    with pytest.raises(DataError, match=r"cannot be written"):
        convert(path, path / "out.jsonl")
