"""Without these, the page could hold up or hide what the server does for it."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import pytest

from glmtune.config import embedded_base
from glmtune.errors import GlmtuneError
from glmtune.inference.engine.engine import Engine
from glmtune.loading.runs import load
from glmtune.server import pending
from glmtune.server.auth import ApiKeys
from glmtune.server.metrics import Metrics
from glmtune.server.models import Models
from glmtune.server.requests import RequestRecord
from glmtune.server.service import Service
from glmtune.server.worker import Worker
from glmtune.ui.talking import ask

QUESTION, ANSWER = [{"role": "user", "content": "你是谁？"}], "我是一个小小的语言模型，可以陪你聊天。"


@pytest.fixture(scope="module")
def models() -> Models:
    loaded = load(embedded_base())
    return Models(Engine(loaded.model, loaded.tokenizer, max_rows=4), loaded)


@pytest.fixture
def records() -> list[RequestRecord]:
    """What the server has logged."""
    return []


@pytest.fixture
def service(models: Models, records: list[RequestRecord]) -> Service:
    return Service(models, Worker(models.engine, 8), Metrics(models.engine), ApiKeys(), records.append)


def told(service: Service, read: Callable[[AsyncGenerator[list[str], None]], Any], *names: str, **options: Any) -> Any:
    """What `read` makes of the replies to a question."""
    messages = options.pop("messages", QUESTION)

    async def run() -> Any:
        service.worker.start()
        try:
            async with aclosing(ask(service, [(name, messages) for name in names], options)) as replies:
                return await read(replies)
        finally:
            assert not service.worker.num_active
            service.worker.stop()

    return asyncio.run(run())


async def last(replies: AsyncGenerator[list[str], None]) -> list[str]:
    return [texts async for texts in replies][-1]


def test_chats_of_the_page_are_logged_and_counted(service: Service, records: list[RequestRecord]) -> None:
    assert told(service, last, "base", "base") == [ANSWER, ANSWER]
    assert len(records) == 2
    line = json.loads(records[0].line())
    assert (line["path"], line["status"], line["model"], line["finish"]) == ("/ui", 200, "base", "stop")
    assert line["prompt_tokens"] > 5
    assert line["completion_tokens"] > 5
    assert "first_token_ms" in line
    assert "client" not in line
    text = service.metrics.text().decode()
    assert 'glmtune_requests_total{path="/ui",status="200"} 2.0' in text
    assert f'glmtune_completion_tokens_total{{model="base"}} {2 * line["completion_tokens"]}.0' in text


def test_a_reply_that_is_stopped_ends_and_is_logged_so(service: Service, records: list[RequestRecord]) -> None:
    async def first(replies: AsyncGenerator[list[str], None]) -> list[str]:
        return await anext(replies)

    told(service, first, "base", max_tokens=400, min_tokens=400)
    assert [record.is_cancelled for record in records] == [True]
    assert json.loads(records[0].line())["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("status", "name", "messages"),
    [(404, "nowhere", QUESTION), (400, "base", [{"role": "user", "content": "你好" * 9000}])],
)
def test_a_question_that_is_refused_is_told_and_logged(
    service: Service, records: list[RequestRecord], status: int, name: str, messages: Any
) -> None:
    with pytest.raises(GlmtuneError):
        told(service, last, "base", name, messages=messages)
    assert {record.status for record in records} == {status}
    assert not any(record.is_cancelled for record in records)


def test_a_long_conversation_does_not_hold_up_the_others(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    chat_prompt = pending.chat_prompt

    def observed(*arguments: Any) -> list[int]:
        threads.append(threading.current_thread())
        return chat_prompt(*arguments)

    monkeypatch.setattr(pending, "chat_prompt", observed)
    with pytest.raises(GlmtuneError, match="the prompt has"):
        told(service, last, "base", messages=[{"role": "user", "content": "你好" * 20_000}])
    assert threads
    assert threading.main_thread() not in threads
