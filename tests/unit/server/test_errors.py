"""Without these, a broken or hostile request could end the server, or be answered with something else in silence."""

import json

import pytest
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from glmtune.server.limits import LimitBodies
from glmtune.server.protocol import ChatRequest, CompletionRequest

QUESTION = [{"role": "user", "content": "你好"}]
CHAT = "/v1/chat/completions"


def refused(client, status, path=CHAT, **request):
    answer = client.post(path, **request)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["message"]
    assert error["type"]
    assert "Traceback" not in answer.text
    assert client.post(CHAT, json={"messages": QUESTION, "max_tokens": 2}).status_code == 200
    return error


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"messages": ',
        b"\xff\xfe",
        b"[1, 2]",
        b"null",
        b'{"messages": [], "messages": 3}',
        b'{"messages": ' + b"[" * 100_000,
        b'{"messages": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": ' + b"9" * 10_000 + b"}",
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1e400}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "\\ud83d"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "\\ud83d": 1}',
        b'{"messages": [{"role": "user", "content": "x"}], "stop": "\\ud83d"}',
        b'{"messages": [{"role": "user", "content": "x"}], "model": "\\ud83d"}',
    ],
)
def test_what_is_no_request_is_refused_and_the_next_one_is_answered(client, body):
    error = refused(client, 400, content=body, headers={"content-type": "application/json"})
    assert "input should" not in error["message"].lower()
    assert "error parsing" not in error["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
def test_text_that_is_no_unicode_is_refused(client, path):
    body = b'{"prompt": "x\\ud83d"}'
    error = refused(client, 400, path, content=body, headers={"content-type": "application/json"})
    assert error["param"] == "prompt"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": 10_000}, "max_tokens"),
        ({"max_completion_tokens": 10_000}, "max_completion_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 1000}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"best_of": 2}, "best_of"),
        ({"stop": ["a"] * 100}, "stop"),
        ({"stop": ""}, "stop"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"store": True}, "store"),
        ({"temprature": 1}, "temprature"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
        ({"tool_choice": "required"}, None),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": {"a": "\ud83d"}}}]}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None),
        ({"messages": [{"role": "user", "content": "x", "name": "Li"}]}, "messages[0].name"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [*QUESTION, *QUESTION]}, "messages"),
        ({"messages": []}, "messages"),
        ({"model": "gpt-4o"}, "model"),
        ({"top_logprobs": 3}, None),
        ({"stream_options": {"include_usage": True}}, None),
    ],
)
def test_a_wrong_field_is_named(client, fields, param):
    status = 404 if "model" in fields else 400
    body = json.dumps({"messages": QUESTION, **fields}).encode()
    error = refused(client, status, content=body, headers={"content-type": "application/json"})
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        (CHAT, {"max_tokens": "5"}, 'max_tokens: expected a whole number; found "5"'),
        (CHAT, {"temperature": 3}, "temperature: expected a number of at most 2; found 3"),
        (CHAT, {"stream": 1}, "stream: expected true or false; found 1"),
        (CHAT, {"messages": None}, "messages: expected an array; found null"),
        (CHAT, {"messages": ["你好"]}, 'messages[0]: expected an object; found "你好"'),
        (CHAT, {"messages": []}, "messages: expected an array that is not empty; found an empty array"),
        (
            CHAT,
            {"response_format": {"type": "json_object"}},
            'response_format.type: expected "text"; found "json_object"',
        ),
        (CHAT, {"x[0]": 1}, "x[0]: unknown field; leave it out"),
        # Where several forms are understood, the fault is that of the one that was meant.
        (CHAT, {"stop": 3}, "stop: expected text or an array; found 3"),
        (CHAT, {"stop": ["a", 1]}, "stop[1]: expected text; found 1"),
        (CHAT, {"stop": ["a"] * 20}, "stop: expected an array of at most 16 items; found an array of length 20"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            'messages[0].content[0].type: expected "text"; found "image_url"',
        ),
        ("/v1/completions", {"prompt": None}, "prompt: expected text or an array; found null"),
        ("/v1/completions", {"prompt": [None]}, "prompt[0]: expected a whole number or text or an array; found null"),
        ("/v1/completions", {"prompt": [[1], [2, "a"]]}, 'prompt[1][1]: expected a whole number; found "a"'),
        ("/v1/completions", {"prompt": [-1]}, "prompt[0]: expected a number of at least 0; found -1"),
    ],
)
def test_a_wrong_value_is_told_what_was_expected(client, path, fields, message):
    body = {"messages": QUESTION, **fields} if path == CHAT else fields
    assert refused(client, 400, path, json=body)["message"] == message


def test_an_unknown_field_is_told_what_it_was_meant_to_be(client):
    error = refused(client, 400, json={"messages": QUESTION, "temprature": 1})
    assert "temperature" in error["message"]
    assert error["code"] == "unknown_field"


def test_a_field_that_asks_for_nothing_is_let_through(client):
    body = {"messages": QUESTION, "max_tokens": 2, "logit_bias": {}, "store": False, "metadata": None, "functions": []}
    assert client.post(CHAT, json=body).status_code == 200


def test_tools_with_deep_or_odd_values_are_refused(client):
    deep: dict = {}
    for _ in range(200):
        deep = {"a": deep}
    tool = {"type": "function", "function": {"name": "x", "parameters": deep}}
    refused(client, 400, json={"messages": QUESTION, "tools": [tool]})


def test_a_prompt_that_does_not_fit_is_refused(connect):
    client = connect(max_prompt_tokens=20)
    error = refused(client, 400, json={"messages": [{"role": "user", "content": "你好" * 300}]})
    assert error["code"] == "context_length_exceeded"
    refused(client, 400, "/v1/completions", json={"prompt": "你好" * 300})


def test_ids_outside_of_the_vocabulary_are_refused(client):
    refused(client, 400, "/v1/completions", json={"prompt": [10**6]})


def test_other_addresses_and_methods_get_the_same_form_of_error(client):
    for answer in (client.get("/nowhere"), client.get(CHAT), client.put("/v1/models"), client.get("/v1/models/x")):
        assert answer.status_code in (404, 405)
        assert answer.json()["error"]["message"]


def test_an_address_without_its_v1_is_told_so(client):
    error = refused(client, 404, "/chat/completions", json={"messages": QUESTION})
    assert error["message"] == "there is no POST /chat/completions here; did you mean /v1/chat/completions?"
    assert "/openapi.json" in refused(client, 404, "/chat", json={})["message"]


def test_a_large_body_is_refused(connect):
    client = connect(max_body_bytes=1000)
    refused(client, 413, json={"messages": [{"role": "user", "content": "x" * 2000}]})


def test_the_pages_bodies_are_limited_but_for_uploads():
    """Gradio reads them before it asks for a key; an upload it refuses, or limits, by itself."""

    async def read(request: Request) -> Response:
        return Response(str(len(await request.body())))

    limits = Middleware(LimitBodies, max_bytes=10, timeout_s=60)
    client = TestClient(Starlette(routes=[Route("/{path:path}", read, methods=["POST"])], middleware=[limits]))
    large = b"x" * (17 * 2**20)
    assert client.post("/ui/gradio_api/queue/join", content=large[: 2**20]).status_code == 200
    assert client.post("/ui/login", content=large).status_code == 413
    assert client.post("/ui/gradio_api/upload", content=large).status_code == 200
    assert client.post("/v1/models", content=b"x" * 11).status_code == 413


@pytest.mark.parametrize("header", [None, "", "Bearer wrong-key", "Basic right-key-1", "Bearer ", "right-key-1"])
def test_without_the_right_key_nothing_is_answered(connect, header):
    client = connect(keys=("right-key-1", "right-key-2"))
    headers = {} if header is None else {"authorization": header}
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert client.get("/health").status_code == 200
    for key in ("right-key-1", "right-key-2"):
        assert client.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200


def test_browsers_are_told_nothing_unless_asked_for(connect):
    headers = {"origin": "https://example.com"}
    assert "access-control-allow-origin" not in connect().get("/v1/models", headers=headers).headers
    allowed = connect(origins=("https://example.com",)).get("/v1/models", headers=headers)
    assert allowed.headers["access-control-allow-origin"] == "https://example.com"


def test_a_full_queue_says_when_to_come_back(connect, script):
    client = connect(says=script(("", "你好")), max_queue=0)
    answer = client.post(CHAT, json={"messages": QUESTION, "n": 5})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "queue_full"
    assert client.post(CHAT, json={"messages": QUESTION, "n": 4}).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [None] * 1000},
        {"prompt": ["x"] * 1000},
        {"prompt": [[]] * 1000},
        {"prompt": [[]] * 50},
        {"messages": [{"role": "user", "content": [0] * 1000}]},
        {"messages": [{"role": "assistant", "tool_calls": [0] * 1000}]},
        {"messages": [0] * 1000},
        {"messages": QUESTION, **{f"x{number}": 1 for number in range(1000)}},
    ],
)
def test_of_a_thousand_faults_only_the_first_ones_are_collected(fields):
    """Everybody else waits while they are: a body of a million took seven seconds."""
    kind = CompletionRequest if "prompt" in fields else ChatRequest
    with pytest.raises(ValidationError) as raised:
        kind.model_validate(fields)
    assert raised.value.error_count() < 10


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_a_body_that_is_not_declared_as_json_is_told_so(client, kind):
    headers = {} if kind is None else {"content-type": kind}
    # What a page of somebody else may send without asking is of these kinds.
    error = refused(client, 415, content=json.dumps({"messages": QUESTION}).encode(), headers=headers)
    assert error["message"] == f"expected a body with Content-Type: application/json, found {kind or 'none'}"


def test_a_prompt_that_is_too_long_is_not_asked_for_a_tools_name_either(connect):
    client = connect(says=[], max_prompt_tokens=5)  # an engine that can say nothing
    tools = [{"type": "function", "function": {"name": name}} for name in ("get_weather", "send_mail")]
    body = {"messages": QUESTION, "tools": tools, "tool_choice": "required"}
    answer = client.post(CHAT, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
