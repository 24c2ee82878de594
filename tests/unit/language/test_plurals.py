"""Without these, a user would read "1 rows", or English in place of Chinese where there is only one of something."""

import pytest

from glmtune.language import localise
from glmtune.language.plurals import count


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(1, "rows", "1 row"), (0, "rows", "0 rows"), (2000, "steps", "2,000 steps"), (1, "replies", "1 reply")],
)
def test_count(number, noun, text) -> None:
    assert count(number, noun) == text


@pytest.mark.parametrize("number", [1, 2, 21])
def test_one_of_something_is_chinese_too(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_LANG", "zh")
    assert localise(f"{count(number, 'rows')}, no errors") == f"{number} 条，没有错误"
    trained = f"for training: {count(number, 'samples')}; for evaluation: {count(1, 'samples')}"
    assert localise(trained) == f"用于训练：{number} 条样本；用于评估：1 条样本"
