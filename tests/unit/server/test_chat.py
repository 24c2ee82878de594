"""Without these, programs written for OpenAI's API would not work with the server, or be told something else."""

import asyncio
import json
import math

import pytest
import torch

QUESTION = [{"role": "user", "content": "你是谁？"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "天气",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = ("get_weather", "```python\ntool_call(city='北京', days=3)\n```")


def ask(client, messages=QUESTION, **fields):
    answer = client.post("/v1/chat/completions", json={"messages": messages, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def chunks_of(client, path="/v1/chat/completions", **fields):
    fields = {"stream": True, **({"messages": QUESTION} if "chat" in path else {}), **fields}
    lines = [line for line in client.post(path, json=fields).text.split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def text_of(chunks):
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def test_a_reply_is_what_the_model_says(client):
    answer = ask(client)
    assert answer["choices"][0]["message"]["content"] == "我是一个小小的语言模型，可以陪你聊天。"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["model"] == "base"
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > usage["prompt_tokens"] > 5


def test_a_stream_says_the_same_and_ends_with_its_usage(client):
    chunks = chunks_of(client, stream_options={"include_usage": True})
    whole = ask(client)
    assert text_of(chunks) == whole["choices"][0]["message"]["content"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_reply_ends_before_a_stop_text_also_in_a_stream(client):
    whole = ask(client, stop=["语言", "nowhere"])["choices"][0]
    assert (whole["message"]["content"], whole["finish_reason"]) == ("我是一个小小的", "stop")
    assert text_of(chunks_of(client, stop="语言")) == "我是一个小小的"


def test_the_line_before_the_text_is_no_stop_text(client):
    assert ask(client, stop="\n")["choices"][0]["message"]["content"].startswith("我是")


def test_a_reply_that_is_cut_off_says_so(client):
    answer = ask(client, max_tokens=4)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 4
    assert ask(client, max_completion_tokens=4)["choices"] == answer["choices"]


def test_a_seed_gives_the_same_choices_and_each_its_own(client):
    fields = {"n": 3, "seed": 7, "temperature": 1.5, "max_tokens": 12}
    first, second = ask(client, **fields), ask(client, **fields)
    assert first["choices"] == second["choices"]
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2]
    assert len(set(texts)) > 1
    chunks = chunks_of(client, **fields)
    for index, text in enumerate(texts):
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert "".join(c["delta"].get("content") or "" for c in own) == text


def test_logprobs_are_of_the_tokens_of_the_text(client):
    choice = ask(client, logprobs=True, top_logprobs=2)["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert "".join(each["token"] for each in tokens).strip() == choice["message"]["content"]
    for each in tokens:
        assert each["logprob"] <= 0
        assert len(each["top_logprobs"]) == 2
        assert each["top_logprobs"][0]["token"] == each["token"]  # greedy
        assert math.isclose(each["top_logprobs"][0]["logprob"], each["logprob"], abs_tol=1e-5)
    streamed = [
        each
        for chunk in chunks_of(client, logprobs=True, top_logprobs=2)
        for each in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert [each["token"] for each in streamed] == [each["token"] for each in tokens]


@pytest.mark.parametrize("stop", ["语言", "语言模型，", "。", "我是"])
def test_what_a_stop_text_cuts_off_has_no_logprobs(client, stop):
    choice = ask(client, stop=stop, logprobs=True)["choices"][0]
    tokens = [each["token"] for each in choice["logprobs"]["content"]]
    assert "".join(tokens).strip() == choice["message"]["content"]
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks_of(client, stop=stop, logprobs=True)]
    assert [each["token"] for one in streamed if one for each in one["content"]] == tokens


def test_fields_that_ask_for_nothing_are_let_through(client):
    nothing = {"logit_bias": {}, "suffix": None, "best_of": 1, "n": 1, "store": False, "service_tier": "auto"}
    assert ask(client, **nothing)["choices"] == ask(client)["choices"]
    negative = {"seed": -5, "temperature": 1.5, "max_tokens": 12}
    assert ask(client, **negative)["choices"] == ask(client, **negative)["choices"]


def test_the_runs_system_prompt_holds_unless_the_request_brings_one(connect, embedded):
    client = connect(system="你是小满。")

    def prompt(messages):
        tokens = client.post("/tokenize", json={"messages": messages}).json()["tokens"]
        return embedded.tokenizer.decode(tokens)

    assert "你是小满" in prompt(QUESTION)
    own = prompt([{"role": "system", "content": "你是小红。"}, *QUESTION])
    assert "你是小红" in own
    assert "小满" not in own


def test_a_tool_call_comes_in_openais_form_and_its_result_goes_back(connect, script, embedded):
    client = connect(says=script(CALL, end="<|observation|>"))
    choice = ask(client, tools=TOOLS)["choices"][0]
    [call] = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "北京", "days": 3}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "晴"}
    body = {"messages": [*QUESTION, choice["message"], result], "tools": TOOLS}
    tokens = client.post("/tokenize", json=body).json()["tokens"]
    assert "晴" in embedded.tokenizer.decode_text(tokens)
    assert ask(client, **body)["choices"]


def test_a_streamed_tool_call_is_whole(connect, script):
    client = connect(says=script(("", "我查一下。"), CALL, end="<|observation|>"))
    chunks = chunks_of(client, tools=TOOLS)
    assert text_of(chunks) == "我查一下。"
    [call] = [each for chunk in chunks for choice in chunk["choices"] for each in choice["delta"].get("tool_calls", [])]
    assert call["index"] == 0
    assert call["type"] == "function"
    assert json.loads(call["function"]["arguments"]) == {"city": "北京", "days": 3}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    "reply",
    [
        ("get_weather", "```python\ntool_call(city=__import__('os').system('x'))\n```"),
        ("get_weather", "```python\nprint('北京')\n```"),
        ("get_weather", "北京 天气"),
        ("no_such_tool", "```python\ntool_call(city='x')\n```"),
    ],
)
def test_what_only_looks_like_a_call_stays_text(connect, script, reply):
    client = connect(says=script(reply))
    choice = ask(client, tools=TOOLS)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert "tool_calls" not in choice["message"]
    assert choice["message"]["content"].split() == "\n".join(reply).split()
    assert text_of(chunks_of(client, tools=TOOLS)) == choice["message"]["content"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_reply_that_has_to_be_a_call_begins_as_one(connect, embedded, script, choice):
    client = connect(says=script(CALL)[len(embedded.tokenizer.encode_text("get_weather\n")) :])
    answer = ask(client, tools=TOOLS, tool_choice=choice)
    [call] = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "北京", "days": 3}'}
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    prompt_ids = client.app.state.engine.last_prompt
    assert embedded.tokenizer.decode_text(prompt_ids).endswith("get_weather\n")
    chunks = chunks_of(client, tools=TOOLS, tool_choice=choice)
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_of_several_tools_the_model_chooses_the_likelier(client, embedded):
    names = ["我们", "天", "天气", "你好"]
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    prompt = client.post("/tokenize", json={"messages": QUESTION, "tools": tools}).json()["tokens"]
    left, begun = {name: embedded.tokenizer.encode_text(f"{name}\n") for name in names}, []
    while len(left) > 1:
        logits = embedded.model(torch.tensor([prompt + begun])).logits[0, -1]
        begun.append(max({ids[len(begun)] for ids in left.values()}, key=logits.__getitem__))
        left = {name: ids for name, ids in left.items() if ids[: len(begun)] == begun}
    message = ask(client, tools=tools, tool_choice="required", max_tokens=5)["choices"][0]["message"]
    said = message["tool_calls"][0]["function"]["name"] if "tool_calls" in message else message["content"]
    assert said.split("\n")[0] == next(iter(left))


def test_nobody_who_offers_no_tools_gets_a_call(connect, script):
    client = connect(says=script(CALL))
    assert ask(client)["choices"][0]["message"]["content"].startswith("get_weather\n")
    assert "tool_calls" not in ask(client, tools=TOOLS, tool_choice="none")["choices"][0]["message"]


def test_texts_are_continued_as_they_are(client):
    answer = client.post("/v1/completions", json={"prompt": ["你好", "天气"], "max_tokens": 5, "logprobs": 1}).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    logprobs = answer["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) > 0
    ids = client.post("/tokenize", json={"prompt": "你好"}).json()["tokens"]
    again = client.post("/v1/completions", json={"prompt": ids, "max_tokens": 5}).json()
    assert again["choices"][0]["text"] == answer["choices"][0]["text"]
    chunks = chunks_of(client, "/v1/completions", prompt="你好", max_tokens=5)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == answer["choices"][0]["text"]


def test_offsets_in_a_stream_are_those_in_the_whole_text(client):
    fields = {"prompt": "春江花月夜，", "max_tokens": 12, "n": 2, "temperature": 2.0, "seed": 1, "logprobs": 1}
    whole = client.post("/v1/completions", json=fields).json()["choices"]
    choices = [choice for chunk in chunks_of(client, "/v1/completions", **fields) for choice in chunk["choices"]]
    assert len(choices) > 2
    for index in (0, 1):
        own = [choice["logprobs"] for choice in choices if choice["index"] == index]
        assert [offset for logprobs in own for offset in logprobs["text_offset"]] == whole[index]["logprobs"][
            "text_offset"
        ]


def test_metrics_and_the_log_count_and_quote_nothing(client, records):
    ask(client, user="somebody")
    shown = client.get("/metrics").text
    assert 'glmtune_requests_total{path="/v1/chat/completions",status="200"} 1.0' in shown
    assert 'glmtune_completion_tokens_total{model="base"}' in shown
    line = json.loads(records[0].line())
    assert (line["path"], line["status"], line["user"]) == ("/v1/chat/completions", 200, "somebody")
    assert line["prompt_tokens"] > 0
    assert line["completion_tokens"] > 0
    assert "你是谁" not in records[0].line()


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/tokenize", {"prompt": "x" * 50_000}),
        ("/tokenize", {"messages": [{"role": "user", "content": "x" * 50_000}]}),
        (
            "/tokenize",
            {"messages": QUESTION, "tools": [{**TOOLS[0], "function": {"name": "a", "description": "x" * 50_000}}]},
        ),
        ("/v1/completions", {"prompt": "x" * 50_000}),
        (
            "/v1/chat/completions",
            {"messages": QUESTION, "tools": [{**TOOLS[0], "function": {"name": "a", "description": "x" * 50_000}}]},
        ),
    ],
)
def test_nobody_waits_while_a_long_text_is_tokenised(client, embedded, monkeypatch, path, fields):
    kind = type(embedded.tokenizer)
    encode, is_on_loop = kind.encode_text, []

    def encode_text(tokenizer, text, *arguments, **options):
        if len(text) > 40_000:
            try:
                is_on_loop.append(bool(asyncio.get_running_loop()))
            except RuntimeError:
                is_on_loop.append(False)
        return encode(tokenizer, text, *arguments, **options)

    monkeypatch.setattr(kind, "encode_text", encode_text)
    assert client.post(path, json=fields).status_code in (200, 400)
    assert is_on_loop
    assert not any(is_on_loop)


def test_the_name_of_a_tool_has_no_white_space(connect):
    """It is a line of its own before a call, so such a name could never be read back."""
    tools = [{"type": "function", "function": {"name": name}} for name in ("a", "a\nb")]
    answer = connect().post(
        "/v1/chat/completions", json={"messages": QUESTION, "tools": tools, "tool_choice": "required"}
    )
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["param"] == "tools[1].function.name"
