"""Without these, a fault in the server or the engine could leave requests without an answer, or without a trace."""

import asyncio
import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from glmtune.errors import ModelError
from glmtune.inference.engine.engine import Engine
from glmtune.inference.engine.request import Request, Sampling
from glmtune.server.app import create_app
from glmtune.server.auth import ApiKeys
from glmtune.server.metrics import Metrics
from glmtune.server.models import Models
from glmtune.server.service import Service
from glmtune.server.worker import Worker

CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "你好"}]


@pytest.fixture
def engine(embedded):
    """An engine for each test: after most of these, it still holds requests."""
    return Engine(embedded.model, embedded.tokenizer, max_rows=4)


def fail(*_):
    raise RuntimeError("a bug")


def test_a_bug_is_logged_and_counted_with_its_status(connect, records, monkeypatch):
    monkeypatch.setattr(Models, "get", fail)
    client = connect()
    assert client.post(CHAT, json={"messages": QUESTION}).status_code == 500
    assert json.loads(records[-1].line())["status"] == 500
    samples = [
        sample for family in text_string_to_metric_families(client.get("/metrics").text) for sample in family.samples
    ]
    assert {"path": CHAT, "status": "500"} in [sample.labels for sample in samples]


@pytest.mark.parametrize("stream", [False, True])
def test_the_log_says_why_a_reply_ended(connect, records, stream):
    body = {"messages": QUESTION, "stream": stream, "max_tokens": 2}
    assert connect().post(CHAT, json=body).status_code == 200
    assert json.loads(records[-1].line())["finish"] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_the_engine_cannot_take_is_answered_and_so_is_the_next(connect, stream):
    client = connect()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "submit", fail)
        answer = client.post(CHAT, json={"messages": QUESTION, "stream": stream})
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert "a bug" not in answer.text
    assert client.post(CHAT, json={"messages": QUESTION, "max_tokens": 2}).status_code == 200


def test_a_step_that_fails_ends_the_replies_that_ran_with_an_error(connect, script, monkeypatch):
    client = connect(says=script(("", "你好")))
    engine = client.app.state.engine
    step = engine.step

    def run_out():
        for running in engine.running:
            running.finish_reason, running.error = "error", ModelError("out of memory while generating")
        engine.running.clear()
        raise ModelError("out of memory while generating")

    monkeypatch.setattr(engine, "step", run_out)
    for is_streamed in (False, True):
        answer = client.post(CHAT, json={"messages": QUESTION, "stream": is_streamed})
        assert answer.status_code == 500
        assert "out of memory" in answer.json()["error"]["message"]
    monkeypatch.setattr(engine, "step", step)
    assert client.post(CHAT, json={"messages": QUESTION}).status_code == 200


def test_a_reply_whose_end_is_lost_is_an_error(connect, monkeypatch):
    step = Engine.step

    def lose_the_end(engine):
        events = step(engine)
        if any(event.finish_reason for event in events):
            fail()
        return events

    client = connect()
    monkeypatch.setattr(Engine, "step", lose_the_end)
    answer = client.post(CHAT, json={"messages": QUESTION, "max_tokens": 2})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "generation_failed"


def test_a_client_that_goes_before_the_first_byte_is_sent_frees_its_place(embedded, engine):
    async def run() -> None:
        models, worker = Models(engine, embedded), Worker(engine, 8)
        app = create_app(Service(models, worker, Metrics(engine), ApiKeys(), lambda record: None))
        body = {"messages": QUESTION, "stream": True, "temperature": 2.0, "seed": 3, "max_tokens": 400}
        messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
        is_sending = asyncio.Event()

        async def receive():
            if messages:
                return messages.pop()
            await is_sending.wait()
            return {"type": "http.disconnect"}

        async def send(message):  # as for a client whose buffers are full
            is_sending.set()
            await asyncio.Event().wait()

        scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b""}
        scope["headers"] = [(b"content-type", b"application/json")]
        worker.start()
        try:
            await app(scope, receive, send)
            assert not worker.num_active
        finally:
            worker.stop()

    asyncio.run(run())


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_engine_that_cannot_even_end_its_requests_ends_the_service(connect, monkeypatch, is_streamed):
    """As after an error of the device; it would step, fail and log forever."""
    client = connect()
    monkeypatch.setattr(client.app.state.engine, "step", fail)
    answer = client.post(CHAT, json={"messages": QUESTION, "n": 2, "stream": is_streamed})
    assert answer.status_code == 500
    assert "a bug" not in answer.text
    answer = client.post(CHAT, json={"messages": QUESTION})
    assert answer.status_code == 503
    assert "started again" in answer.json()["error"]["message"]
    assert client.get("/health").status_code == 503


def test_the_end_of_the_engine_s_thread_answers_those_who_wait(embedded, engine, monkeypatch):
    async def run() -> None:
        worker = Worker(engine, 8)
        monkeypatch.setattr(engine, "cancel", fail)
        worker.start()
        sampling = Sampling(max_new_tokens=400, min_new_tokens=400)
        tickets = worker.submit([Request([300, 301], sampling)] * 2, is_whole=True)
        worker.cancel(tickets[:1])
        with pytest.raises(ModelError):
            await tickets[1].take()
        assert not worker.is_alive

    asyncio.run(run())
