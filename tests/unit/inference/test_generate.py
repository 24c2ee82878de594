"""Without these, a prompt's reply could depend on what it is batched with, or not stop where the turn ends."""

import logging

import pytest
import torch

from glmtune.errors import ConfigError, DataError, ModelError
from glmtune.inference.generate import fit_prompt, generate_batches, generate_replies, read_reply
from glmtune.inference.options import build_generation_config
from glmtune.inference.streaming import stream_text
from glmtune.prompts import Conversation, Message, render_prompt

QUESTIONS = ["你好", "请介绍一下你自己，越详细越好。", "hello world, this is a test", "1+1=?", "a</s>b <|user|> x"]


def ask(text: str) -> Conversation:
    return Conversation((Message("user", text),))


@pytest.mark.parametrize("template", ["chatglm3", "tutorial"])
def test_batched_equals_single(tiny, template):
    conversations = [ask(question) for question in QUESTIONS]
    batched = generate_replies(*tiny, conversations, template, batch_size=3, max_new_tokens=24)
    single = [generate_replies(*tiny, [each], template, batch_size=1, max_new_tokens=24)[0] for each in conversations]
    assert batched == single
    assert len({reply.text for reply in batched}) > 1


def test_equals_plain_generate(tiny):
    prompt = render_prompt(ask("你好"), tiny.tokenizer)
    output = tiny.model.generate(
        input_ids=torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=tiny.tokenizer.stop_token_ids
    )
    [reply] = generate_replies(*tiny, [ask("你好")], max_new_tokens=24)
    generation = build_generation_config(tiny.tokenizer, 512, {})
    assert reply == read_reply(output[0, len(prompt) :].tolist(), tiny.tokenizer, "chatglm3", generation)
    assert reply.text
    assert not reply.is_complete


@pytest.mark.parametrize("token", ["</s>", "<|user|>", "<|observation|>"])
def test_stops_at_any_turn_end(tiny, monkeypatch, token):
    """The second new token is forced to be a stop id; only the row that it was forced in stops."""
    stop = tiny.tokenizer.get_command(token)
    prompts = [render_prompt(ask(question), tiny.tokenizer) for question in QUESTIONS[:2]]
    generation = build_generation_config(tiny.tokenizer, 512, {"max_new_tokens": 6})
    forward = tiny.model.forward

    def forced(input_ids, past_key_values=None, **kwargs):
        outputs = forward(input_ids=input_ids, past_key_values=past_key_values, **kwargs)
        if input_ids.shape[1] == 1 and outputs.past_key_values.get_seq_length() == max(map(len, prompts)) + 1:
            outputs.logits[0, -1, stop] = 1e6
        return outputs

    monkeypatch.setattr(tiny.model, "forward", forced)
    [batch] = generate_batches(tiny.model, prompts, generation, batch_size=2)
    replies = dict(batch)
    assert sorted(len(ids) for ids in replies.values()) == [2, 6]
    [stopped] = [ids for ids in replies.values() if len(ids) == 2]
    assert stopped[-1] == stop
    assert read_reply(stopped, tiny.tokenizer, "chatglm3", generation).is_complete


def test_reads_tool_calls(tiny):
    tokenizer = tiny.tokenizer
    generation = build_generation_config(tokenizer, 512, {})
    ids = [*tokenizer.encode_text("\n"), *tokenizer.encode_text("我查一下"), tokenizer.get_command("<|assistant|>")]
    ids += [*tokenizer.encode_text("get_weather\n"), *tokenizer.encode_text("tool_call(city='北京')")]
    reply = read_reply([*ids, tokenizer.get_command("<|observation|>")], tokenizer, "chatglm3", generation)
    assert reply.text == "我查一下\ntool_call(city='北京')"
    assert reply.metadata == "get_weather"
    assert reply.is_complete


def test_batches_are_of_like_length_and_complete(tiny, monkeypatch):
    monkeypatch.setattr("glmtune.inference.generate.generate_ids", lambda _, prompts, __: [[len(p)] for p in prompts])
    lengths = [3, 9, 1, 4, 7, 2, 8, 5, 6, 11, 10]
    generation = build_generation_config(tiny.tokenizer, 512, {})
    batches = list(generate_batches(tiny.model, [[0] * length for length in lengths], generation, batch_size=2))
    assert batches[0] == [(1, [9]), (6, [8])]  # the longest of the first window of eight
    assert sorted(pair for batch in batches for pair in batch) == [(i, [length]) for i, length in enumerate(lengths)]


def test_out_of_memory_halves_the_batch(tiny, monkeypatch, caplog):
    sizes = []
    real = tiny.model.generate

    def generate(input_ids, **kwargs):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(input_ids=input_ids, **kwargs)

    conversations = [ask(question) for question in QUESTIONS]
    expected = generate_replies(*tiny, conversations, max_new_tokens=4, num_beams=2)
    monkeypatch.setattr(tiny.model, "generate", generate)
    replies = generate_replies(*tiny, conversations, batch_size=5, max_new_tokens=4, num_beams=2)
    assert replies == expected
    assert sizes == [5, 2, 2, 1]
    assert "Out of memory with 5 prompts at once; continuing with 2." in caplog.text


def test_out_of_memory_with_one_prompt_is_an_error(tiny, monkeypatch):
    def generate(**kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(tiny.model, "generate", generate)
    with pytest.raises(ModelError, match=r"out of memory .* 1 prompt"):
        generate_replies(*tiny, [ask(question) for question in QUESTIONS], max_new_tokens=4, num_beams=2)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}], ids=["engine", "transformers"])
def test_nan_is_an_error_and_no_empty_reply(tiny, monkeypatch, caplog, options):
    """As where numbers grow too large for float16 on the way through the layers."""
    head = tiny.model.get_output_embeddings()
    monkeypatch.setattr(head.weight, "data", torch.full_like(head.weight, torch.nan))
    with pytest.raises(ModelError, match="computes NaN instead of logits"):
        generate_replies(*tiny, [ask("你好"), ask("你是谁")], batch_size=2, max_new_tokens=4, **options)
    assert "memory" not in caplog.text
    prompt = render_prompt(ask("你好"), tiny.tokenizer)
    generation = build_generation_config(tiny.tokenizer, 512, {"max_new_tokens": 4, **options})
    with pytest.raises(ModelError, match="computes NaN instead of logits"):
        list(stream_text(*tiny, prompt, "chatglm3", generation, []))


def test_long_prompts_are_cut_and_reported(tiny, caplog):
    long = ask("很" * 600)
    prompt, num_cut_tokens = fit_prompt(long, tiny.tokenizer, "chatglm3", max_length=500)
    assert len(prompt) == 500
    assert num_cut_tokens == len(render_prompt(long, tiny.tokenizer)) - 500
    with caplog.at_level(logging.WARNING):
        replies = generate_replies(*tiny, [ask("你好"), long], max_new_tokens=12)
    assert len(replies) == 2
    assert "1 of 2 prompts are longer than 500 tokens and were shortened: rows 2" in caplog.text


def test_all_faulty_conversations_are_named(tiny):
    answered = Conversation((Message("user", "a"), Message("assistant", "b")))
    tools = Conversation((Message("system", "s", tools=({"name": "t"},)), Message("user", "a")))
    with pytest.raises(DataError) as caught:
        generate_replies(*tiny, [answered, ask("x"), tools], "tutorial")
    assert "row 1" in str(caught.value)
    assert "row 3" in str(caught.value)
    assert "row 2" not in str(caught.value)


def test_training_mode_is_restored(tiny):
    tiny.model.train()
    try:
        generate_replies(*tiny, [ask("你好")], max_new_tokens=2)
        assert tiny.model.training
    finally:
        tiny.model.eval()


def test_nothing_to_do_and_bad_batch_size(tiny):
    assert generate_replies(*tiny, []) == []
    with pytest.raises(ConfigError, match="batch_size"):
        generate_replies(*tiny, [ask("x")], batch_size=0)
