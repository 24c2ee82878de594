"""Without these, accuracies could not be compared with those of lm-evaluation-harness."""

import json
from pathlib import Path

import numpy
import pytest

from glmtune.errors import DataError
from glmtune.evaluation.choices import choice_log_likelihoods, read_choices, right_answers
from glmtune.loading.bases import load_base

FOLDER = Path(__file__).parent / "choices"


@pytest.mark.parametrize("name", ["ceval", "mmlu"])
def test_log_likelihoods_are_those_of_lm_evaluation_harness(name: str) -> None:
    golden = json.loads((FOLDER / "lm_eval.json").read_text(encoding="utf-8"))["log_likelihoods"]
    model, tokenizer = load_base(None, "float32", "cpu")
    questions = read_choices(FOLDER / f"{name}.csv")
    for kind in ("prefix", "plain"):
        found = choice_log_likelihoods(model, tokenizer, questions, adds_prefix=kind == "prefix")
        theirs = numpy.asarray(golden[f"{name}/{kind}"])
        assert numpy.abs(numpy.asarray(found) - theirs).max() < 1e-3
        chosen = ["ABCD"[index] for index in theirs.argmax(axis=1)]
        right = [letter == question.answer for letter, question in zip(chosen, questions, strict=True)]
        assert right_answers(questions, found).tolist() == right


def test_both_layouts_are_read() -> None:
    chinese, english = read_choices(FOLDER / "ceval.csv"), read_choices(FOLDER / "mmlu.csv")
    assert chinese[3].prompt == "一个正方形的边长是 4，它的面积是多少？\nA. 8\nB. 12\nC. 24\nD. 16\n答案："
    assert chinese[3].answer == "D"
    assert english[1].prompt == "If x + 2 = 5, what is x?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    assert (len(chinese), len(english)) == (6, 6)


def test_a_long_question_is_read(tmp_path: Path) -> None:
    """By default, Python's csv refuses a cell of more than 128 KiB."""
    file = tmp_path / "long.csv"
    file.write_text(f"{'x' * 200_000},a,b,c,d,A\n")
    [question] = read_choices(file)
    assert question.prompt.startswith("x" * 200_000)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("question,A,B,C,D\n甲,1,2,3,4\n", "no column answer"),
        ("question,A,B,answer\n甲,1,2,E\n乙,1,2,A\n", "row 2: the answer has to be one of AB; found 'E'"),
        ("instruction,output\n甲,乙\n", "expected a heading"),
        ("", "empty"),
        ("question,A,B,answer\n", "holds no rows"),
        ('question,A,B,answer\n"甲,1,2,A\n', "not CSV: unexpected end of data"),
        ("question,A,B,answer\n甲,1,2,A\n".encode("gbk"), "line 2: .*; it looks like GBK"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(text: str | bytes, fault: str, tmp_path: Path) -> None:
    file = tmp_path / "choices.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=fault):
        read_choices(file)
