"""Without these, a data file could be misread as another format, or its faults come to light one at a time."""

from pathlib import Path

import pytest

from glmtune.data.formats import read_conversations, scan
from glmtune.errors import DataError
from glmtune.prompts import Conversation, Message


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str, **more) -> Message:
    return Message("assistant", text, **more)


# ---- a question and an answer --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "join", "question"),
    [
        ({"instruction": "翻译", "input": "hello"}, "\n", "翻译\nhello"),
        ({"instruction": "翻译", "input": "hello"}, "", "翻译hello"),
        ({"instruction": "翻译", "input": ""}, "\n", "翻译"),
        ({"instruction": "翻译", "input": None}, "\n", "翻译"),
        ({"instruction": "翻译"}, "\n", "翻译"),
        ({"instruction": "翻译", "input": " \n"}, "|", "翻译"),
        ({"instruction": " 翻译 \n", "input": " x "}, "|", " 翻译 \n| x "),  # letter by letter
    ],
)
def test_instruction_and_input_are_joined(read_one, row, join, question):
    assert read_one({**row, "output": "x"}, join=join) == (user(question), assistant("x"))


@pytest.mark.parametrize(
    "names",
    [
        ("question", "answer"),
        ("query", "response"),
        ("prompt", "response"),
        ("问题", "回答"),
        ("问题", "答案"),
    ],
)
def test_pairs(read_one, names):
    row = dict(zip(names, ("你是谁", "我是"), strict=True))
    assert read_one({"id": 7, **row, "other": None}) == (user("你是谁"), assistant("我是"))


def test_history_and_system(read_one):
    row = {"instruction": "q", "output": "a", "system": "S", "history": [["q1", "a1"], ["q2", "a2"]]}
    texts = [(message.role, message.content) for message in read_one(row)]
    assert texts == [
        ("system", "S"),
        ("user", "q1"),
        ("assistant", "a1"),
        ("user", "q2"),
        ("assistant", "a2"),
        ("user", "q"),
        ("assistant", "a"),
    ]


@pytest.mark.parametrize("empty", [None, "", []])
def test_empty_history_and_system_are_none(read_one, empty):
    assert len(read_one({"instruction": "q", "output": "a", "history": empty, "system": empty or ""})) == 2


def test_history_in_a_csv_cell_is_json(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('question,answer,history\n1,2,"[[""a"", ""b""]]"\n3,4,\n', encoding="utf-8")
    first, second = read_conversations(path).items
    assert first.messages == (user("a"), assistant("b"), user("1"), assistant("2"))
    assert second.messages == (user("3"), assistant("4"))


def test_fields_name_other_columns(read_one):
    row = {"q": "问", "input": "ignored?", "a": "答", "output": "not this"}
    fields = {"instruction": "q", "output": "a"}
    assert read_one(row, fields=fields)[0].content == "问\nignored?"
    assert read_one(row, fields=fields)[1].content == "答"
    assert read_one(
        {"chat": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]}, fields={"messages": "chat"}
    ) == (user("1"), assistant("2"))


def test_fields_may_swap_columns(read_one):
    swapped = {"question": "answer", "answer": "question"}
    assert read_one({"question": "1", "answer": "2"}, fields=swapped) == (user("2"), assistant("1"))


def test_several_files_of_different_forms(write):
    first = write(
        {"instruction": "q", "input": "i", "output": "a"},
        {"instruction": "q", "output": "a", "input": " "},
        name="1.json",
    )
    second = write({"question": "q", "answer": "a"}, name="2.json")
    found = read_conversations([first, Path(second)], join="")
    assert [str(source) for source in found.sources] == ["1.json, row 1", "1.json, row 2", "2.json, row 1"]
    assert found.formats == {"1.json": "instruction/output", "2.json": "question/answer"}
    assert (len(found), found.num_joined, found.join) == (3, 1, "")


def test_what_is_not_read_is_said(write):
    first = write({"instruction": "q", "output": "a", "prompt": "p", "response": "r"}, name="1.json")
    turns = [{"role": "user", "content": "q", "emotion": "sad"}, {"role": "assistant", "content": "a", "weight": 1}]
    second = write({"messages": turns, "conversations": [], "id": 7}, name="2.json")
    assert read_conversations([first, second]).formats == {
        "1.json": "instruction/output; not read: prompt, response",
        "2.json": "messages (role/content); not read: conversations, id, messages[].emotion",
    }


def test_of_two_forms_the_one_that_the_user_named_is_read(read_one, faults_of):
    row = {"instruction": "1", "output": "2", "ask": "3", "reply": "4"}
    assert read_one(row, fields={"question": "ask", "answer": "reply"}) == (user("3"), assistant("4"))
    (fault,) = faults_of(row, fields={"question": "ask"})
    assert fault.startswith("data.fields.question has no effect: these rows are read as instruction/output")


# ---- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (
            {"instruction": "q", "input": ""},
            '"output" is missing; found: instruction, input. Add it, or name its column: data.fields.output=COLUMN',
        ),
        ({"output": "a"}, '"instruction" is missing; found: output. Add it, or name its column'),
        ({"instruction": "q", "output": None}, '"output" is null; found: instruction, output'),
        ({"instruction": "q", "output": ""}, '"output" is empty'),
        ({"instruction": " \n", "output": "a"}, '"instruction" is empty'),
        ({"instruction": "q", "output": 12}, '"output" has to be a string, found a number: 12'),
        ({"instruction": "q", "output": ["a"]}, '"output" has to be a string, found an array: ["a"]'),
        ({"instruction": True, "output": "a"}, '"instruction" has to be a string, found true or false: true'),
        ({"instruction": "q", "output": "a", "input": {}}, '"input" has to be a string, found an object: {}'),
        (
            {"instruction": "q", "output": "a", "history": [["x"]]},
            '"history" 1 has to be [question, answer], found',
        ),
        ({"instruction": "q", "output": "a", "history": [["x", ""]]}, '"history 1 answer" is empty'),
        ({"instruction": "q", "output": "a", "history": "x"}, '"history" has to be JSON text, found "x"'),
        ({"instruction": "q", "output": "a", "history": {"x": 1}}, '"history" has to be an array, found an object'),
        ({"question": "q", "answer": "\ud83d"}, '"answer" holds \\ud83d, half of a surrogate pair, at character 1'),
        ({"name": "x", "text": "y"}, "no known columns; found: name, text; expected: messages; conversations; instruc"),
    ],
)
def test_one_clear_sentence_for_each_fault(faults_of, row, fault):
    (found,) = faults_of(row)
    assert found.removeprefix("row 1: ").startswith(fault)


def test_all_faults_of_all_files_are_collected(write):
    rows = [{"instruction": "q", "output": ""}, {"instruction": "q", "output": "a"}, {"instruction": 1}]
    first = write(*rows, name="1.json")
    second = write({"messages": [{"role": "x"}, {"role": "y"}]}, name="2.json")
    with pytest.raises(DataError) as caught:
        read_conversations([first, "missing.json", second])
    heading, *lines = str(caught.value).splitlines()
    assert heading == "the data cannot be used: 6 errors"
    starts = [
        '1.json, row 1: "output" is empty',
        '1.json, row 3: "instruction" has to be a string',
        '1.json, row 3: "output" is missing',
        "missing.json: there is no such file",
        "2.json, row 1: message 1: unknown role 'x'",
        "2.json, row 1: message 2: unknown role 'y'",
    ]
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(f"  - {start}")


def test_faults_of_lines_and_of_rows_come_together(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": ""}\n{"question"}\n', encoding="utf-8")
    found, faults = scan(path)
    assert len(found) == 0
    assert [fault.removeprefix(f"{path}, ")[:5] for fault in faults] == ["row 1", "row 2"]


def test_rows_of_several_forms_in_one_file(write):
    """As data conversion leaves them: a question that no rule fits keeps its columns."""
    rows = [
        {"instruction": "q", "input": "", "output": "a"},
        {"question": "q", "answer": "a", "note": "n"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"instruction": "q", "input": "", "output": "a"},
    ]
    found = read_conversations(write(*rows))
    assert found.items == [found.items[0]] * 4
    assert found.formats == {"train.json": "instruction/output, question/answer, messages; not read: note"}


def test_a_row_short_of_a_column_is_no_other_form(faults_of):
    rows = [{"instruction": "q"}, {"instruction": "q", "output": "a", "prompt": "p", "response": "r"}]
    assert [fault[:27] for fault in faults_of(*rows)] == ['row 1: "output" is missing;']


def test_rows_of_which_nothing_would_be_learnt_are_refused(faults_of):
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}]
    (fault,) = faults_of({"messages": turns})
    assert fault == "row 1: there is nothing to learn from: no turn of the assistant is supervised"


def test_a_file_cannot_drive_the_terminal_or_flood_it(faults_of):
    rows = [
        {"\x1b[31mred": "x" * 10**6, "\x9b5m" * 50: ""},
        {"messages": [{"role": "\x1b]0;title\x07" * 1000}]},
        {"messages": [{"\x1b[2J": "x"}]},
        {"messages": "\x1b[2J" * 1000},
    ]
    faults = [fault for row in rows for fault in faults_of(row)]
    assert len(faults) == len(rows)
    assert all(fault.isprintable() and len(fault) < 500 for fault in faults), faults


def test_faults_are_in_the_order_of_the_rows(faults_of):
    missing = {"instruction": "q"}
    faults = faults_of({"instruction": "q", "output": "a"}, missing, 7, missing)
    assert [fault.partition(":")[0] for fault in faults] == ["row 2", "row 3", "row 4"]


def test_both_columns_of_unknown_ones_have_to_be_named(faults_of):
    (fault,) = faults_of({"name": "x", "text": "y"})
    assert "data.fields.instruction=COLUMN data.fields.output=COLUMN" in fault


def test_unknown_fields(faults_of):
    (fault,) = faults_of({"instruction": "q", "output": "a"}, fields={"outputs": "output"})
    assert fault.startswith("data.fields.outputs is not a known column; expected one of messages, conversations, instr")


def test_a_mapped_column_that_is_not_there(faults_of):
    (fault,) = faults_of({"instruction": "q", "output": "a"}, fields={"output": "reply"})
    assert fault == 'no row has "reply" (data.fields.output); found: instruction, output'


def test_no_path():
    with pytest.raises(DataError, match=r"no data file is given\. Set data\.path"):
        read_conversations([])


@pytest.mark.real_data
@pytest.mark.filterwarnings("error")
def test_the_real_data_set(real_data):
    found = read_conversations(real_data / "data" / "huanhuan.json")
    assert len(found) == 3729
    answer = "你放心，本宫到任何时候都不会自轻自贱委屈了这孩子。"
    assert found.items[0] == Conversation((Message("user", "娘娘。"), Message("assistant", answer)))
    assert found.sources[-1].row == 3729
