"""Every message has its Chinese form, and every Chinese form its message."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parents[3] / "tools" / "untranslated.py"
PLACE = re.compile(r"\{(\d+)(?:!?)(?:\|[^|={}]+=[^|{}]*)*\}")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("untranslated", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_message_has_a_chinese_form(tool: ModuleType) -> None:
    assert tool.untranslated() == {}, "python tools/untranslated.py lists them as entries to be filled in"


def test_every_entry_has_a_message(tool: ModuleType) -> None:
    assert tool.stale() == []


def test_no_entry_is_written_twice(tool: ModuleType) -> None:
    keys = [line for line in tool.CATALOGUE.read_text(encoding="utf-8").splitlines() if re.match(r"  \S", line)]
    keys = [key for key in keys if not key.startswith("  #")]
    assert [key for key in set(keys) if keys.count(key) > 1] == []


def test_entries_are_sound(tool: ModuleType) -> None:
    for part in tool.catalogue().values():
        for english, chinese in part.items():
            there, used = PLACE.findall(english), PLACE.findall(chinese)
            assert there == [str(index) for index in range(len(there))], english
            assert set(used) <= set(there), english
            assert re.search(r"[A-Za-z]", PLACE.sub("", english)), f"{english} would take any message"
            assert re.search(r"[\u4e00-\u9fff\uff00-\uffef]|^\{0\}$", chinese), f"{english}: no Chinese in {chinese!r}"
            assert not re.search(r"[\u4e00-\u9fff] ?[,;:?!]", chinese), f"a half-width sign after Chinese: {chinese}"
            assert not re.search(r"[\u4e00-\u9fff][A-Za-z0-9{]|[A-Za-z0-9}][\u4e00-\u9fff]", PLACE.sub("", chinese)), (
                f"a space is missing between Chinese and Latin: {chinese}"
            )


def test_the_tool_finds_messages(tool: ModuleType) -> None:
    import ast

    code = '''
def f(x):
    """A docstring of several words."""
    if "some words" in x:
        raise DataError(f"{x}: is " "wrong" + (" and old" if x else ""))
    logger.warning("%s is %.1f long", x, 1)
    print("done")
    re.compile("a regular expression")
    return "lower"
'''
    found = [each.template for each in tool._Collector("m.py").collect(ast.parse(code)) if each.is_prose]
    assert found == ["{0}: is wrong{1}", "and old", "{0} is {1} long", "done"]
