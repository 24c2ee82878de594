"""What a reader would lose: their language, or the facts in a message on the way into it."""

import io
import subprocess
import sys

import pytest

from glmtune.errors import summarise_faults
from glmtune.language import language, localise
from glmtune.language.catalogue import CatalogueEntry
from glmtune.language.terminal import TerminalConsole

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
def test_the_beginning_of_an_error_is_no_part_of_what_it_says() -> None:
    assert localise("Error: 500 cannot be drawn from 27 rows") == "错误：从 27 条里抽不出 500 条"
    fault = "a.json, line 1: expected UTF-8, found byte 0xc4 at offset 18; it looks like GBK. Convert the file: X"
    place = "错误：a.json 第 1 行：应为 UTF-8 编码，却在位置 18 遇到字节 0xc4"
    assert localise(f"Error: {fault}") == f"{place}；看起来是 GBK 编码。请转换这个文件：X"


@pytest.mark.usefixtures("in_chinese")
def test_what_to_do_about_an_unknown_command_or_option_is_a_sentence_of_its_own() -> None:
    text = localise("Error: No such command 'foo'. See glmtune data --help")
    assert text == "错误：没有 'foo' 这个命令。用法见 glmtune data --help"
    text = localise("Error: No such option: --modle (Possible options: --model). See glmtune eval --help")
    assert text == "错误：没有 --modle 这个选项；您是不是想写 --model？用法见 glmtune eval --help"


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
    assert many[-1] == "  ……还有 20 处"


def fill(template: CatalogueEntry, *found: str) -> str | None:
    """The Chinese text of a template; None where something in it has to be known and is not."""
    filled = template.fill(list(found))
    return None if filled is None else filled.text


def test_places_may_change_their_order_and_be_left_out() -> None:
    template = CatalogueEntry("{0} of {1} files, {2}", "{2}：{1} 个文件中的 {0} 个")
    found = template.match("3 of 8 files, big")
    assert found == ["3", "8", "big"]
    assert fill(template, *found) == "big：8 个文件中的 3 个"
    assert fill(CatalogueEntry("{0} of {1}", "{1}"), "3", "8") == "8"


@pytest.mark.parametrize(
    ("english", "text", "found"),
    [
        ("{0}: found {1}", "a: b: found c", ["a: b", "c"]),
        ("{0}: found {1}", "a: lost c", None),
        ("it ends {0}", "it ends", None),
        ("aa{0}aa", "aaa", None),  # beginning and end do not overlap
        ("it says {0}", "it says two\nlines", ["two\nlines"]),
        ("first {0}\nthen {1}", "first a\nthen b\nand c", ["a", "b\nand c"]),
    ],
)
def test_what_stands_in_the_places(english: str, text: str, found: list[str] | None) -> None:
    assert CatalogueEntry(english, "").match(text) == found


def test_a_word_is_put_only_where_the_template_says_so() -> None:
    template = CatalogueEntry("adapter: {0}", "适配器：{0|none=无}")
    assert fill(template, "none") == "适配器：无"
    assert fill(template, "output/none") == "适配器：output/none"


@pytest.mark.usefixtures("in_chinese")
def test_spaces_stand_between_chinese_and_latin_only() -> None:
    template = CatalogueEntry("step: {0}, then {1}", "步骤 {0} 之后 {1} 结束")
    assert fill(template, "the base has LayerNorm", "x") == "步骤基座有 LayerNorm 之后 x 结束"
    assert fill(template, "", "x") == "步骤之后 x 结束"


def test_a_place_that_takes_known_messages_only() -> None:
    template = CatalogueEntry("{0} is not {1}", "{0} 不是{1!}")
    assert (
        fill(template, "'x'", "a sampling option, such as temperature=0.8")
        == "'x' 不是采样参数（例如 temperature=0.8）"
    )
    assert fill(template, "the sky", "green") is None


@pytest.mark.usefixtures("in_chinese")
@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("config.json: kv_channels is 6, expected a multiple of 4 (half of it is rotated in pairs); rope_ratio is nan, "
         "expected a positive number up to 9",
         "config.json：kv_channels 为 6，应为 4 的倍数（其中一半要两两旋转）；rope_ratio 为 nan，应为不超过 9 的正数"),
        ("run: its base model is not in /base. Say where it is: --model FOLDER",
         "run：/base 里没有它的基座。请指明基座的位置：--model 文件夹"),
        ("q.jsonl, row 1 (line 2): message 1: unknown role 'x'; expected one of user, assistant",
         "q.jsonl 第 1 条（文件第 2 行）：消息 1：没有 'x' 这个角色；应为以下之一：user, assistant"),
    ],
)  # fmt: skip
def test_what_says_most_wins(english: str, chinese: str) -> None:
    """A general template must not take what a special one knows better."""
    assert localise(english) == chinese


@pytest.mark.usefixtures("in_chinese")
def test_a_long_message_ends() -> None:
    """Templates that backtrack into each other would take years."""
    names = ", ".join(f"model.layers.{index}.weight: shape [1, 2]" for index in range(400))
    assert localise(f"Error: run: expected one of {names}; found {names!r}. {names}").count("model.layers.399") == 3


@pytest.mark.parametrize("text", ["mine.json:-1: no such file", "[/b] :smile: [red]x.json", "[bold]"])
def test_a_file_name_is_printed_to_the_letter(text: str) -> None:
    """Not as rich's markup, which would fail or vanish, nor as the emoji that it may spell."""
    console = TerminalConsole(file=io.StringIO(), record=True, width=80)
    console.print(text)
    assert console.export_text() == f"{text}\n"
