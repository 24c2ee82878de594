"""Without these, the data commands could print or write something else than their functions in Python do."""

import json
import os

import pytest
from typer.testing import CliRunner

from glmtune.cli.app import app

ROWS = [
    {"question": "西湖在哪里？", "answer": "在杭州。"},
    {"question": "请问西湖在哪里", "answer": "不知道。"},
    {"question": "中山陵在哪里？", "answer": "在南京。"},
]


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Calls a data command in a folder with a file of rows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (tmp_path / "bad.json").write_text(json.dumps([{"question": "q", "answer": ""}]), encoding="utf-8")

    def call(*arguments: str) -> tuple[int, str]:
        result = CliRunner(env={"COLUMNS": "100"}).invoke(app, ["data", *arguments])
        return result.exit_code, result.stdout

    return call


def test_check_prints_findings_for_programs(invoke):
    code, text = invoke("check", "a.json", "--eval", "a.json", "--json")
    result = json.loads(text)
    assert (code, result["rows"], result["faults"]) == (0, 3, [])
    assert [finding["name"] for finding in result["findings"]] == ["leak", "conflicting_answers"]
    assert result["findings"][1]["rows"] == [[{"file": "a.json", "row": row, "line": None} for row in (1, 2)]]


def test_check_of_faulty_data_fails_for_programs_too(invoke):
    code, text = invoke("check", "bad.json", "--json")
    assert code == 1
    assert json.loads(text)["faults"] == ['bad.json, row 1: "answer" is empty. Fill it in or remove the row']


def test_faults_of_evaluation_data_are_json_too(invoke):
    code, text = invoke("check", "a.json", "--eval", "bad.json", "--json")
    assert code == 1
    assert json.loads(text)["faults"] == ['bad.json, row 1: "answer" is empty. Fill it in or remove the row']


@pytest.mark.posix  # other systems have no such names
def test_a_name_that_is_no_utf_8_is_json_too(invoke):
    name = os.fsdecode(b"\xff.json")
    os.rename("a.json", name)
    code, text = invoke("check", name, "--json")
    assert (code, list(json.loads(text)["formats"])) == (0, [name])


def test_an_option_that_the_page_has_no_place_for_is_refused(invoke, tmp_path):
    code, text = invoke("stats", "a.json", "--eval-fraction", "0.5", "--html", "page.html")
    assert (code, text) == (1, "")
    assert not (tmp_path / "page.html").exists()


def test_a_path_can_be_copied_from_what_is_printed(invoke, tmp_path):
    output = tmp_path / ("n" * 200) / "out.json"
    _, text = invoke("sample", "a.json", "--count", "1", "--output", str(output))
    assert f"written to {output}\n" in text
    _, text = invoke("stats", "a.json", "--html", str(output.with_suffix(".html")))
    assert text == f"page: {output.with_suffix('.html')}\n"


def test_check_prints_findings_for_people(invoke):
    code, text = invoke("check", "a.json")
    assert code == 0
    assert "worth a look: 1 finding\n  - asked more than once: 1 question, with 2 different answers" in text
    assert "    rows: a.json 1 + 2\n" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("dedupe", "a.json", "--by", "question", "--output", "out.json"), "2 kept, 1 removed as exact"),
        (("dedupe", "a.json", "--exact", "--output", "out.json"), "3 kept, 0 removed"),
        (("split", "a.json", "--count", "1", "--output", "."), "for training: 2 rows, train.json"),
        (("sample", "a.json", "--count", "2", "--output", "out.jsonl"), "2 of 3 rows written to out.jsonl"),
        (("merge", "a.json:0.34", "a.json", "--output", "out.json"), "4 rows written to out.json"),
        (("convert", "a.json", "--to", "alpaca", "--output", "out.json"), "3 rows written to out.json"),
        (("stats", "a.json", "--html", "page.html"), "page: page.html"),
    ],
)
def test_every_command_says_what_it_did(invoke, arguments, expected):
    code, text = invoke(*arguments)
    assert code == 0
    assert expected in text
