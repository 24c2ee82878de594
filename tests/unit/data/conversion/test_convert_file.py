"""Without these, converting a file could lose rows or columns, or write over somebody's file."""

import io
import json
import tracemalloc
from pathlib import Path

import pytest
from rich.console import Console

from glmtune.data.conversion.convert import convert_file, preview
from glmtune.data.conversion.rows import convert_row
from glmtune.errors import DataError, StorageError

QUESTION = "请解释VC银翘片和双黄连口服液之间的区别"
INSTRUCTION = {"instruction": "请解释下面两个药品之间的区别。", "input": "VC银翘片和双黄连口服液。"}
AGAIN = "VC银翘片和双黄连口服液之间的区别是什么？"
MORE = {"id": 7, "history": [["q", "a"]], "system": "S", "tags": {"a": [1, None]}, "空": None}
LEFT = [
    {"instruction": "娘娘。", "input": "", "output": "a"},
    {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "a"}]},
    {"conversations": [{"from": "human", "value": QUESTION}]},
    {"text": QUESTION},
    {"question": 5, "answer": "a"},
    {"instruction": "为什么天空是蓝色的？", "input": 5, "output": "a"},
    {"question": QUESTION, "answer": "a", "instruction": None, "input": "x"},
]


@pytest.fixture
def rows_file(tmp_path: Path):
    def write(*rows, name: str = "rows.json") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        return path

    return write


def read(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix.lower() == ".json" else [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", ["out.json", "out.jsonl", "new/folder/out.JSON"])
def test_a_file_goes_both_ways_and_nothing_is_lost(rows_file, tmp_path, name) -> None:
    rows = [{**MORE, "instruction": QUESTION, "input": "", "output": "答"}, *LEFT]
    there, back = tmp_path / name, tmp_path / "back.json"
    assert convert_file(rows_file(*rows), there, "instruction") == 1
    converted = {**MORE, **INSTRUCTION, "output": "答"}
    assert read(there) == [converted, *LEFT]
    convert_file(there, back, "qa")
    assert read(back) == [{**converted, "instruction": AGAIN, "input": ""}, *LEFT]


@pytest.mark.parametrize(
    ("question", "answer"),
    [("question", "answer"), ("query", "response"), ("prompt", "response"), ("prompt", "completion")],
)
def test_columns_of_questions_become_those_of_instructions(question: str, answer: str) -> None:
    row = {"id": 1, question: QUESTION, answer: "答", "source": "s"}
    converted = convert_row(row, "instruction")
    assert converted.rule == "compare"
    assert list(converted.values.items()) == [("id", 1), *INSTRUCTION.items(), ("output", "答"), ("source", "s")]
    assert convert_row({**row, question: "娘娘。"}, "instruction").values == {**row, question: "娘娘。"}


def test_columns_of_other_names_keep_them() -> None:
    fields = {"instruction": "问", "input": "补", "output": "答"}
    converted = convert_row({"问": QUESTION, "答": "a"}, "instruction", fields)
    assert converted.values == {"问": INSTRUCTION["instruction"], "补": INSTRUCTION["input"], "答": "a"}
    assert convert_row(converted.values, "qa", fields).values == {"问": AGAIN, "补": "", "答": "a"}
    converted = convert_row({"题": QUESTION, "解": "a"}, "instruction", {"question": "题", "answer": "解"})
    assert converted.values == {**INSTRUCTION, "output": "a"}


@pytest.mark.parametrize(
    ("row", "to", "reason"),
    [
        ({"instruction": "翻译成英文", "input": "你好"}, "instruction", "already instructions with an input"),
        ({"instruction": "翻译成英文：你好", "input": ""}, "qa", "already questions"),
        ({"question": "翻译成英文：你好"}, "qa", "already questions"),
        ({"instruction": "娘娘。", "input": ""}, "instruction", "no rule fits"),
        ({"instruction": "娘娘。", "input": "皇上"}, "qa", "no rule fits"),
        (LEFT[1], "qa", "conversations of several turns"),
        (LEFT[2], "instruction", "conversations of several turns"),
        (LEFT[3], "instruction", "no known columns"),
        (LEFT[4], "instruction", "the question is no text"),
        (LEFT[5], "instruction", "the question is no text"),
        (LEFT[6], "instruction", "the row has the columns of both forms"),
    ],
)
def test_what_is_left_is_the_very_row_and_has_a_reason(row, to, reason) -> None:
    converted = convert_row(row, to)
    assert converted.values is row
    assert converted.reason == reason


def test_every_row_is_counted_once_in_the_report(rows_file, tmp_path, capsys) -> None:
    rows = [{"question": QUESTION, "answer": "a"}] * 3 + [{"query": "为什么天空是蓝色的？"}, *LEFT]
    convert_file(rows_file(*rows), tmp_path / "out.json", "instruction")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == [
        "11 rows: 4 converted, 7 left as they are",
        "converted, by rule:",
        "3  compare",
        "1  why",
    ]
    assert "2  conversations of several turns" in lines


def test_a_preview_shows_ten_pairs_and_writes_nothing(rows_file, tmp_path) -> None:
    path = rows_file(*[{"question": QUESTION, "answer": "a"}] * 12, *LEFT)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    preview(path, "instruction", console=console)
    shown = console.export_text()
    assert shown.count(f"- {QUESTION}") == shown.count(f"+ {INSTRUCTION['instruction']}") == 10
    assert "12 converted, 7 left as they are" in shown
    assert list(tmp_path.iterdir()) == [path]


def test_odd_values_stay_what_they_are(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    text = '{"question": "娘娘\\ud83d", "answer": "\\u2028", "x": [1.5, 12345678901234567890, NaN]}\n'
    path.write_text(text, encoding="utf-8")
    convert_file(path, tmp_path / "out.jsonl", "instruction")
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == text.replace("\\u2028", "\u2028")


def test_no_file_is_replaced_and_none_is_half_written(rows_file, tmp_path) -> None:
    path = rows_file({"question": QUESTION, "answer": "a"})
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"rows\.json: the file exists already"):
        convert_file(path, path, "instruction")
    assert path.read_bytes() == before
    for name in ("out.csv", "out.txt", "out"):
        with pytest.raises(DataError, match=r"expected a file named \.json or \.jsonl to write to"):
            convert_file(path, tmp_path / name, "instruction")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        convert_file(path, path / "out.json", "instruction")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "a", "answer": "b"}\n{"question"\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"broken\.jsonl, row 2, line 2"):
        convert_file(broken, tmp_path / "out.json", "instruction")
    with pytest.raises(DataError, match=r"broken\.jsonl, row 2, line 2"):
        convert_file([path, broken], tmp_path / "new" / "folder" / "out.json", "instruction")
    assert sorted(tmp_path.iterdir()) == [broken, path]


def test_rows_are_written_as_they_are_read(tmp_path) -> None:
    """A hundred thousand rows must not be in memory at once."""
    path = tmp_path / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(5000):
            file.write(json.dumps({"question": "x" * 2000, "answer": str(number)}) + "\n")
    tracemalloc.start()
    try:
        convert_file(path, tmp_path / "out.json", "qa")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 10_000_000
    assert peak < 3_000_000
    assert [row["answer"] for row in read(tmp_path / "out.json")] == [str(number) for number in range(5000)]


def test_a_weight_is_not_overlooked(rows_file, tmp_path) -> None:
    path = rows_file({"question": QUESTION, "answer": "a"})
    with pytest.raises(DataError, match=r"rows\.json: the weight 0\.5 has no effect here"):
        convert_file(f"{path}:0.5", tmp_path / "out.json", "instruction")


def test_a_preview_of_faulty_rows_shows_none(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": QUESTION, "answer": "a"}) + "\n[1]\n", encoding="utf-8")
    console = Console(width=200, record=True, file=io.StringIO())
    with pytest.raises(DataError, match=r"row 2 .*expected an object"):
        preview(path, "instruction", console=console)
    assert console.export_text() == ""
