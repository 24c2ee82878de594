"""Without these, a file of questions without answers could not be answered, or its rows be mixed up."""

import json

import pytest

from glmtune.data.formats import read_conversations, read_questions
from glmtune.errors import DataError
from glmtune.prompts import Conversation, Message


def write(tmp_path, rows, name="q.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def user(text):
    return Conversation((Message("user", text),))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "译", "input": "hi", "output": "参考"}, user("译\nhi")),
        ({"instruction": "译", "input": ""}, user("译")),
        ({"question": "问", "answer": "答"}, user("问")),
        ({"query": "问"}, user("问")),
        ({"prompt": "问"}, user("问")),
        ({"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]}, user("问")),
        ({"messages": [{"role": "user", "content": "问"}]}, user("问")),
        ({"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]}, user("问")),
        (
            {"query": "二", "history": [["一", "1"]], "system": "算"},
            Conversation(
                (Message("system", "算"), Message("user", "一"), Message("assistant", "1"), Message("user", "二"))
            ),
        ),
    ],
)
def test_forms(tmp_path, row, expected):
    [question] = read_questions(write(tmp_path, [row]))
    assert question.conversation == expected
    assert question.values == row


def test_join_and_fields(tmp_path):
    [question] = read_questions(
        write(tmp_path, [{"task": "译", "input": "hi"}]), fields={"instruction": "task"}, join=""
    )
    assert question.conversation == user("译hi")
    assert question.values == {"task": "译", "input": "hi"}


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"qestion": "ask"}, "data.fields.qestion is not a known column"),
        ({"question": "nope"}, r'no row has "nope" \(data.fields.question\); found: question, ask'),
        ({"instruction": "ask", "question": "ask", "input": "ask"}, "data.fields.question has no effect"),
    ],
)
def test_a_mapping_that_would_be_passed_over_is_refused(tmp_path, fields, fault):
    path = write(tmp_path, [{"question": "old", "ask": "new"}])
    with pytest.raises(DataError, match=fault):
        read_questions(path, fields)


def test_a_mapped_column_goes_before_the_one_of_the_standard_name(tmp_path):
    path = write(tmp_path, [{"instruction": "other", "question": "old", "ask": "new"}])
    assert read_questions(path, {"question": "ask"})[0].conversation == user("new")


def test_the_mapping_of_training_serves_for_questions_without_answers(tmp_path):
    path = write(tmp_path, [{"ask": "问"}])
    assert read_questions(path, {"question": "ask", "answer": "reply"})[0].conversation == user("问")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "instruction": "q", "input": "i", "output": "a", "history": [["1", "2"]], "system": "S"},
        {"instruction": "not this: it has no output", "query": "q", "response": "a", "tools": [{"name": "t"}]},
        {"instruction": "q", "output": "a", "messages": None},
        {"tools": [], "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    ],
)
def test_the_model_is_asked_what_it_was_trained_on(tmp_path, row):
    path = write(tmp_path, [row])
    [trained] = read_conversations(path, join="|").items
    [question] = read_questions(path, join="|")
    assert question.conversation.messages == trained.messages[:-1]


def test_text_file(tmp_path):
    path = tmp_path / "q.txt"
    path.write_bytes("\ufeff你好\r\n\n  是谁？ \n".encode())
    questions = read_questions(path)
    assert [question.values for question in questions] == [{"question": "你好"}, {"question": "是谁？"}]
    assert str(questions[1].source) == f"{path}, row 2 (line 3)"


def test_csv(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text("instruction,output\n你好,\n", encoding="utf-8")
    assert read_questions(path)[0].conversation == user("你好")


def test_all_faults_are_named(tmp_path):
    rows = [
        {"question": "好", "history": "x"},
        {"question": ""},
        {"messages": []},
        {"question": "好"},
        {"question": "二", "tools": [float("nan")]},
        {"question": "二", "history": [["一"]]},
    ]
    with pytest.raises(DataError) as caught:
        read_questions(write(tmp_path, rows))
    message = str(caught.value)
    assert [number for number in range(1, 7) if f"row {number} " in message] == [1, 2, 3, 5, 6]
    with pytest.raises(DataError, match="nobody has asked anything"):
        read_questions(
            write(tmp_path, [{"messages": [{"role": role, "content": "x"} for role in ("assistant", "user")]}])
        )
    with pytest.raises(DataError, match="nobody has asked anything"):
        read_questions(write(tmp_path, [{"messages": [{"role": "assistant", "content": "答"}]}]))
    with pytest.raises(DataError, match="the question is empty"):
        read_questions(write(tmp_path, [{"messages": [{"role": "user", "content": " "}]}]))


def test_messages_are_numbered_as_in_the_file(tmp_path):
    """Not as in what is left of it without the answer and with the row's system text."""
    messages = [{"role": role, "content": "x"} for role in ("user", "user", "assistant")]
    with pytest.raises(DataError, match="message 2 is the user's"):
        read_questions(write(tmp_path, [{"system": "S", "messages": messages}]))


def test_an_answer_that_is_still_to_be_written_may_be_empty(tmp_path):
    row = {"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": ""}]}
    assert read_questions(write(tmp_path, [row]))[0].conversation == user("问")


def test_several_files_are_asked_in_order(tmp_path):
    for name in ("b", "a"):
        write(tmp_path, [{"question": name}], f"{name}.jsonl")
    expected = {str(tmp_path): "ab", f"{tmp_path}/b.jsonl,{tmp_path}/a.jsonl": "ba", f"{tmp_path}/*.jsonl": "ab"}
    for given, order in expected.items():
        assert "".join(question.values["question"] for question in read_questions(given)) == order
    with pytest.raises(DataError, match=r"none-\*: no file matches"):
        read_questions([tmp_path, "none-*"])


@pytest.mark.parametrize("data", [b"", b"\n\n", "你好".encode("gbk")])
def test_bad_text_files(tmp_path, data):
    path = tmp_path / "q.txt"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"q\.txt"):
        read_questions(path)
    with pytest.raises(DataError, match=r"nowhere\.txt"):
        read_questions(tmp_path / "nowhere.txt")
