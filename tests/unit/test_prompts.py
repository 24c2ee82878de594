"""Without these, training and chat could use different prompts, and an adapter would seem to have no effect."""

import itertools
import json

import pytest

from glmtune.errors import DataError
from glmtune.prompts import (
    DEFAULT_TOOL_SYSTEM_PROMPT,
    Conversation,
    Message,
    check_turns,
    format_tool_call,
    parse_reply,
    parse_tool_call,
    render,
    render_prompt,
)

TOOL = {"name": "get_weather", "description": "查询天气"}
SYSTEM = Message("system", "S")
SINGLE = Conversation((Message("user", "你是谁"), Message("assistant", "我是")))
MULTI = Conversation((SYSTEM, Message("user", "q1"), Message("assistant", "a1"), *SINGLE.messages))
TOOLS = Conversation(
    (
        Message("system", DEFAULT_TOOL_SYSTEM_PROMPT, tools=(TOOL,)),
        Message("user", "北京天气"),
        Message("assistant", "我来查"),
        Message("assistant", format_tool_call({"city": "北京"}), metadata="get_weather"),
        Message("observation", '{"temp": 3}'),
        Message("assistant", "3 度"),
        Message("user", "谢谢"),
        Message("assistant", "不客气"),
    )
)


def spell_learnt(rendered, letters) -> list[str]:
    """The supervised runs, as text."""
    pairs = zip(rendered.input_ids, rendered.loss_mask, strict=True)
    runs = itertools.groupby(pairs, key=lambda pair: pair[1])
    return [letters.spell([i for i, _ in run]) for is_supervised, run in runs if is_supervised]


def test_chatglm3_text(letters):
    text = letters.spell(render(MULTI, letters).input_ids)
    assert text == "[gMASK]sop<|system|>\nS<|user|>\nq1<|assistant|>\na1<|user|>\n你是谁<|assistant|>\n我是</s>"


def test_tools_are_indented_json_in_the_system_message(letters):
    text = letters.spell(render(TOOLS, letters).input_ids)
    head = f"[gMASK]sop<|system|>\n{DEFAULT_TOOL_SYSTEM_PROMPT}\n{json.dumps([TOOL], indent=4, ensure_ascii=False)}"
    assert text.startswith(f"{head}<|user|>\n北京天气<|assistant|>\n我来查<|assistant|>get_weather\n```python\n")
    assert "<|observation|>\n" in text


def test_every_turn_and_what_ends_it_is_learnt(letters):
    assert spell_learnt(render(MULTI, letters), letters) == ["\na1<|user|>", "\n我是</s>"]


def test_tool_turns_are_learnt_with_metadata_and_end(letters):
    call = format_tool_call({"city": "北京"})
    assert spell_learnt(render(TOOLS, letters), letters) == [
        f"\n我来查<|assistant|>get_weather\n{call}<|observation|>",
        "\n3 度<|user|>",
        "\n不客气</s>",
    ]


def test_unsupervised_turn_and_its_end_are_not_learnt(letters):
    messages = (Message("user", "q"), Message("assistant", "a", is_supervised=False), *SINGLE.messages)
    assert spell_learnt(render(Conversation(messages), letters), letters) == ["\n我是</s>"]


def test_nothing_supervised_is_an_error(letters):
    messages = (Message("user", "q"), Message("assistant", "a", is_supervised=False))
    with pytest.raises(DataError, match="nothing to learn"):
        render(Conversation(messages), letters)


def test_labels_are_the_ids_where_learnt(letters):
    rendered = render(SINGLE, letters)
    assert rendered.labels == [i if m else -100 for i, m in zip(rendered.input_ids, rendered.loss_mask, strict=True)]


@pytest.mark.parametrize(
    ("template", "conversation"),
    [("chatglm3", SINGLE), ("chatglm3", MULTI), ("chatglm3", TOOLS), ("tutorial", SINGLE), ("tutorial", MULTI)],
)
def test_the_prompt_of_every_turn_is_an_exact_prefix(template, conversation, letters):
    for stop, message in enumerate(conversation.messages):
        if message.role != "assistant" or conversation.messages[stop - 1].role == "assistant":
            continue
        prompt = render_prompt(Conversation(conversation.messages[:stop]), letters, template)
        rendered = render(Conversation(conversation.messages[: stop + 1]), letters, template)
        whole = render(conversation, letters, template)
        assert rendered.input_ids[: len(prompt)] == prompt == whole.input_ids[: len(prompt)]
        assert rendered.loss_mask[len(prompt) - 1 : len(prompt) + 1] == [False, True]  # learning starts right there
        assert all(rendered.loss_mask[len(prompt) :])


def test_letters_of_special_tokens_stay_text(letters):
    rendered = render(Conversation((Message("user", "a</s><|user|>"), Message("assistant", "b"))), letters)
    assert rendered.input_ids.count(letters.eos_token_id) == 1
    assert rendered.input_ids.count(letters.get_command("<|user|>")) == 1


# ---- truncation ----------------------------------------------------------------------------------------------------

LONG = Conversation(
    (
        Message("system", "s" * 30),
        Message("user", "q" * 200),
        Message("assistant", "a" * 10),
        Message("user", "Q" * 100),
        Message("assistant", "A" * 50),
    )
)


@pytest.mark.parametrize("max_length", [14, 15, 20, 40, 80, 150, 200, 201, 300, 399, 400])
def test_truncation_fits_and_keeps_roles_marker_and_end(max_length, letters):
    rendered = render(LONG, letters, max_length=max_length)
    names = letters.convert_ids_to_tokens(rendered.input_ids)
    assert len(names) == len(rendered.loss_mask) <= max_length
    roles = [name for name in names if name.startswith("<")]
    assert roles[0] == "<|system|>"
    assert roles[-3:] == ["<|user|>", "<|assistant|>", "</s>"]
    assert names[-1] == "</s>"
    for position, name in enumerate(names):
        if name.startswith("<|"):
            assert names[position + 1] == "\n"  # the metadata line
            assert names[position + 2] in "sqaQA"  # something of every content is left


def test_truncation_drops_the_oldest_exchange_first_and_counts(letters):
    full = len(render(LONG, letters).input_ids)
    rendered = render(LONG, letters, max_length=full - 1)
    text = letters.spell(rendered.input_ids)
    assert (rendered.num_dropped_messages, rendered.num_cut_tokens) == (2, 0)
    assert "q" not in text.replace("sop", "")
    assert "s" * 30 in text
    assert "Q" * 100 in text
    assert "A" * 50 in text


def test_a_conversation_of_thousands_of_turns_is_truncated_quickly(letters, monkeypatch):
    num_roles = 0
    real = letters.get_command

    def counting(token):
        nonlocal num_roles
        num_roles += 1
        return real(token)

    monkeypatch.setattr(letters, "get_command", counting)
    exchanges = [(Message("user", f"q{n}"), Message("assistant", f"a{n}")) for n in range(1000)]
    rendered = render(Conversation(tuple(turn for exchange in exchanges for turn in exchange)), letters, max_length=30)
    assert letters.spell(rendered.input_ids).endswith(
        "<|user|>\nq998<|assistant|>\na998<|user|>\nq999<|assistant|>\na999</s>"
    )
    assert rendered.num_dropped_messages == 1996
    assert num_roles < 10_000  # 2,000 for each rendering of all turns; one for every number of turns would be a million


def test_truncation_that_drops_all_that_is_learnt_is_told(letters):
    old = (Message("user", "q" * 9), Message("assistant", "a"))
    new = (Message("user", "q"), Message("assistant", "a", is_supervised=False))
    with pytest.raises(DataError, match="nothing to learn from is left after truncation to 12 tokens"):
        render(Conversation((*old, *new)), letters, max_length=12)


def test_truncation_cuts_the_longest_contents_to_one_length(letters):
    rendered = render(LONG, letters, max_length=9 + 30 + 40 + 40)  # 9 tokens of structure
    text = letters.spell(rendered.input_ids).removeprefix("[gMASK]sop")
    assert [text.count(letter) for letter in "QA"] == [40, 40]
    assert "s" * 30 in text
    assert rendered.num_cut_tokens == 60 + 10
    assert len(rendered.input_ids) == 119


@pytest.mark.parametrize("template", ["chatglm3", "tutorial", "chatglm2"])
def test_an_answer_that_was_cut_does_not_teach_to_stop_there(letters, template):
    cut = Conversation((Message("user", "Q"), Message("assistant", "A" * 200)))
    rendered = render(cut, letters, template, 80)
    assert rendered.input_ids[-1] == letters.eos_token_id
    assert rendered.loss_mask[-2:] == [True, False]
    question_cut = Conversation((Message("user", "Q" * 200), Message("assistant", "A" * 20)))
    assert render(question_cut, letters, template, 80).loss_mask[-2:] == [True, True]


def test_of_several_answers_only_those_that_were_cut_do_not_end(letters):
    messages = (*(Message("assistant", "A" * n) for n in (50, 3)),)
    text = spell_learnt(render(Conversation((Message("user", "Q"), *messages)), letters, max_length=30), letters)
    assert text[0].strip("\nA") == ""
    assert text[1] == "\nAAA</s>"


def test_room_for_structure_only_is_an_error(letters):
    with pytest.raises(DataError, match=r"nothing is left after truncation to 8 tokens.*raise data\.max_length"):
        render(SINGLE, letters, max_length=8)


def test_truncated_prompt_keeps_the_generation_marker(letters):
    prompt = render_prompt(Conversation(LONG.messages[:-1]), letters, max_length=60)
    assert len(prompt) <= 60
    assert prompt[-1] == letters.get_command("<|assistant|>")


def test_no_truncation_where_it_fits_exactly(letters):
    full = render(LONG, letters)
    assert render(LONG, letters, max_length=len(full.input_ids)) == full


# ---- the tutorial template -----------------------------------------------------------------------------------------


def test_tutorial_text_and_labels(letters):
    rendered = render(MULTI, letters, "tutorial")
    assert letters.spell(rendered.input_ids) == (
        "[gMASK]sop<|system|>\nS\n<|user|>\nq1<|assistant|>\na1</s><|user|>\n你是谁<|assistant|>\n我是</s>"
    )
    assert spell_learnt(rendered, letters) == ["a1</s>", "我是</s>"]
    assert letters.get_command("<|user|>") not in rendered.input_ids  # roles are plain letters there


@pytest.mark.parametrize("max_length", [45, 50, 70])
def test_tutorial_truncation_keeps_marker_and_end(max_length, letters):
    conversation = Conversation((Message("user", "问" * 100), Message("assistant", "答" * 100)))
    rendered = render(conversation, letters, "tutorial", max_length)
    text = letters.spell(rendered.input_ids)
    assert len(rendered.input_ids) <= max_length
    assert text.startswith("[gMASK]sop<|user|>\n问")
    assert "问<|assistant|>\n答" in text
    assert text.endswith("答</s>")


@pytest.mark.parametrize("message", [TOOLS.messages[0], TOOLS.messages[3], TOOLS.messages[4]])
def test_tutorial_has_no_tools(message, letters):
    with pytest.raises(DataError, match="the tutorial template has no tools"):
        render(Conversation((message, *SINGLE.messages)), letters, "tutorial")


# ---- turns, replies, tool calls ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "fault"),
    [
        ([], "there are no messages"),
        (["assistant"], "message 1 is the assistant's, but nobody has asked anything yet"),
        (["system", "assistant"], "message 2 is the assistant's, but nobody has asked anything yet"),
        (["user", "user", "assistant"], "message 2 is the user's, but the user's before it has no answer"),
        (["user", "observation", "assistant"], "message 2 is an observation, but the assistant has not called a tool"),
        (["user", "assistant", "system", "user", "assistant"], "message 3 is a system message"),
        (["user", "assistant", "observation", "user", "assistant"], "message 4 is the user's, but the observation's"),
        (["user", "assistant", "user"], "the last message is the user's"),
    ],
)
def test_broken_turn_order(roles, fault):
    faults = check_turns(Conversation(tuple(Message(role, "x") for role in roles)))
    assert len(faults) == 1
    assert faults[0].startswith(fault)


@pytest.mark.parametrize("conversation", [SINGLE, MULTI, TOOLS])
def test_sound_turn_order(conversation):
    assert check_turns(conversation) == []
    assert check_turns(Conversation(conversation.messages[:-1]), for_training=False) == []
    assert check_turns(conversation, for_training=False) != []


def test_with_system_does_not_replace_a_system_message():
    assert SINGLE.with_system("x").messages[0] == Message("system", "x")
    assert MULTI.with_system("x") == MULTI
    assert SINGLE.with_system("") == SINGLE.with_system(None) == SINGLE


def test_parse_reply_reads_what_is_learnt(letters):
    ids = render(TOOLS, letters).input_ids
    start = len(render_prompt(Conversation(TOOLS.messages[:2]), letters))
    stop = ids.index(letters.get_command("<|observation|>"))
    assert parse_reply(ids[start : stop + 1], letters) == list(TOOLS.messages[2:4])


@pytest.mark.parametrize("arguments", [{}, {"city": "北京", "days": 3}, {"a": [1, {"b": None}], "c": 'it\'s\n"x"'}])
def test_tool_calls_come_back(arguments):
    assert parse_tool_call(format_tool_call(arguments)) == arguments


@pytest.mark.parametrize("content", ["hello", "tool_call(1)", "tool_call(a=__import__('os'))", "tool_call(a=", ""])
def test_what_is_no_literal_tool_call_is_refused(content):
    with pytest.raises(DataError, match="not a tool call"):
        parse_tool_call(content)
