"""Without these, a reply could run on past a stop text, or lose what only looks like the beginning of one."""

import pytest

from glmtune.inference.engine.stop_texts import StopTexts


def read(letters, reply: str, *texts: str) -> tuple[list[str], bool]:
    """The pieces that come as each letter is generated, until a stop text is found, and the rest."""
    stop = StopTexts(letters, texts)
    pieces = []
    for token_id in letters.encode_text(reply):
        pieces.append(stop.push(token_id))
        if stop.is_found:
            break
    return [*pieces, stop.flush()], stop.is_found


@pytest.mark.parametrize("reply", ["one END two", "END", "one ENEND", "EENDND", "one END"])
def test_the_reply_ends_before_a_stop_text(letters, reply):
    pieces, is_found = read(letters, reply, "END")
    assert "".join(pieces) == reply.partition("END")[0]
    assert is_found


def test_the_first_of_several_counts(letters):
    pieces, _ = read(letters, "a 停止 b STOP", "STOP", "停止")
    assert "".join(pieces) == "a "


@pytest.mark.parametrize("reply", ["one EN", "EN EN E", "", "nothing at all"])
def test_what_only_begins_like_one_belongs_to_the_reply(letters, reply):
    pieces, is_found = read(letters, reply, "END", "")
    assert "".join(pieces) == reply
    assert not is_found


def test_only_what_may_begin_a_stop_text_is_kept_back(letters):
    assert read(letters, "aENbE", "END")[0] == ["a", "", "", "ENb", "", "E"]


def test_byte_tokens_that_complete_a_character(tiny):
    """Most characters of a small vocabulary are several tokens."""
    reply = "好的，龘龘停"
    stop = StopTexts(tiny.tokenizer, ["龘停"])
    pieces = []
    for token_id in tiny.tokenizer.encode_text(reply):
        pieces.append(stop.push(token_id))
    assert "".join(pieces) == "好的，龘"
    assert stop.is_found
