"""Without these, a streamed reply could differ from the whole one, show half a character, or not be stoppable."""

import random
import threading

import pytest
import torch

from glmtune.errors import ConfigError, ModelError
from glmtune.inference.generate import read_reply
from glmtune.inference.options import build_generation_config
from glmtune.inference.streaming import decode_reply, stream_text
from glmtune.prompts import Conversation, Message, render_prompt


def decode(tokenizer, ids, template="chatglm3") -> list[str]:
    return list(decode_reply(ids, tokenizer, template))


@pytest.mark.parametrize("template", ["chatglm3", "tutorial"])
def test_pieces_are_the_reply(tiny, template):
    tokenizer = tiny.tokenizer
    generation = build_generation_config(tokenizer, 512, {})
    dice = random.Random(7)
    turn, space = tokenizer.get_command("<|assistant|>"), tokenizer.encode_text(" \n \n")
    texts = ["\n", "天气\n", "你好，世界", " a b ", "🙂", "龘", "", "\n\n", "def f():\n    return 1"]
    for _ in range(200):
        ids = []
        for _ in range(dice.randrange(8)):
            ids += dice.choice([[turn], space, *(tokenizer.encode_text(text) for text in texts)])
        pieces = decode(tokenizer, ids, template)
        assert "".join(pieces) == read_reply(ids, tokenizer, template, generation).text


def test_no_piece_ends_within_a_character(tiny):
    text = "表情🙂和生僻字龘𠮷都要完整"
    ids = [*tiny.tokenizer.encode_text("\n"), *tiny.tokenizer.encode_text(text)]
    pieces = decode(tiny.tokenizer, ids)
    assert "".join(pieces) == text
    assert len(pieces) > 5
    assert not any("\ufffd" in piece for piece in pieces)


def test_header_is_not_shown(tiny):
    ids = [*tiny.tokenizer.encode_text("get_weather\n"), *tiny.tokenizer.encode_text("tool_call()")]
    assert "".join(decode(tiny.tokenizer, ids)) == "tool_call()"


def stream(tiny, token_ids=None, **options):
    prompt = render_prompt(Conversation((Message("user", "你好"),)), tiny.tokenizer)
    generation = build_generation_config(tiny.tokenizer, 512, options)
    ids = [] if token_ids is None else token_ids
    return stream_text(tiny.model, tiny.tokenizer, prompt, "tutorial", generation, ids)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}], ids=["engine", "transformers"])
def test_closing_stops_the_model(tiny, options):
    token_ids: list[int] = []
    pieces = stream(tiny, token_ids, max_new_tokens=400, **options)
    next(pieces)
    pieces.close()
    assert 0 < len(token_ids) < 100
    num_ids, num_threads = len(token_ids), threading.active_count()
    list(stream(tiny, max_new_tokens=2, **options))  # its thread comes and goes
    assert (len(token_ids), threading.active_count()) == (num_ids, num_threads)


def test_errors_of_the_thread_arrive(tiny, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("broken kernel")

    monkeypatch.setattr(tiny.model, "forward", fail)
    with pytest.raises(RuntimeError, match="broken kernel"):
        list(stream(tiny, use_cache=False))


def test_out_of_memory_is_an_error(tiny, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(tiny.model, "forward", fail)
    with pytest.raises(ModelError, match="out of memory"):
        list(stream(tiny, use_cache=False))


def test_beams_cannot_be_streamed(tiny):
    with pytest.raises(ConfigError, match="num_beams"):
        list(stream(tiny, num_beams=2))
