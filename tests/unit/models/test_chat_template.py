"""Without these, tools that go by `apply_chat_template` would ask the model in another way than it was trained."""

import json

import pytest
import torch

from glmtune.errors import DataError
from glmtune.models.chatglm import ChatGLMTokenizer
from glmtune.prompts import Conversation, Message, render, render_prompt

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "你好，我是助手。"}]
SCHEMA = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def get_weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: The city's name.
    """
    return city


def _conversation(messages: list[dict]) -> Conversation:
    return Conversation(tuple(Message(**message) for message in messages))


def test_generation_prompt(tokenizer) -> None:
    expected = render_prompt(_conversation(ASKED), tokenizer)
    assert tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=False) == expected
    encoded = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True)
    assert encoded["input_ids"] == expected
    assert encoded["attention_mask"] == [1] * len(expected)
    assert tokenizer.apply_chat_template(ASKED)["input_ids"] == expected[:-1]


def test_an_answered_conversation_is_what_training_sees(tokenizer) -> None:
    rendered = render(_conversation(ANSWERED), tokenizer)
    encoded = tokenizer.apply_chat_template(ANSWERED, return_assistant_tokens_mask=True)
    assert encoded["input_ids"] == rendered.input_ids
    assert encoded["assistant_masks"] == [int(learnt) for learnt in rendered.loss_mask]
    assert 1 in encoded["assistant_masks"]


@pytest.mark.parametrize("unlearnt", [{"weight": 0}, {"loss": False}], ids=str)
def test_turns_that_are_not_learnt(tokenizer, unlearnt) -> None:
    messages = [*ASKED, {"role": "assistant", "content": "no", **unlearnt}, ASKED[1], ANSWERED[-1]]
    masks = [
        tokenizer.apply_chat_template(each, return_assistant_tokens_mask=True)["assistant_masks"]
        for each in (ANSWERED, messages)
    ]
    assert sum(masks[0]) == sum(masks[1]) > 0


def test_contents_may_be_empty(tokenizer) -> None:
    messages = [
        {"role": "system", "content": ""},
        ASKED[1],
        {"role": "assistant", "content": [{"type": "text", "text": ""}]},
        ASKED[1],
    ]
    expected = _conversation([messages[0], ASKED[1], {"role": "assistant", "content": ""}, ASKED[1]])
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids == render_prompt(expected, tokenizer)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch(tokenizer, side) -> None:
    longer = [*ANSWERED, {"role": "user", "content": "今天天气怎么样？"}, {"role": "assistant", "content": "很好。"}]
    batch = tokenizer.apply_chat_template(
        [ANSWERED, longer],
        padding=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"padding_side": side},
    )
    for row, messages in enumerate((ANSWERED, longer)):
        rendered = render(_conversation(messages), tokenizer)
        is_token = batch["attention_mask"][row] == 1
        assert batch["input_ids"][row][is_token].tolist() == rendered.input_ids
        assert batch["assistant_masks"][row][is_token].tolist() == [int(learnt) for learnt in rendered.loss_mask]
        assert batch["assistant_masks"][row][~is_token].sum() == 0
    assert batch["attention_mask"][0, 0] == (0 if side == "left" else 1)


def test_tensors_of_one_conversation_are_a_batch(tokenizer) -> None:
    encoded = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_tensors="pt")
    expected = render_prompt(_conversation(ASKED), tokenizer)
    assert encoded["input_ids"].tolist() == [expected]
    ids = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    assert isinstance(ids, torch.Tensor)
    assert ids.tolist() == [expected]
    batch = tokenizer.apply_chat_template([ASKED], add_generation_prompt=True)
    assert batch["input_ids"] == [expected]


def test_padding_to_a_length(tokenizer) -> None:
    encoded = tokenizer.apply_chat_template(ANSWERED, padding="max_length", max_length=64, return_tensors="pt")
    assert encoded["input_ids"].shape == (1, 64)


def test_truncation_is_the_renderer_s(tokenizer) -> None:
    encoded = tokenizer.apply_chat_template(ANSWERED, truncation=True, max_length=16)
    assert encoded["input_ids"] == render(_conversation(ANSWERED), tokenizer, max_length=16).input_ids
    assert len(encoded["input_ids"]) <= 16
    assert encoded["input_ids"][-1] == tokenizer.eos_token_id


def test_text(tokenizer) -> None:
    text = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, tokenize=False)
    assert text.startswith("[gMASK]")
    assert text.rstrip().endswith("<|assistant|>")
    assert tokenizer.apply_chat_template([ASKED, ASKED], add_generation_prompt=True, tokenize=False) == [text, text]


@pytest.mark.parametrize(
    "tool", [SCHEMA, {"type": "function", "function": SCHEMA}, get_weather], ids=["bare", "openai", "function"]
)
def test_tools(tokenizer, tool) -> None:
    ids = tokenizer.apply_chat_template(ASKED, tools=[tool], add_generation_prompt=True)["input_ids"]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    shown = json.loads(text[text.index("[") : text.rindex("]") + 1])
    assert shown[0]["name"] == "get_weather"
    assert shown[0]["parameters"]["required"] == ["city"]
    system = Message("system", "Be brief.", tools=tuple(shown))
    assert ids == render_prompt(Conversation((system, Message("user", "你好"))), tokenizer)


def test_tools_without_a_system_message(tokenizer) -> None:
    ids = tokenizer.apply_chat_template(ASKED[1:], tools=[SCHEMA], add_generation_prompt=True)["input_ids"]
    assert "You have access to the following tools" in tokenizer.decode(ids)


def test_a_tool_call_in_openai_s_form(tokenizer) -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "北京"}'}}
    messages = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "晴"},
    ]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    called = Message("assistant", "```python\ntool_call(city='北京')\n```", "get_weather")
    conversation = Conversation((*_conversation(ASKED).messages, called, Message("observation", "晴")))
    assert ids == render_prompt(conversation, tokenizer)


def _asked_at_once(*result_ids: str | None) -> list[dict]:
    """Two tools called at once, and as many results as there are ids, each of which says whose it is."""
    calls = [{"id": f"c{n}", "function": {"name": f"tool{n}", "arguments": {"n": n}}} for n in (1, 2)]
    results = [{"role": "tool", "content": f"result {n}"} for n in (1, 2)]
    if result_ids == ("c2", "c1"):
        results.reverse()
    results = [{**result, "tool_call_id": call_id} for result, call_id in zip(results, result_ids, strict=False)]
    return [*ASKED, {"role": "assistant", "content": None, "tool_calls": calls}, *results]


@pytest.mark.parametrize("result_ids", [("c1", "c2"), ("c2", "c1"), (None, None)], ids=str)
def test_tools_called_at_once_are_called_one_after_the_other(tokenizer, result_ids) -> None:
    ids = tokenizer.apply_chat_template(_asked_at_once(*result_ids), add_generation_prompt=True)["input_ids"]
    turns = []
    for n in (1, 2):
        turns += [Message("assistant", f"```python\ntool_call(n={n})\n```", f"tool{n}")]
        turns += [Message("observation", f"result {n}")]
    assert ids == render_prompt(Conversation((*_conversation(ASKED).messages, *turns)), tokenizer)


def test_calls_that_wait_for_their_results_end_a_conversation(tokenizer) -> None:
    ids = tokenizer.apply_chat_template(_asked_at_once())["input_ids"]
    assert ids.count(tokenizer.get_command("<|assistant|>")) == 2
    assert ids[-1] == tokenizer.eos_token_id


def test_a_result_too_few(tokenizer) -> None:
    with pytest.raises(DataError, match="2 tools are called at once, but 1 results follow"):
        tokenizer.apply_chat_template(_asked_at_once("c1"), add_generation_prompt=True)


def test_content_in_parts(tokenizer) -> None:
    parts = [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]
    asked = [ASKED[0], {"role": "user", "content": parts, "metadata": None}]
    assert tokenizer.apply_chat_template(asked) == tokenizer.apply_chat_template(ASKED)


def test_a_call_without_arguments(tokenizer) -> None:
    for arguments in ("", "{}", {}):
        call = {"function": {"name": "now", "arguments": arguments}}
        ids = tokenizer.apply_chat_template([*ASKED, {"role": "assistant", "tool_calls": [call]}])["input_ids"]
        assert "tool_call()" in tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"function": {"name": "f", "arguments": "{"}}, "has to be JSON text"),
        ({"function": {"name": "f", "arguments": "[1]"}}, "has to be an object"),
        ({"function": {"name": "f\ng", "arguments": "{}"}}, "has to be one line"),
        ({"function": {"name": "f"}}, "arguments"),
        ({"function": {"arguments": "{}"}}, "name"),
        ("f()", "name and arguments"),
    ],
    ids=str,
)
def test_a_malformed_tool_call(tokenizer, call, expected) -> None:
    messages = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "x"}]
    with pytest.raises(DataError, match=f"message 3.*{expected}"):
        tokenizer.apply_chat_template(messages, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], "no messages"),
        ([{"role": "robot", "content": "x"}], "message 1: unknown role 'robot'"),
        ([{"role": "user"}], 'message 1: "content" is missing'),
        ([{"content": "x"}], '"role" is missing'),
        ([{"role": ["user"], "content": "x"}], '"role" has to be a string'),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], 'message 1: "content" may only have parts'),
        ([{"role": "user", "content": ["x"]}], 'message 1: "content" may only have parts'),
        ([{"role": "user", "content": "x", "metadata": 1}], 'message 1: "metadata" has to be a string'),
        ([{"role": "user", "content": "x", "metadata": "a\nb"}], 'message 1: "metadata" has to be one line'),
        ([{"role": "system", "content": "x", "tools": {}}], 'message 1: "tools" has to be an array'),
        ([*ASKED, {"role": "assistant", "tool_calls": {"a": 1}}], 'message 3: "tool_calls" has to be an array'),
        ([ASKED[0], "你好"], "message 2: expected an object, found a string"),
        ([*ASKED, *ASKED[1:]], "has no answer"),
    ],
    ids=str,
)
def test_malformed_conversations(tokenizer, messages, expected) -> None:
    with pytest.raises(DataError, match=expected):
        tokenizer.apply_chat_template(messages, add_generation_prompt=True)


@pytest.mark.parametrize("name", ["continue_final_message", "documents", "enable_thinking"])
def test_what_a_template_would_take_is_refused(tokenizer, name) -> None:
    with pytest.raises(TypeError, match=name):
        tokenizer.apply_chat_template(ASKED, **{name: "yes"})
    tokenizer.apply_chat_template(ASKED, **{name: None})


def test_the_official_method(tokenizer: ChatGLMTokenizer) -> None:
    inputs = tokenizer.build_chat_input("你好", history=ANSWERED)
    expected = render_prompt(_conversation([*ANSWERED, {"role": "user", "content": "你好"}]), tokenizer)
    assert inputs["input_ids"].tolist() == [expected]
    assert inputs["attention_mask"].tolist() == [[1] * len(expected)]
    assert inputs.to("cpu")["input_ids"].dtype == torch.int64
    assert len(ANSWERED) == 3


def test_the_text_is_the_official_one(tokenizer: ChatGLMTokenizer) -> None:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "你好"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "[gMASK]sop<|user|>\n 你好<|assistant|>"


def test_a_template_of_ones_own_is_rendered(tokenizer: ChatGLMTokenizer) -> None:
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }};{% endfor %}"
    asked = [{"role": "user", "content": "你好"}]
    assert tokenizer.apply_chat_template(asked, chat_template=template, tokenize=False) == "user: 你好;"
    own = tokenizer.apply_chat_template(asked, chat_template=tokenizer.chat_template, add_generation_prompt=True)
    assert own == tokenizer.apply_chat_template(asked, add_generation_prompt=True)


def test_programs_that_learn_from_the_assistant_alone_find_its_words(tokenizer: ChatGLMTokenizer) -> None:
    """TRL looks for the markers before it asks for the mask."""
    assert "{% generation %}" in tokenizer.chat_template
    asked = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]
    batch = tokenizer.apply_chat_template(asked, return_dict=True, return_assistant_tokens_mask=True)
    said = [token for token, mine in zip(batch["input_ids"], batch["assistant_masks"], strict=True) if mine]
    assert tokenizer.decode_text(said).strip() == "你好！"
    assert said[-1] == tokenizer.eos_token_id
