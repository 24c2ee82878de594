import json

import pytest

from glmtune.errors import DataError
from glmtune.inference.questions import read_questions
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
        {"question": ""},
        {"text": "x"},
        {"messages": []},
        {"question": "好"},
        {"messages": [{"role": "assistant", "content": "答"}]},
        {"query": "二", "history": [["一"]]},
    ]
    with pytest.raises(DataError) as caught:
        read_questions(write(tmp_path, rows))
    message = str(caught.value)
    assert [number for number in range(1, 7) if f"row {number} " in message] == [1, 2, 3, 5, 6]


@pytest.mark.parametrize("data", [b"", b"\n\n", "你好".encode("gbk")])
def test_bad_text_files(tmp_path, data):
    path = tmp_path / "q.txt"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"q\.txt"):
        read_questions(path)
    with pytest.raises(DataError, match=r"nowhere\.txt"):
        read_questions(tmp_path / "nowhere.txt")
