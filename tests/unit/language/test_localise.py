"""What a reader would lose: their language, or the facts in a message on the way into it."""

import subprocess
import sys

import pytest

from glmtune.errors import summarise_faults
from glmtune.language import language, localise
from glmtune.language.catalogue import Template

LOCALE = ("GLMTUNE_LANG", "LC_ALL", "LC_MESSAGES", "LANG")


@pytest.fixture
def in_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_LANG", "zh")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LC_ALL": "zh_TW", "LANG": "en_US.UTF-8"}, "zh"),
        ({"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LC_ALL": "", "LC_MESSAGES": "zh_CN", "LANG": "en_US"}, "zh"),
        ({"GLMTUNE_LANG": "en", "LC_ALL": "zh_CN.UTF-8"}, "en"),
        ({"GLMTUNE_LANG": "zh", "LC_ALL": "C"}, "zh"),
    ],
)
def test_the_language_is_the_variable_else_the_locale(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LOCALE:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert language() == expected


def test_english_is_as_it_was_and_loads_nothing() -> None:
    code = (
        "import sys; from glmtune.language import localise; text = localise('unknown key x');"
        "print(text, 'glmtune.language.catalogue' in sys.modules, 'yaml' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "unknown key x False False"


@pytest.mark.usefixtures("in_chinese")
@pytest.mark.parametrize(
    "text", ["", " ", "\n", "qwertz", "你好", "a: b: c", "x" * 100_000, "{0}", "%s {", "weights.bin"]
)
def test_what_is_not_known_stays(text: str) -> None:
    assert localise(text) == text


@pytest.mark.usefixtures("in_chinese")
def test_a_name_that_is_a_word_of_ours_stays_a_name() -> None:
    assert localise("weights") == "权重"
    assert "weights:" in localise("weights: cannot be read: No such file or directory").replace("：", ":")


@pytest.mark.usefixtures("in_chinese")
def test_an_error_within_an_error() -> None:
    inner = "train.max_steps: expected at least -1; found -7"
    assert localise(inner) == "train.max_steps：应为不小于 -1 的数，实为 -7"
    assert localise(f"Error: {inner}") == f"错误：{localise(inner)}"


@pytest.mark.usefixtures("in_chinese")
def test_collected_faults() -> None:
    faults = [
        "unknown key train.learning_rat; did you mean train.learning_rate?",
        "train.max_steps: expected at least -1; found -7",
    ]
    lines = localise(f"Error: {summarise_faults('my.yaml', faults)}").split("\n")
    assert lines[0] == "错误：my.yaml：2 处错误"
    assert lines[1:] == [f"  - {localise(fault)}" for fault in faults]
    assert "learning_rat" in lines[1]
    many = localise(summarise_faults("my.yaml", faults * 20)).split("\n")
    assert many[-1] == "  …… 还有 20 处"


def test_places_may_change_their_order_and_be_left_out() -> None:
    template = Template("{0} of {1} files, {2}", "{2}：{1} 个文件中的 {0} 个")
    found = template.match("3 of 8 files, big")
    assert found == ["3", "8", "big"]
    assert template.fill(found) == "big：8 个文件中的 3 个"
    assert Template("{0} of {1}", "{1}").fill(["3", "8"]) == "8"


@pytest.mark.parametrize(
    ("english", "text", "found"),
    [
        ("{0}: found {1}", "a: b: found c", ["a: b", "c"]),
        ("{0}: found {1}", "a: lost c", None),
        ("it ends {0}", "it ends", None),
        ("aa{0}aa", "aaa", None),  # beginning and end do not overlap
        ("{0} fails", "two\nlines fails", None),  # a message of another line
        ("it says {0}", "it says two\nlines", ["two\nlines"]),
        ("first {0}\nthen {1}", "first a\nthen b\nand c", ["a", "b\nand c"]),
    ],
)
def test_what_stands_in_the_places(english: str, text: str, found: list[str] | None) -> None:
    assert Template(english, "").match(text) == found


def test_a_word_is_put_only_where_the_template_says_so() -> None:
    template = Template("adapter: {0}", "适配器：{0|none=无}")
    assert template.fill(["none"]) == "适配器：无"
    assert template.fill(["output/none"]) == "适配器：output/none"


@pytest.mark.usefixtures("in_chinese")
def test_spaces_stand_between_chinese_and_latin_only() -> None:
    template = Template("step: {0}, then {1}", "步骤 {0} 之后 {1} 结束")
    assert template.fill(["weights are spread over devices", "x"]) == "步骤权重分散在多个设备上之后 x 结束"
    assert template.fill(["", "x"]) == "步骤之后 x 结束"
