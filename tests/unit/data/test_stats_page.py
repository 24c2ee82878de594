"""Without these, the page about a data set could miss what is learnt, run a row as a script, or speak two languages."""

import json
import re

import datasets
import pytest

from glmtune.data.stats_page import write_stats_page
from glmtune.errors import DataError

ROWS = [
    {"instruction": "<script>alert(1)</script>怎么用？", "output": "不要用。"},
    {"instruction": "How are you?", "output": "Fine, thanks & you?"},
    {"instruction": "这个问题有点长" * 3, "output": "回答\n也长。" * 3},
    {"instruction": "日本語は？", "output": "すこしわかります。"},
]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the page of some rows, and returns it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write_page(rows, *arguments, **more) -> str:
        (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
        write_stats_page(tmp_path / "a.json", tmp_path / "new" / "page.html", *arguments, **more)
        return (tmp_path / "new" / "page.html").read_text(encoding="utf-8")

    return write_page


def texts(page: str) -> str:
    return re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)


def test_what_is_learnt_is_marked_token_by_token(write, letters):
    page = write(ROWS, letters)
    learnt = re.findall(r'<span class="learnt">(.*?)</span>', page, flags=re.DOTALL)
    assert learnt[1:] == ["⏎不要用。&lt;/s&gt;", *learnt[2:]]
    assert len(learnt) == 3  # the legend, and two samples, since the longest is the one of middle length
    assert "&lt;script&gt;" in page
    assert "<script" not in page


def test_what_is_learnt_is_marked_without_a_tokenizer(write):
    page = write([{**ROWS[0], "system": "S", "history": [["q", "a"]]}])
    assert re.findall(r'<span class="learnt">(.*?)</span>', page)[1:] == ["a", "不要用。"]
    assert "system" in texts(page)


def test_a_page_counts_rows_languages_and_openings(write):
    text = texts(write(ROWS * 2))
    for expected in (
        "rows in all",
        "Chinese",
        "English and other Latin letters",
        "Japanese",
        "How are you?",
        "这个问题",
    ):
        assert expected in text
    assert "4 (50 %)" in text
    assert "the same as an earlier one: 4 rows" in text
    assert "Remove them with glmtune data dedupe" in text


def test_a_page_without_findings_says_so(write):
    assert "nothing else to note" in texts(write(ROWS[1:]))


def test_a_page_is_in_one_language(write, monkeypatch):
    rows = [{"instruction": f"{word}？", "output": f"{word}。"} for word in "天地玄黄"] * 2
    monkeypatch.setenv("GLMTUNE_LANG", "zh")
    text = texts(write(rows)).replace("instruction/output", "").replace("a.json", "")
    text = re.sub(r"/\S+|glmtune data dedupe|assistant|user|p\d\d", "", text)
    assert re.findall(r"[A-Za-z]{2,}", text) == []


def test_only_a_page_is_replaced(write, tmp_path):
    write(ROWS)
    assert "天" in write([{"instruction": "天", "output": "地"}])
    with pytest.raises(DataError, match=r"expected a file named \.html"):
        write_stats_page(tmp_path / "a.json", tmp_path / "a.json")
