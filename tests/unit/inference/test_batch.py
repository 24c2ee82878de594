"""Without these, an interrupted batch could lose replies, or give them to other questions."""

import copy
import csv
import io
import json
import re
import resource
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import Progress

from glmtune.errors import ConfigError, DataError, StorageError
from glmtune.inference.batch import check_generation_files, generate_file
from glmtune.inference.engine.engine import Engine
from glmtune.inference.generate import generate_replies
from glmtune.prompts import Conversation, Message

ROWS = [{"instruction": "数" * (number * 7 % 11 + 1), "input": "", "id": number} for number in range(15)]


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    return path


def generate(tiny, questions, output, batch_size=3, **options):
    console = Console(file=io.StringIO())
    return generate_file(*tiny, questions, output, batch_size=batch_size, max_new_tokens=6, console=console, **options)


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


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> bytes:
    """The replies of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "questions.json").write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    generate(tiny, folder / "questions.json", folder / "replies.jsonl")
    return (folder / "replies.jsonl").read_bytes()


@pytest.mark.parametrize(("num_kept", "num_bytes_more"), [(0, 0), (0, 3), (4, 25), (12, -1), (14, 0), (15, 0)])
def test_resumes(tiny, questions, tmp_path, whole, num_kept, num_bytes_more):
    """After whole lines, and after a line that was cut: early, within a character, or just before its end."""
    lines = whole.splitlines(keepends=True)
    output = tmp_path / "replies.jsonl"
    half_line = lines[num_kept][:num_bytes_more] if num_bytes_more else b""
    output.write_bytes(b"".join(lines[:num_kept]) + half_line)
    report = generate(tiny, questions, output)
    assert output.read_bytes() == whole
    assert report.num_resumed == num_kept


def test_drawn_replies_are_the_same_when_resumed(tiny, tmp_path):
    (tmp_path / "q.json").write_text(json.dumps([{"instruction": "数", "input": ""}] * 5), encoding="utf-8")
    drawing = {"do_sample": True, "temperature": 2.0, "seed": 3}
    output = tmp_path / "replies.jsonl"
    generate(tiny, tmp_path / "q.json", output, **drawing)
    whole = output.read_bytes().splitlines(keepends=True)
    assert len({json.loads(line)["reply"] for line in whole}) == 5
    output.write_bytes(b"".join(whole[:2]))
    assert generate(tiny, tmp_path / "q.json", output, **drawing).num_resumed == 2
    assert output.read_bytes().splitlines(keepends=True) == whole


@pytest.mark.parametrize(("num_kept", "rest"), [(0, b"[1, 2]"), (0, b"notes"), (4, b'{"index": 5, '), (15, b"{")])
def test_only_own_half_lines_are_cut_off(tiny, questions, tmp_path, whole, num_kept, rest):
    output = tmp_path / "replies.jsonl"
    content = b"".join(whole.splitlines(keepends=True)[:num_kept]) + rest
    output.write_bytes(content)
    with pytest.raises(DataError, match="not the beginning of the next reply"):
        generate(tiny, questions, output)
    assert output.read_bytes() == content


def other_base(tiny):
    model = copy.deepcopy(tiny.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.001)
    return tiny._replace(model=model)


def adapted(tiny, seed):
    torch.manual_seed(seed)
    lora = LoraConfig(r=2, target_modules=["query_key_value"], init_lora_weights=False)
    return tiny._replace(model=get_peft_model(copy.deepcopy(tiny.model), lora).eval())


def test_replies_of_two_adapters_bases_prompts_or_options_never_mix(tiny, questions, tmp_path):
    output = tmp_path / "replies.jsonl"
    first = adapted(tiny, seed=0)
    generate(first, questions, output)
    whole = output.read_bytes()
    output.write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
    written = output.read_bytes()
    for model, options, fault in (
        (adapted(tiny, seed=1), {}, "another adapter"),
        (tiny, {}, "another adapter"),
        (adapted(other_base(tiny), seed=0), {}, "another base"),
        (first, {"template": "tutorial"}, "template 'chatglm3', not 'tutorial'"),
        (first, {"system": "算"}, "system '', not '算'"),
        (first, {"min_new_tokens": 3}, "min_new_tokens=default, not 3"),
        (first, {"join": " "}, "join='\\n', not ' '"),
    ):
        with pytest.raises(ConfigError, match=f"made with {re.escape(fault)}.* another --output, or add --overwrite"):
            generate(model, questions, output, **options)
        assert output.read_bytes() == written
    assert generate(adapted(tiny, seed=0), questions, output).num_resumed == 5
    assert output.read_bytes() == whole


def test_a_finished_file_of_another_model_is_not_taken_for_this_ones(tiny, questions, tmp_path):
    output = tmp_path / "replies.jsonl"
    generate(tiny, questions, output)
    with pytest.raises(ConfigError, match="another base"):
        generate(other_base(tiny), questions, output)
    assert generate(other_base(tiny), questions, output, overwrite=True).num_resumed == 0
    assert generate(other_base(tiny), questions, output).num_resumed == 15


def test_text_that_utf8_cannot_hold(tiny, tmp_path):
    """Half a surrogate pair in a field that the model does not see."""
    line = '{"question": "你好", "note": "\\ud83d"}\n'
    (tmp_path / "q.jsonl").write_text(line, encoding="utf-8")
    for num_resumed in (0, 1):
        assert generate(tiny, tmp_path / "q.jsonl", tmp_path / "a.jsonl").num_resumed == num_resumed
    assert json.loads((tmp_path / "a.jsonl").read_bytes())["note"] == "\ud83d"


def test_interrupt_keeps_whole_lines(tiny, questions, tmp_path, whole, monkeypatch):
    output = tmp_path / "replies.jsonl"

    def interrupt():
        raise KeyboardInterrupt

    during_generation(monkeypatch, interrupt, num_replies=7)
    with pytest.raises(KeyboardInterrupt):
        generate(tiny, questions, output)
    monkeypatch.undo()
    written = output.read_bytes()
    num_written = written.count(b"\n")
    assert 7 <= num_written < 15
    assert whole.startswith(written)
    assert generate(tiny, questions, output).num_resumed == num_written
    assert output.read_bytes() == whole


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


def test_output_longer_than_input(tiny, questions, tmp_path, whole):
    output = tmp_path / "replies.jsonl"
    output.write_bytes(whole)
    questions.write_text(json.dumps(ROWS[:5], ensure_ascii=False), encoding="utf-8")
    with pytest.raises(DataError, match="15 rows, the input only 5"):
        generate(tiny, questions, output)


def test_output_can_be_the_next_input(tiny, tmp_path, whole):
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_bytes(whole)
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
    with pytest.raises(ConfigError, match="batch_size"):
        generate(tiny, questions, tmp_path / "out.jsonl", batch_size=0)
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(DataError, match="home folder"):
        generate(tiny, questions, "~nosuchuser/out.jsonl")
    with pytest.raises(ConfigError, match="a device or a pipe"):
        generate(tiny, questions, "/dev/null")
    with pytest.raises(StorageError, match=r"questions\.json: a part of the path is a file, not a folder"):
        generate(tiny, questions, questions / "out.jsonl")


QUESTION_OF_A_USER = {"index": "id-17", "instruction": "你好", "metadata": {"src": "a"}, "reply": "参考"}


def test_columns_of_the_users_own_are_kept_under_another_name(tiny, tmp_path):
    path, output = tmp_path / "q.json", tmp_path / "a.jsonl"
    path.write_text(json.dumps([QUESTION_OF_A_USER], ensure_ascii=False), encoding="utf-8")
    console = Console(file=io.StringIO(), width=300)
    generate_file(*tiny, path, output, max_new_tokens=6, console=console)
    row = json.loads(output.read_text(encoding="utf-8"))
    own = {"input_index": "id-17", "instruction": "你好", "input_metadata": {"src": "a"}, "input_reply": "参考"}
    assert row == {"index": 0, **own, "reply": row["reply"]}
    assert "q.json: the columns index, reply, metadata are written as input_index, " in console.file.getvalue()
    assert generate(tiny, path, output).num_resumed == 1
    path.write_text(json.dumps([QUESTION_OF_A_USER | {"index": "id-18"}], ensure_ascii=False), encoding="utf-8")
    with pytest.raises(DataError, match="answers another question"):
        generate(tiny, path, output)


TABLE = [
    {"instruction": '你好，\n"世界"\r\n', "id": None, "more": [1, "二"]},
    {"instruction": "好", "other": "x"},
    {"instruction": "数", "id": 3},
]


def test_a_table_is_written_and_resumed_wherever_it_was_cut(tiny, tmp_path):
    path, output = tmp_path / "q.json", tmp_path / "a.csv"
    path.write_text(json.dumps(TABLE, ensure_ascii=False), encoding="utf-8")
    generate(tiny, path, output)
    whole = output.read_bytes()
    rows = list(csv.DictReader(io.StringIO(whole.decode("utf-8-sig"), newline=""), strict=True))
    assert list(rows[0]) == ["index", "instruction", "id", "more", "other", "reply", "metadata"]
    assert [row["instruction"] for row in rows] == [row["instruction"] for row in TABLE]
    assert [(row["index"], row["id"]) for row in rows] == [("0", ""), ("1", ""), ("2", "3")]
    assert [row["more"] for row in rows] == ['[1, "二"]', "", ""]
    jsonl = tmp_path / "a.jsonl"
    generate(tiny, path, jsonl)
    replies = [json.loads(line)["reply"] for line in jsonl.read_bytes().split(b"\n")[:-1]]
    assert [row["reply"] for row in rows] == replies
    within_a_letter, second_row = whole.index("世".encode()) + 1, whole.rindex(b"\r\n", 0, -2) + 3
    for size in (0, 2, 20, within_a_letter, second_row, len(whole) - 1, len(whole)):
        output.write_bytes(whole[:size])
        generate(tiny, path, output)
        assert output.read_bytes() == whole
    output.write_bytes(whole.replace(b"index", b"number"))
    with pytest.raises(DataError, match="its heading is another one"):
        generate(tiny, path, output)


def test_a_table_of_replies_can_be_the_next_input(tiny, tmp_path):
    path, first, second = tmp_path / "q.json", tmp_path / "a.csv", tmp_path / "b.csv"
    path.write_text(json.dumps(TABLE, ensure_ascii=False), encoding="utf-8")
    generate(tiny, path, first)
    generate(tiny, first, second)
    assert second.read_bytes() == first.read_bytes()


@pytest.mark.parametrize("name", ["a.xlsx", "a.txt", "a"])
def test_a_format_that_is_not_written_is_refused(questions, tmp_path, name):
    with pytest.raises(ConfigError, match=r"\.jsonl, \.json\) or CSV"):
        check_generation_files(questions, tmp_path / name)


def test_the_bar_counts_what_is_written(tiny, questions, tmp_path, monkeypatch):
    output = tmp_path / "replies.jsonl"
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    seen = []

    def advance(self, task, num):
        seen.append(num)
        assert sum(seen) == output.read_bytes().count(b"\n")

    monkeypatch.setattr(Progress, "advance", advance)
    generate_file(*tiny, questions, output, batch_size=3, max_new_tokens=6, console=console)
    assert sum(seen) == len(ROWS)


def during_generation(monkeypatch, action, num_replies=5):
    """Runs something, once, when so many replies have ended."""
    real = Engine.step
    num_ended = 0

    def step(self):
        nonlocal num_ended
        if num_ended >= num_replies:
            monkeypatch.setattr(Engine, "step", real)
            action()
        events = real(self)
        num_ended += sum(event.finish_reason is not None for event in events)
        return events

    monkeypatch.setattr(Engine, "step", step)


def test_two_runs_never_write_into_one_file(tiny, questions, tmp_path, whole, monkeypatch):
    output, link = tmp_path / "replies.jsonl", tmp_path / "link.jsonl"
    refused = []

    def try_others():
        link.symlink_to(output)
        for path in (output, link):
            for write in (check_generation_files, partial(generate, tiny)):
                with pytest.raises(StorageError, match="is being written by another process"):
                    write(questions, path)
                refused.append(path)

    during_generation(monkeypatch, try_others)
    generate(tiny, questions, output)
    assert len(refused) == 4
    assert output.read_bytes() == whole


def test_a_full_disk_is_told_and_costs_no_reply(tiny, questions, tmp_path, whole, monkeypatch):
    output = tmp_path / "replies.jsonl"
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = len(whole) // 2 + 1  # within a line
    during_generation(monkeypatch, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard)))
    try:
        with pytest.raises(StorageError, match=r"replies\.jsonl: .*run the same command again"):
            generate(tiny, questions, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    written = output.read_bytes()
    assert whole.startswith(written)
    assert 3 <= written.count(b"\n") < len(ROWS)
    generate(tiny, questions, output)
    assert output.read_bytes() == whole


def test_a_file_that_vanishes_is_told_and_not_begun_anew_in_the_middle(tiny, questions, tmp_path, monkeypatch):
    output = tmp_path / "replies.jsonl"
    during_generation(monkeypatch, output.unlink)
    with pytest.raises(StorageError, match=r"replies\.jsonl: it, or the folder that contains it, does not exist"):
        generate(tiny, questions, output)
    assert not output.exists()


def test_faults_that_need_no_model_are_found_without_one(questions, tmp_path):
    check_generation_files(questions, tmp_path / "new" / "a.jsonl")
    assert list(tmp_path.iterdir()) == [questions]  # a check makes nothing
    with pytest.raises(DataError, match="nope"):
        check_generation_files(questions, tmp_path / "a.jsonl", {"instruction": "nope"})
    for output, error in ((tmp_path, ConfigError), (questions, ConfigError), (questions / "a.jsonl", StorageError)):
        with pytest.raises(error):
            check_generation_files(questions, output)
