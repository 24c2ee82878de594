"""Without these, code that calls the official model's `chat` and `stream_chat` would get other replies."""

import threading

import pytest
import torch

from glmtune.errors import DataError
from glmtune.models.chatglm import ChatGLMForConditionalGeneration
from glmtune.models.streaming import stream_token_ids
from glmtune.prompts import Message

GREEDY = {"do_sample": False, "max_length": 60}


@pytest.fixture(scope="module")
def model(official_folder) -> ChatGLMForConditionalGeneration:
    return ChatGLMForConditionalGeneration.from_pretrained(official_folder)


@pytest.fixture
def scripted(model, tokenizer, monkeypatch: pytest.MonkeyPatch):
    """Makes the model say given text, whatever it is asked; returns the function that does."""

    def script(*turns: tuple[str, str]) -> None:
        ids = []
        for number, (metadata, content) in enumerate(turns):
            ids += [tokenizer.get_command("<|assistant|>")] if number else []
            ids += tokenizer.encode_text(f"{metadata}\n") + tokenizer.encode_text(content)
        ids.append(tokenizer.get_command("<|observation|>" if turns[-1][0] else "<|user|>"))

        def generate(input_ids, streamer=None, **_):
            reply = torch.tensor([ids])
            for piece in (input_ids, *reply.split(1, dim=1)) if streamer else ():
                streamer.put(piece)
            return torch.cat((input_ids, reply), dim=1)

        monkeypatch.setattr(model, "generate", generate, raising=False)

    return script


def test_streaming_ends_with_what_chat_says(model, tokenizer) -> None:
    history = [{"role": "user", "content": "你好"}, {"role": "assistant", "metadata": "", "content": "你好。"}]
    before = [dict(message) for message in history]
    response, new_history = model.chat(tokenizer, "今天天气怎么样？", history=history, **GREEDY)
    *_, (streamed, streamed_history) = model.stream_chat(tokenizer, "今天天气怎么样？", history=history, **GREEDY)
    assert (streamed, streamed_history) == (response, new_history)
    assert history == before
    assert new_history[:3] == [*before, {"role": "user", "content": "今天天气怎么样？"}]
    assert new_history[-1]["role"] == "assistant"


def test_the_official_defaults_sample(model, tokenizer) -> None:
    torch.manual_seed(0)
    first, _ = model.chat(tokenizer, "你好", max_length=60)
    torch.manual_seed(0)
    assert model.chat(tokenizer, "你好", history=[], max_length=60)[0] == first


def test_text(model, tokenizer, scripted) -> None:
    scripted(("", " 我是助手。😀"))
    response, history = model.chat(tokenizer, "你是谁？")
    assert response == "我是助手。😀"
    assert history[-1] == {"role": "assistant", "metadata": "", "content": response}
    stream = [text for text, _ in model.stream_chat(tokenizer, "你是谁？")]
    assert stream[-1] == response
    assert all(response.startswith(text) and "\ufffd" not in text for text in stream)
    assert len(stream) > 3


def test_a_long_reply_is_not_decoded_again_with_each_token(model, tokenizer, scripted, monkeypatch) -> None:
    scripted(("", "我是助手。😀" * 60))
    num_decoded = 0
    decode_text = type(tokenizer).decode_text

    def count(self, token_ids):
        nonlocal num_decoded
        num_decoded += len(token_ids)
        return decode_text(self, token_ids)

    monkeypatch.setattr(type(tokenizer), "decode_text", count)
    stream = [text for text, _ in model.stream_chat(tokenizer, "你是谁？", max_length=2000)]
    assert stream[-1] == "我是助手。😀" * 60
    assert num_decoded < 80 * len(stream)


TOOLS = [{"role": "system", "content": "You have tools.", "tools": [{"name": "get_weather"}]}]
CALL = "```python\ntool_call(city='北京', days=[1, 2])\n```"


def test_a_tool_call_is_parsed(model, tokenizer, scripted) -> None:
    scripted(("", "Let me look."), ("get_weather", CALL))
    expected = {"name": "get_weather", "parameters": {"city": "北京", "days": [1, 2]}}
    response, history = model.chat(tokenizer, "天气？", history=TOOLS)
    assert response == expected
    assert [message["role"] for message in history] == ["system", "user", "assistant", "assistant"]
    assert history[-1] == {"role": "assistant", "metadata": "get_weather", "content": CALL}
    *_, (streamed, streamed_history) = model.stream_chat(tokenizer, "天气？", history=TOOLS)
    assert (streamed, streamed_history) == (expected, history)
    assert len(TOOLS) == 1
    scripted(("", "晴天。"))
    response, history = model.chat(tokenizer, '{"weather": "sunny"}', history=history, role="observation")
    assert response == "晴天。"
    assert history[-2]["role"] == "observation"


def test_a_call_without_tools_is_code(model, tokenizer, scripted) -> None:
    scripted(("interpreter", "```python\nprint(1)\n```"))
    response, _ = model.chat(tokenizer, "1?")
    assert response == {"name": "interpreter", "content": "```python\nprint(1)\n```"}


@pytest.mark.parametrize(
    "content",
    [
        "```python\ntool_call(city=__import__('os').getcwd())\n```",
        "```python\ntool_call(city=open('x', 'w'))\n```",
        "no call at all",
    ],
)
def test_a_call_that_is_no_plain_call_is_handed_over_unrun(model, tokenizer, scripted, content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scripted(("get_weather", content))
    response, history = model.chat(tokenizer, "天气？", history=TOOLS)
    assert response == {"name": "get_weather", "content": content}
    assert history[-1]["content"] == content
    assert not list(tmp_path.iterdir())


def test_process_response(model) -> None:
    history = [{"role": "user", "content": "你好"}]
    response, new_history = model.process_response([Message("assistant", "你好。")], history)
    assert (response, len(history), len(new_history)) == ("你好。", 1, 2)


def test_the_official_demo_gets_the_same_replies_from_its_cache(model, tokenizer) -> None:
    """The loop of the official command-line demo, compared with the same questions without a cache."""
    history, past_key_values = [], None
    plain = []
    for number, query in enumerate(("你好", "今天天气怎么样？", "谢谢"), start=1):
        options = {"do_sample": False, "max_length": 100 * number}
        expected, plain = model.chat(tokenizer, query, history=plain, **options)
        for response, history, past_key_values in model.stream_chat(  # noqa: B007, B020 - as the demo does
            tokenizer,
            query,
            history=history,
            past_key_values=past_key_values,
            return_past_key_values=True,
            **options,
        ):
            pass
        assert (response, history) == (expected, plain)


def test_a_cache_is_read_rather_than_the_prompt(model, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the new prompt does not begin with is dropped from it."""
    lengths = []
    forward = type(model).forward

    def counting(self, *arguments, **options):
        lengths.append(options["input_ids"].shape[1])
        return forward(self, *arguments, **options)

    monkeypatch.setattr(type(model), "forward", counting)
    options = {"return_past_key_values": True, **GREEDY}
    *_, (_, history, cache) = model.stream_chat(tokenizer, "你好" * 8, **options)
    whole = lengths[0]
    lengths.clear()
    longer = [history[0], {"role": "assistant", "content": "是"}]
    list(model.stream_chat(tokenizer, "嗯", history=longer, past_key_values=cache, **options))
    assert lengths[0] < whole
    other = [{"role": "user", "content": "别的"}, {"role": "assistant", "content": "好"}]
    expected, _ = model.chat(tokenizer, "嗯", history=other, **GREEDY)
    *_, (response, _, _) = model.stream_chat(tokenizer, "嗯", history=other, past_key_values=cache, **options)
    assert response == expected


def test_a_cache_from_elsewhere_or_without_its_history_is_refused(model, tokenizer) -> None:
    with pytest.raises(ValueError, match="past_key_values is a tuple"):
        next(model.stream_chat(tokenizer, "你好", past_key_values=()))
    *_, (_, _, cache) = model.stream_chat(tokenizer, "你好", return_past_key_values=True, **GREEDY)
    with pytest.raises(ValueError, match="without its history"):
        next(model.stream_chat(tokenizer, "你好", history=[], past_key_values=cache))


def test_a_history_of_pairs_stays_one(model, tokenizer) -> None:
    pairs = [("你好", "你好。")]
    messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好。"}]
    expected, _ = model.chat(tokenizer, "今天天气怎么样？", history=messages, **GREEDY)
    response, history = model.chat(tokenizer, "今天天气怎么样？", history=pairs, **GREEDY)
    assert (response, history) == (expected, [*pairs, ("今天天气怎么样？", expected)])
    *_, streamed = model.stream_chat(tokenizer, "今天天气怎么样？", history=pairs, **GREEDY)
    assert streamed == (response, history)
    assert len(pairs) == 1
    with pytest.raises(DataError, match="entry 2: expected a pair of question and answer; found 3 texts"):
        model.chat(tokenizer, "?", history=[("a", "b"), ("a", "b", "c")])


def test_closing_a_stream_stops_the_model(model, tokenizer) -> None:
    inputs = tokenizer.build_chat_input("你好")
    stream = stream_token_ids(model, inputs, max_new_tokens=100_000, do_sample=False, eos_token_id=None)
    next(stream)
    stream.close()
    assert "glmtune-stream" not in [thread.name for thread in threading.enumerate()]


def test_an_error_while_streaming_is_raised(model, tokenizer) -> None:
    with pytest.raises(ValueError, match="max_new_tokens"):
        list(stream_token_ids(model, tokenizer.build_chat_input("你好"), max_new_tokens=-1))
