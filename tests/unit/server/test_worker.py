"""Without these, one request that the engine chokes on could take all the others with it."""

from glmtune.errors import ModelError

QUESTION = [{"role": "user", "content": "你好"}]
CHAT = "/v1/chat/completions"


def test_a_request_that_the_engine_chokes_on_is_answered_and_the_next_one_too(connect, script, monkeypatch):
    client = connect(says=script(("", "你好")))
    engine = client.app.state.engine
    submit = engine.submit

    def choke(request):
        raise RuntimeError("a bug")

    monkeypatch.setattr(engine, "submit", choke)
    answer = client.post(CHAT, json={"messages": QUESTION})
    assert answer.status_code == 500
    assert "a bug" not in answer.text
    monkeypatch.setattr(engine, "submit", submit)
    assert client.post(CHAT, json={"messages": QUESTION}).status_code == 200


def test_a_step_that_fails_ends_the_replies_that_ran_with_an_error(connect, script, monkeypatch):
    client = connect(says=script(("", "你好")))
    engine = client.app.state.engine
    step = engine.step

    def fail():
        for running in engine.running:
            running.finish_reason, running.error = "error", ModelError("out of memory while generating")
        engine.running.clear()
        raise ModelError("out of memory while generating")

    monkeypatch.setattr(engine, "step", fail)
    for is_streamed in (False, True):
        answer = client.post(CHAT, json={"messages": QUESTION, "stream": is_streamed})
        assert answer.status_code == 500
        assert "out of memory" in answer.json()["error"]["message"]
    monkeypatch.setattr(engine, "step", step)
    assert client.post(CHAT, json={"messages": QUESTION}).status_code == 200
