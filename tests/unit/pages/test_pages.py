"""Without these, a row of data could run as a script in somebody's browser, or a page could need the network."""

import re
from html.parser import HTMLParser

import pytest

from glmtune.pages import Markup, bar_chart, element, figures, joined, note, page, section, table

ATTACK = '<script>alert("1")</script>&\x1b[31m'


class Reader(HTMLParser):
    """The tags of a page in order, the texts outside the style sheet, and whether every tag is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)


@pytest.fixture
def whole() -> str:
    return page(
        ATTACK,
        section(ATTACK, note(ATTACK), figures([(ATTACK, ATTACK)])),
        table([ATTACK, "n"], [[ATTACK, "1"], [element("b", ATTACK), "2"]], numeric={1}),
        bar_chart([(ATTACK, 3, "3"), ("b", 0, "0")], label=ATTACK),
        subtitle=ATTACK,
    )


def test_contents_of_files_stay_text(whole):
    reader = Reader(whole)
    assert "script" not in reader.tags
    assert reader.open == []
    shown = [text for text in reader.texts if text.startswith("<script>")]
    assert shown == ['<script>alert("1")</script>&\\x1b[31m'] * len(shown)
    assert len(shown) == 11
    assert "\x1b" not in whole


def test_a_page_loads_nothing(whole):
    assert not re.search(r"https?://|url\(|@import|\bsrc=|<link|<script", whole)


@pytest.mark.parametrize(("code", "lang"), [("zh", "zh-CN"), ("en", "en")])
def test_a_page_names_its_language(monkeypatch, code, lang):
    monkeypatch.setenv("GLMTUNE_LANG", code)
    assert f'<html lang="{lang}">' in page("t")


def test_the_longest_bar_fills_the_chart():
    chart = bar_chart([("a", 5, "5"), ("b", 10, "10"), ("c", 0, "0")], label="x")
    assert re.findall(r"max\(([\d.]+)%", chart) == ["50.00", "100.00", "0.00"]


def test_bars_of_nothing_are_empty():
    assert "max(0.00%, 0px)" in bar_chart([("a", 0, "0")], label="x")


def test_line_breaks_stay():
    assert joined("a\r\nb", Markup("<br>")) == "a\nb<br>"
