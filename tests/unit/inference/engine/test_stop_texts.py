"""Without these, a reply could run on past a stop text, or lose what only looks like the beginning of one."""

import pytest

from glmtune.inference.engine.stop_texts import StopSearch


def read(reply: str, *texts: str) -> tuple[list[str], bool]:
    """The pieces that come as each letter comes, until a stop text is found, and the rest."""
    stop = StopSearch(texts)
    pieces = []
    for letter in reply:
        pieces.append(stop.push(letter))
        if stop.is_found:
            break
    return [*pieces, stop.flush()], stop.is_found


@pytest.mark.parametrize("reply", ["one END two", "END", "one ENEND", "EENDND", "one END"])
def test_the_reply_ends_before_a_stop_text(reply):
    pieces, is_found = read(reply, "END")
    assert "".join(pieces) == reply.partition("END")[0]
    assert is_found


def test_the_first_of_several_counts():
    pieces, _ = read("a 停止 b STOP", "STOP", "停止")
    assert "".join(pieces) == "a "


@pytest.mark.parametrize("reply", ["one EN", "EN EN E", "", "nothing at all"])
def test_what_only_begins_like_one_belongs_to_the_reply(reply):
    pieces, is_found = read(reply, "END", "")
    assert "".join(pieces) == reply
    assert not is_found


def test_only_what_may_begin_a_stop_text_is_kept_back():
    assert read("aENbE", "END")[0] == ["a", "", "", "ENb", "", "E"]
