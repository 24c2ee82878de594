"""Without these, a chat could forget what was said, or answer to another prompt than it was trained with."""

import pytest

from glmtune.errors import ConfigError, DataError
from glmtune.inference.chat import Chat
from glmtune.inference.generate import generate_replies
from glmtune.prompts import Conversation, Message


@pytest.fixture
def chat(tiny) -> Chat:
    return Chat(*tiny, max_new_tokens=16)


@pytest.mark.parametrize("template", ["chatglm3", "tutorial"])
def test_streaming_equals_asking(tiny, template):
    asked, streamed = (Chat(*tiny, template=template, system="你是甄嬛", max_new_tokens=20) for _ in range(2))
    for question in ("你好", "你是谁？", "hello"):
        assert asked.ask(question) == "".join(streamed.stream(question))
    assert asked.history == streamed.history
    assert [message.role for message in asked.history] == ["user", "assistant"] * 3


def test_history_and_system_reach_the_model(tiny, chat):
    chat.system = "你是甄嬛"
    first = chat.ask("你好")
    messages = (
        Message("system", "你是甄嬛"),
        Message("user", "你好"),
        Message("assistant", first),
        Message("user", "再说"),
    )
    [expected] = generate_replies(*tiny, [Conversation(messages)], max_new_tokens=16)
    assert chat.ask("再说") == expected.text
    chat.reset()
    assert chat.history == []
    assert chat.system == "你是甄嬛"
    assert chat.ask("你好") == first


def test_long_history_loses_its_oldest_exchanges(tiny, chat):
    chat.history = [
        Message("user", "旧" * 400),
        Message("assistant", "答"),
        Message("user", "新"),
        Message("assistant", "好"),
    ]
    [expected] = generate_replies(*tiny, [Conversation((*chat.history[2:], Message("user", "问")))], max_new_tokens=16)
    chat.history[0] = Message("user", "旧" * 600)
    assert chat.ask("问") == expected.text
    assert len(chat.history) == 6
    assert chat.num_cut_tokens + chat.max_prompt_tokens > 600
    chat.reset()
    chat.ask("问")
    assert chat.num_cut_tokens == 0


def test_closing_keeps_what_was_said(chat):
    pieces = chat.stream("你好")
    first = next(pieces)
    pieces.close()
    assert [message.role for message in chat.history] == ["user", "assistant"]
    assert chat.history[1].content.startswith(first[:1])
    assert chat.ask("再说")  # the history is sound


def test_interrupt_before_anything_was_said_forgets_the_question(chat, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt
        yield ""

    monkeypatch.setattr("glmtune.inference.chat.stream_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(chat.stream("你好"))
    assert chat.history == []


def test_failure_leaves_the_history_alone(tiny, chat, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("broken")

    monkeypatch.setattr("glmtune.ops.reference.swiglu", fail)
    for talk in (chat.ask, lambda text: list(chat.stream(text))):
        with pytest.raises(RuntimeError):
            talk("你好")
    assert chat.history == []


def test_tool_call_and_observation(tiny, chat, monkeypatch):
    tokenizer = tiny.tokenizer
    ids = [*tokenizer.encode_text("get_weather\n"), *tokenizer.encode_text("tool_call(city='北京')")]
    ids.append(tokenizer.get_command("<|observation|>"))
    monkeypatch.setattr("glmtune.inference.chat.answer_one", lambda *_: ids)
    assert chat.ask("天气？") == "tool_call(city='北京')"
    assert chat.history[-1] == Message("assistant", "tool_call(city='北京')", "get_weather")
    monkeypatch.undo()
    chat.ask("晴", role="observation")
    assert [message.role for message in chat.history] == ["user", "assistant", "observation", "assistant"]


def test_faults(tiny, chat):
    with pytest.raises(DataError, match="has not called a tool"):
        chat.ask("晴", role="observation")
    with pytest.raises(ConfigError, match="did you mean temperature"):
        Chat(*tiny, temperatur=1)


def test_takes_template_and_system_from_the_tokenizer(tiny, monkeypatch):
    monkeypatch.setitem(tiny.tokenizer.init_kwargs, "prompt_template", "tutorial")
    monkeypatch.setitem(tiny.tokenizer.init_kwargs, "system_prompt", "你是甄嬛")
    assert (Chat(*tiny).template, Chat(*tiny).system) == ("tutorial", "你是甄嬛")
    assert (Chat(*tiny, template="chatglm3", system="").template, Chat(*tiny, system="").system) == ("chatglm3", "")
