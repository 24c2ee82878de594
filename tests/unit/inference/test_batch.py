import io
import json

import pytest
from rich.console import Console

from glmtune.errors import ConfigError, DataError
from glmtune.inference.batch import generate_file
from glmtune.inference.generate import generate_replies
from glmtune.prompts import Conversation, Message

ROWS = [{"instruction": "数" * (number * 7 % 11 + 1), "input": "", "id": number} for number in range(15)]


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    return path


def generate(tiny, questions, output, **options):
    console = Console(file=io.StringIO())
    return generate_file(*tiny, questions, output, batch_size=3, max_new_tokens=6, console=console, **options)


def test_replies_in_input_order(tiny, questions, tmp_path):
    output = tmp_path / "new" / "replies.jsonl"
    report = generate(tiny, questions, output, system="算")
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    conversations = [Conversation((Message("system", "算"), Message("user", row["instruction"]))) for row in ROWS]
    expected = generate_replies(*tiny, conversations, max_new_tokens=6)
    assert rows == [
        {"index": number, **row, "reply": reply.text}
        for number, (row, reply) in enumerate(zip(ROWS, expected, strict=True))
    ]
    assert (report.num_rows, report.num_resumed, report.num_unfinished) == (15, 0, 15)
    assert "15 replies, 15 of them new" in report.summary()


@pytest.mark.parametrize("num_kept", [0, 4, 14, 15])
@pytest.mark.parametrize("half_line", ["", '{"index": 4, "instr', '{"index": 4}'])
def test_resumes(tiny, questions, tmp_path, num_kept, half_line):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "replies.jsonl"
    generate(tiny, questions, whole)
    lines = whole.read_text(encoding="utf-8").splitlines(keepends=True)
    output.write_text("".join(lines[:num_kept]) + half_line, encoding="utf-8")
    report = generate(tiny, questions, output)
    assert output.read_text(encoding="utf-8") == "".join(lines)
    assert report.num_resumed == num_kept


def test_interrupt_keeps_whole_lines(tiny, questions, tmp_path, monkeypatch):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "replies.jsonl"
    generate(tiny, questions, whole)
    real = tiny.model.generate
    num_calls = 0

    def interrupted(**kwargs):
        nonlocal num_calls
        num_calls += 1
        if num_calls > 4:
            raise KeyboardInterrupt
        return real(**kwargs)

    monkeypatch.setattr(tiny.model, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tiny, questions, output)
    monkeypatch.undo()
    text = output.read_text(encoding="utf-8")
    assert text.count("\n") == 12  # the first window of four batches
    assert whole.read_text(encoding="utf-8").startswith(text)
    assert generate(tiny, questions, output).num_resumed == 12
    assert output.read_text(encoding="utf-8") == whole.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "line",
    [
        '{"index": 0, "instruction": "别的", "input": "", "id": 0, "reply": "x"}',
        '{"index": 0, "instruction": "数"}',
        "not JSON",
        "[]",
    ],
)
def test_output_of_another_input(tiny, questions, tmp_path, line):
    output = tmp_path / "replies.jsonl"
    output.write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match="another --output"):
        generate(tiny, questions, output)
    assert output.read_text(encoding="utf-8") == f"{line}\n"


def test_output_longer_than_input(tiny, questions, tmp_path):
    output = tmp_path / "replies.jsonl"
    generate(tiny, questions, output)
    questions.write_text(json.dumps(ROWS[:5], ensure_ascii=False), encoding="utf-8")
    with pytest.raises(DataError, match="15 rows, the input only 5"):
        generate(tiny, questions, output)


def test_output_can_be_the_next_input(tiny, questions, tmp_path):
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    generate(tiny, questions, first)
    generate(tiny, first, second)
    assert first.read_text(encoding="utf-8") == second.read_text(encoding="utf-8")
    assert generate(tiny, first, second).num_resumed == 15


def test_bad_outputs(tiny, questions, tmp_path):
    with pytest.raises(ConfigError, match="folder"):
        generate(tiny, questions, tmp_path)
    with pytest.raises(ConfigError, match="same file"):
        generate(tiny, questions, questions)
    with pytest.raises(DataError, match="no such file"):
        generate(tiny, tmp_path / "nowhere.json", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(ConfigError, match="cannot be written"):
        generate(tiny, questions, questions / "out.jsonl")
