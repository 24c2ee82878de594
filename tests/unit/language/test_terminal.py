"""Without these, a terminal could show pictures where a message has a place in a file."""

import io

from glmtune.language.terminal import TerminalConsole


def test_a_place_in_a_file_stays_what_it_is() -> None:
    shown = io.StringIO()
    TerminalConsole(file=shown).print("data.json:100: faulty; data.json:-1: no such file")
    assert shown.getvalue() == "data.json:100: faulty; data.json:-1: no such file\n"
