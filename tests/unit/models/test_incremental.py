"""Without these, a streamed reply could lose or garble characters where it is cut into parts."""

from itertools import combinations, pairwise

import pytest

from glmtune.models.chatglm import ChatGLMTokenizer, IncrementalDecoder


def _ids(tokenizer: ChatGLMTokenizer, *parts: str | int) -> list[int]:
    """Ids of texts, of special tokens by name, and single ids, one behind the other."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
        elif part.startswith(("<|", "</s>")):
            ids.append(tokenizer.get_command(part))
        else:
            ids += tokenizer.encode_text(part)
    return ids


REPLIES = {
    "text": lambda t: _ids(t, "你好，我是 an assistant."),
    "spaces": lambda t: _ids(t, "  a  b ", "\n\t", " c"),
    "byte tokens": lambda t: _ids(t, "a😀👩‍👧𠮷 b"),
    "a replacement character": lambda t: _ids(t, "a\ufffdb\ufffd"),
    "special tokens": lambda t: _ids(t, "<|assistant|>", "\n", "a 你", "<|observation|>", "<|user|>", " b", "</s>"),
    "a space behind a special token": lambda t: _ids(t, "a", "<|assistant|>", " b", " c"),
    "many special tokens": lambda t: _ids(t, "a", *["<|user|>"] * 9, " b"),
    "a special token within a character": lambda t: [
        *t.encode_text("😀")[:-2],
        t.eos_token_id,
        *t.encode_text("😀")[-2:],
        *t.encode_text("b"),
    ],
    "half a character, then text": lambda t: [*t.encode_text("a😀")[:-1], *t.encode_text("b c")],
    "half a character at the end": lambda t: t.encode_text("a b😀")[:-1],
    "an id without a piece": lambda t: _ids(t, "a", t.vocab_size + 3, " b"),
    "nothing": lambda t: [],
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=[name.replace(" ", "-") for name in REPLIES])
def test_every_way_to_cut_a_reply(tokenizer, reply) -> None:
    ids = reply(tokenizer)
    whole = tokenizer.decode_text(ids)
    points = range(len(ids) + 1)
    ways = [
        points,
        *((0, a, b, len(ids)) for a, b in combinations(points, 2)),
    ]  # one by one; in up to three
    for cuts in ways:
        decoder = IncrementalDecoder(tokenizer)
        shown = ""
        for start, stop in pairwise(cuts):
            shown += decoder.push(ids[start:stop])
            assert whole.startswith(shown)
        assert shown + decoder.flush() == whole
        assert decoder.flush() == ""


def test_no_half_character_is_shown(tokenizer) -> None:
    decoder = IncrementalDecoder(tokenizer)
    parts = [decoder.push([token_id]) for token_id in tokenizer.encode_text("😀𠮷a")]
    assert [part for part in parts if part] == ["😀", "𠮷", "a"]
