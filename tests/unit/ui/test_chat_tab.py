"""Without these, one question that got no answer would make every later one fail."""

from glmtune.ui.chat_tab import with_question


def test_a_question_without_an_answer_makes_place_for_the_next() -> None:
    """As after one that was too long, or was stopped before its first word."""
    answered = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]
    asked = [*answered, {"role": "user", "content": "你好" * 1000}]
    assert with_question(asked, " 你是谁？\n") == [*answered, {"role": "user", "content": "你是谁？"}]
    assert with_question(answered, "再见") == [*answered, {"role": "user", "content": "再见"}]
    assert with_question(None, "再见") == [{"role": "user", "content": "再见"}]
