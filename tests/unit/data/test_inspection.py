"""Without these, `glmtune data check|show|stats` could call faulty data sound, or print what nobody can read."""

import io
import json

import datasets
import pytest
from rich.cells import cell_len
from rich.console import Console

from glmtune.data.checking import check
from glmtune.data.inspection import show, stats
from glmtune.errors import DataError

ROWS = [
    {"instruction": "翻译", "input": "[bold]hello", "output": "你好\n再见"},
    {"instruction": "问" * 60, "output": "答" * 60},
    {"instruction": "\x1b[31m", "output": "x"},
]


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=80, color_system=None)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "train.json").write_text(json.dumps(ROWS), encoding="utf-8")
    return "train.json"


def printed(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()


def test_check_says_what_was_found(path, console):
    assert len(check(path, console=console).conversations) == 3
    assert printed(console) == [
        "train.json: instruction/output",
        "3 rows, no errors",
        "in 1 row, instruction and input are joined with a newline (data.join)",
        "",
        "the first sample (train.json, row 1):",
        "  user: 翻译⏎[bold]hello",
        "  assistant: 你好⏎再见",
        "",
        "nothing else to note",
    ]


def test_check_prints_no_novel(tmp_path, console):
    row = {"instruction": "问" * 3_000_000, "output": "a", "system": "S", "tools": [{"name": "t" * 10**6}]}
    (tmp_path / "\x1b[31m.json").write_text(json.dumps([row]), encoding="utf-8")
    check(tmp_path / "\x1b[31m.json", console=console)
    text = console.file.getvalue()
    assert len(text) < 5000
    assert "(3,000,000 characters)" in text
    assert "\x1b" not in text


def test_check_tells_every_fault(tmp_path, console):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "q", "answer": ""}\n' * 57, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        check(path, console=console)
    lines = str(caught.value).splitlines()
    assert lines[0] == "the data cannot be used: 57 errors"
    assert lines[-1] == f'  - {path}, row 57 (line 57): "answer" is empty. Fill it in or remove the row'
    assert len(lines) == 58


def test_show_marks_what_is_learnt_without_colour(path, letters, console):
    show(path, letters, system="S", num_samples=1, console=console)
    assert printed(console)[2:] == [
        "",
        "sample 1 (train.json, row 1): 29 tokens, 7 learnt",
        "  [gMASK]/sop/<|system|>/⏎/S/<|user|>/⏎/翻/译/⏎/[/b/o/l/d/]/h/e/l/l/o",
        "  <|assistant|>",
        "+ ⏎/你/好/⏎/再/见/</s>",
    ]


def test_show_fits_a_chinese_terminal(path, letters, console):
    show(path, letters, start=2, num_samples=5, console=console)
    lines = printed(console)
    assert max(cell_len(line) for line in lines) <= 80
    given = "".join(line[2:] for line in lines if line.startswith("  "))
    assert given.count("问") == 60
    assert sum(line.count("答") for line in lines if line.startswith("+ ")) == 60
    assert [line for line in lines if line.startswith("sample")][-1].startswith("sample 3 (train.json, row 3)")
    assert "\x1b" not in "".join(lines)  # a text must not drive the terminal
    assert "\\x1b/[/3/1/m" in given


def test_show_colours_what_is_learnt(path, letters):
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
    show(path, letters, num_samples=1, console=console)
    assert "\x1b[1;32m</s>" in console.file.getvalue()


def test_show_tells_truncation(path, letters, console):
    show(path, letters, start=2, num_samples=1, max_length=40, console=console)
    text = " ".join(printed(console)).replace("  ", " ")
    assert "sample 2 (train.json, row 2): 39 tokens, 17 learnt; cut: 88 tokens, dropped: 0 messages" in text


@pytest.mark.parametrize("start", [0, 4])
def test_show_knows_its_samples(path, letters, console, start):
    with pytest.raises(DataError, match=f"there is no sample {start}; the data have samples 1 to 3"):
        show(path, letters, start=start, console=console)


def test_show_names_the_row_that_cannot_be_rendered(path, letters, console):
    with pytest.raises(DataError, match=r"train\.json, row 1: nothing is left after truncation to 5 tokens"):
        show(path, letters, max_length=5, console=console)


def test_stats_in_tokens(path, letters, console):
    counted = stats(path, letters, console=console)
    lines = printed(console)
    assert counted.num_samples == 3
    assert any(line.split()[:2] == ["tokens", "samples"] for line in lines)
    histogram = lines[lines.index("") + 1 :][1:]
    assert sum(int(line.split()[1]) for line in histogram) == 3
    assert max(cell_len(line) for line in lines) <= 80


def test_stats_in_characters(path, console):
    assert stats(path, join="", console=console) is None
    lines = printed(console)
    assert lines[1] == "3 rows, 6 messages, 144 characters"
    assert lines[2].startswith("characters per row: min 6, mean 48, p50 18,")
    assert any(line.split()[:2] == ["characters", "samples"] for line in lines)


def test_stats_show_the_split_that_a_run_would_make(path, letters, console):
    stats(path, letters, eval_fraction=0.4, console=console)
    stats(path, console=console, eval_fraction=0.1)
    split = [line for line in printed(console) if line.startswith("for training")]
    assert split == ["for training: 2 samples; for evaluation: 1 sample"] * 2


def test_a_histogram_of_one_length(tmp_path, console):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n' * 1500, encoding="utf-8")
    stats(path, console=console)
    assert printed(console)[-1].split()[:2] == ["2", "1,500"]
    assert set(printed(console)[-1].split()[2]) == {"#"}
