"""Without these, the same conversation in another of the usual chat formats would train another model."""

import json

import pytest

from glmtune.prompts import DEFAULT_TOOL_SYSTEM_PROMPT, Message, format_tool_call

TOOL = {"name": "get_weather", "description": "查询天气", "parameters": {"type": "object"}}
CALL = Message("assistant", format_tool_call({"city": "北京"}), metadata="get_weather")


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str, **more) -> Message:
    return Message("assistant", text, **more)


OFFICIAL_TOOLS = {
    "tools": [TOOL],
    "conversations": [
        {"role": "user", "content": "北京天气"},
        {"role": "assistant", "content": "我来查"},
        {"role": "tool", "name": "get_weather", "parameters": {"city": "北京"}, "observation": {"温度": 3}},
        {"role": "assistant", "content": "3 度"},
    ],
}
OPENAI_TOOLS = {
    "tools": [{"type": "function", "function": TOOL}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "北京"}, {"type": "text", "text": "天气"}]},
        {
            "role": "assistant",
            "content": "我来查",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "北京"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": '{"温度": 3}'},
        {"role": "assistant", "content": "3 度", "tool_calls": None},
    ],
}
SHAREGPT_TOOLS = {
    "tools": json.dumps([TOOL]),  # some data sets hold it as text
    "conversations": [
        {"from": "human", "value": "北京天气"},
        {"from": "gpt", "value": "我来查"},
        {"from": "function_call", "value": '{"name": "get_weather", "arguments": {"city": "北京"}}'},
        {"from": "observation", "value": '{"温度": 3}'},
        {"from": "gpt", "value": "3 度"},
    ],
}


@pytest.mark.parametrize("row", [OFFICIAL_TOOLS, OPENAI_TOOLS, SHAREGPT_TOOLS], ids=["official", "openai", "sharegpt"])
def test_tool_calls_are_the_same_in_all_forms(read_one, row):
    assert read_one(row) == (
        Message("system", DEFAULT_TOOL_SYSTEM_PROMPT, tools=(TOOL,)),
        user("北京天气"),
        assistant("我来查"),
        CALL,
        Message("observation", '{"温度": 3}'),
        assistant("3 度"),
    )


def test_the_former_function_call_of_openai_is_read(read_one):
    call = {"name": "get_weather", "arguments": '{"city": "北京"}'}
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "get_weather", "content": "3"},
        {"role": "assistant", "content": "a"},
    ]
    assert read_one({"messages": turns}) == (user("q"), CALL, Message("observation", "3"), assistant("a"))
    sharegpt = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "我来查", "function_call": call}]
    assert read_one({"conversations": sharegpt}) == (user("q"), assistant("我来查"), CALL)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "developer", "content": "S"}, {"role": "user", "content": "q"}]},
        {"conversations": [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}]},
        {"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "q"}]},
        {"system": "S", "conversations": [{"from": "human", "value": "q"}]},
        {"system": "S", "messages": [{"role": "user", "content": "q"}]},
    ],
)
def test_system_messages(read_one, row):
    name = "messages" if "messages" in row else "conversations"
    answer = {"from": "gpt", "value": "a"} if "from" in row[name][0] else {"role": "assistant", "content": "a"}
    assert read_one({**row, name: [*row[name], answer]}) == (Message("system", "S"), user("q"), assistant("a"))


def test_tools_join_an_own_system_message(read_one):
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    assert read_one({"tools": [TOOL], "messages": turns})[0] == Message("system", "system", tools=(TOOL,))
    turns[0] = {"role": "system", "content": None, "tools": [{"type": "function", "function": TOOL}]}
    assert read_one({"messages": turns})[0] == Message("system", DEFAULT_TOOL_SYSTEM_PROMPT, tools=(TOOL,))


def test_official_metadata_and_loss(read_one):
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "loss": False},
        {"role": "user", "content": "q", "loss": True},
        {"role": "tool", "name": "get_weather", "parameters": {"city": "北京"}, "observation": "", "loss": False},
        {"role": "assistant", "metadata": "interpreter", "content": "print(1)"},
        {"role": "observation", "content": "1"},
        {"role": "tool", "name": "now", "parameters": {}},  # a call at the very end needs no result
    ]
    _, first, _, call, empty, code, _, last = read_one({"conversations": turns})
    assert first == assistant("a", is_supervised=False)
    assert (call.metadata, call.is_supervised, empty) == ("get_weather", False, Message("observation", ""))
    assert code == assistant("print(1)", metadata="interpreter")
    assert last == assistant(format_tool_call({}), metadata="now")


@pytest.mark.parametrize(("weight", "is_supervised"), [(0, False), (1, True), (None, True)])
def test_openai_weight(read_one, weight, is_supervised):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": weight}]
    again = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert read_one({"messages": [*turns, *again]})[1].is_supervised is is_supervised


NAN = float("nan")


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth - 1):
        value = [value]
    return value


def calls(*names_and_ids) -> dict:
    functions = [{"id": i, "function": {"name": name, "arguments": {}}} for name, i in names_and_ids]
    return {"role": "assistant", "content": None, "tool_calls": functions}


def result(content: str, call_id: str | None = None) -> dict:
    return {"role": "tool", "content": content} | ({"tool_call_id": call_id} if call_id else {})


@pytest.mark.parametrize("results", [[result("B", "2"), result("A", "1")], [result("A"), result("B")]])
def test_calls_made_at_once_are_put_in_turn(read_one, results):
    turns = [{"role": "user", "content": "q"}, calls(("a", "1"), ("b", "2")), *results, calls(("c", "3"))]
    messages = read_one({"messages": turns})
    assert [message.metadata or message.content for message in messages] == ["q", "a", "A", "b", "B", "c"]


# ---- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": []}, "there are no messages"),
        ({"messages": 3}, '"messages" has to be an array, found a number: 3'),
        ({"messages": ["x"]}, "message 1: expected an object, found a string"),
        ({"messages": [{"content": "x"}]}, 'message 1: "role" is missing; found: content'),
        (
            {"messages": [{"role": "robot", "content": "x"}]},
            "message 1: unknown role 'robot'; expected one of sys",
        ),
        (
            {"conversations": [{"from": "bing", "value": "x"}]},
            "message 1: unknown role 'bing'; expected one of sys",
        ),
        ({"messages": [{"role": "user"}]}, 'message 1: "content" is missing; found: role'),
        ({"messages": [{"role": "user", "content": ""}]}, 'message 1: "content" is empty'),
        ({"messages": [{"role": "user", "content": 3}]}, 'message 1: "content" has to be a string, found a number'),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            'message 1: "content" may only have parts of type text, found {"type": "image_url"',
        ),
        ({"messages": [{"role": "user", "content": "q"}]}, "the last message is the user's"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "message 1 is the assistant's, but nobody has asked"),
        (
            {"conversations": [{"role": "user", "content": "q"}, {"role": "tool", "name": "n", "parameters": 1}]},
            'message 2: "parameters" has to be an object, found a number: 1',
        ),
        (
            {"conversations": [{"role": "user", "content": "q"}, {"role": "tool", "parameters": {}}]},
            'message 2: "name" is missing; found: role, parameters',
        ),
        (
            {"conversations": [{"role": "tool", "name": "n", "parameters": {}}, {"role": "assistant", "content": "a"}]},
            'message 1: "observation" is missing; found: role, name, parameters. Add what the tool returned',
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{"}]},
            'message 2: "value" has to be JSON text, found "{"',
        ),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": ["x"]}]},
            'message 2: "tool_calls" has to hold objects with name and arguments, found "x"',
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    calls(("a", "1"), ("b", "2")),
                    result("A"),
                    calls(("c", "")),
                ]
            },
            "2 tools are called at once, but 1 results follow",
        ),
        ({"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}, 'message 1: "weight" has to be 0 or 1'),
        (
            {"messages": [{"role": "assistant", "content": "a", "loss": "no"}]},
            'message 1: "loss" has to be true',
        ),
        (
            {"messages": [{"role": "user", "content": "a", "metadata": "x\ny"}]},
            'message 1: "metadata" has to be one',
        ),
        (
            {"system": "S", "messages": [{"role": "system", "content": "T"}, *OPENAI_TOOLS["messages"]]},
            'there are two system prompts, in "system" and in the first message',
        ),
        (
            {
                "conversations": [
                    {"role": "user", "content": "q"},
                    {"role": "tool", "name": "n", "parameters": {"x": NAN}},
                ]
            },
            'message 2: "parameters" may contain JSON values only',
        ),
        (
            {"messages": [{"role": "user", "content": "q"}, {**calls(("a", "1")), "function_call": {"name": "b"}}]},
            'message 2: there are both "tool_calls" and "function_call"',
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "[]"}]},
            'message 2: "value" calls no tool',
        ),
        ({"tools": [NAN], "messages": OPENAI_TOOLS["messages"]}, '"tools" may contain JSON values only'),
        ({"tools": nested(101), "messages": OPENAI_TOOLS["messages"]}, "brackets are nested too deeply; at most 100"),
        (
            {"tools": json.dumps(nested(101)), "messages": OPENAI_TOOLS["messages"]},
            '"tools" is nested more than 100 brackets deep',
        ),
        ({"tools": {"a": 1}, "messages": OPENAI_TOOLS["messages"]}, '"tools" has to be an array, found an object'),
    ],
)
def test_one_clear_sentence_for_each_fault(faults_of, row, fault):
    (found,) = faults_of(row)
    assert found.removeprefix("row 1: ").startswith(fault)


def test_numbers_of_messages_are_those_of_the_file(faults_of):
    row = {"tools": [TOOL], "messages": [{"role": "user", "content": "1"}, {"role": "user", "content": "2"}]}
    assert faults_of(row)[0].startswith("row 1: message 2 is the user's")
