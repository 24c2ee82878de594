"""Without these, `data.path` could take a drive letter for a weight, or mix other rows than were meant."""

import json

import pytest

from glmtune.data.formats import read_conversations
from glmtune.data.weights import drawn_rows, weighted_files


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a.json", [("a.json", 1.0)]),
        ("a.json:0.2", [("a.json", 0.2)]),
        ("a.json:0.2,b.json", [("a.json", 0.2), ("b.json", 1.0)]),
        ("a.json:1e-3", [("a.json", 0.001)]),
        ("a.json:.5, b.json:2", [("a.json", 0.5), ("b.json", 2.0)]),
        (r"C:\data\a.json", [(r"C:\data\a.json", 1.0)]),
        (r"C:\data\a.json:0.2", [(r"C:\data\a.json", 0.2)]),
        (r"C:\a.json:0.2,D:\b.json", [(r"C:\a.json", 0.2), (r"D:\b.json", 1.0)]),
        ("owner/name:train", [("owner/name:train", 1.0)]),
        ("owner/name:train[:100]:0.5", [("owner/name:train[:100]", 0.5)]),
        ("owner/name:0.5", [("owner/name", 0.5)]),
        ({"a.json": 0.2, "b.json": 1}, [("a.json", 0.2), ("b.json", 1.0)]),
        ({"a.json,b.json": 0.5}, [("a.json", 0.5), ("b.json", 0.5)]),
        (["a.json:0.2", "b.json"], [("a.json", 0.2), ("b.json", 1.0)]),
    ],
)
def test_names_and_weights(tmp_path, monkeypatch, given, expected):
    monkeypatch.chdir(tmp_path)
    assert weighted_files(given) == (expected, [])


def test_a_file_of_that_name_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json:2").touch()
    assert weighted_files("a.json:2") == ([("a.json:2", 1.0)], [])


@pytest.mark.parametrize(
    "given",
    [
        *("a.json:0", "a.json:-1", "a.json:-.5", "a.json:1e400", "a.json:1001"),
        *({"a.json": -1}, {"a.json": float("nan")}, {"a.json": float("inf")}),
    ],
)
def test_a_weight_is_above_nothing_and_no_slip_of_the_keyboard(given):
    files, (fault,) = weighted_files(given)
    assert files == []
    assert fault.startswith("a.json")
    assert "expected a weight above 0 and at most 1,000" in fault


def test_a_weight_is_a_number_of_rows():
    assert drawn_rows(4, 1.0, "") == [0, 1, 2, 3]
    assert drawn_rows(4, 2.0, "") == [0, 1, 2, 3] * 2
    assert len(set(drawn_rows(1000, 0.2, ""))) == 200
    assert drawn_rows(1000, 0.2, "a") != drawn_rows(1000, 0.2, "b")
    assert drawn_rows(3, 0.001, "") in ([0], [1], [2])
    more = drawn_rows(10, 1.5, "")
    assert more[:10] == list(range(10))
    assert len(set(more[10:])) == 5


def test_training_data_are_mixed_and_say_so(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"question": f"{row}?", "answer": "."} for row in range(10)]), encoding="utf-8")
    found = read_conversations({str(path): 0.3}, seed=7)
    assert len(found) == len(found.sources) == 3
    assert found.format_lines() == [f"{path}: question/answer; weight 0.3, 3 rows"]
    assert read_conversations(f"{path}:0.3", seed=7).items == found.items
    assert read_conversations(f"{path}:0.3", seed=8).items != found.items
