"""Without these, text out of a file could flood an error message or take over the terminal."""

from glmtune.errors import show_names, show_text


def test_what_a_terminal_acts_on_is_spelt_out():
    assert show_text("a\x1b[31m\x9b\x07\r\n\u202e\ud83dб　你") == "a\\x1b[31m\\x9b\\x07\\r\\n\\u202e\\ud83dб　你"


def test_long_texts_are_cut_and_their_length_told():
    assert show_text("你" * 3_000_000, 5) == "你你你你你... (3,000,000 characters)"
    assert show_text("12345", 5) == "12345"


def test_many_names_are_counted():
    assert show_names(["a", "\x1b"]) == "a, \\x1b"
    assert show_names(f"c{number}" for number in range(1000)).endswith("c19, and 980 more")
