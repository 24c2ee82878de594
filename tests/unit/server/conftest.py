"""A server within the test's process: on the embedded base, or on an engine that says what a test wants."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from glmtune.config import embedded_base
from glmtune.inference.engine.engine import Engine, Event
from glmtune.inference.engine.request import Request, RunningRequest
from glmtune.loading.runs import Loaded, load
from glmtune.server.app import create_app
from glmtune.server.auth import ApiKeys
from glmtune.server.metrics import Metrics
from glmtune.server.models import Models
from glmtune.server.requests import RequestRecord
from glmtune.server.service import Service
from glmtune.server.worker import Worker


class ScriptedEngine:
    """Says the same to everybody, a token at a step."""

    max_rows, num_blocks, num_free_blocks, num_running, num_waiting = 4, 9, 9, 0, 0

    def __init__(self, reply_ids: list[int]) -> None:
        self._reply_ids = reply_ids
        self.running: list[RunningRequest] = []

    def submit(self, request: Request) -> RunningRequest:
        running = RunningRequest(request, request.sampling, 0, [], list(request.prompt_ids))
        self.running.append(running)
        self.last_prompt = list(request.prompt_ids)
        return running

    def step(self) -> list[Event]:
        events = []
        for running in list(self.running):
            token_id = self._reply_ids[len(running.generated_ids)]
            running.token_ids.append(token_id)
            if token_id in running.sampling.stop_token_ids:
                running.finish_reason = "stop"
                self.running.remove(running)
            events.append(Event(running, [token_id], running.finish_reason))
        return events

    def cancel(self, running: RunningRequest) -> None:
        if running in self.running:
            self.running.remove(running)


@pytest.fixture(scope="session")
def embedded() -> Loaded:
    return load(embedded_base())


@pytest.fixture(scope="session")
def engine(embedded: Loaded) -> Iterator[Engine]:
    """The engine that the tests share; what breaks one has its own."""
    engine = Engine(embedded.model, embedded.tokenizer, max_rows=4)
    yield engine
    assert (engine.num_running, engine.num_waiting) == (0, 0), "a test has left requests in the engine"


@pytest.fixture
def records() -> list[RequestRecord]:
    """What the server has logged."""
    return []


Connect = Callable[..., TestClient]


@pytest.fixture
def connect(embedded: Loaded, engine: Engine, records: list[RequestRecord]) -> Iterator[Connect]:
    """Starts a server and returns a client of it."""
    clients: list[TestClient] = []

    def start(
        *,
        says: list[int] | None = None,
        system: str | None = None,
        keys: tuple[str, ...] = (),
        max_queue: int = 8,
        allowed: tuple[str, ...] = (),
        **options,
    ) -> TestClient:
        own = engine if says is None else ScriptedEngine(says)
        models = Models(own, replace(embedded, system=system), allowed)
        prompt_limit, write = options.pop("max_prompt_tokens", None), options.pop("write", records.append)
        service = Service(models, Worker(own, max_queue), Metrics(own), ApiKeys(keys), write, prompt_limit)
        app = create_app(service, **options)
        app.state.engine = own
        client = TestClient(app, raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(connect: Connect) -> TestClient:
    return connect()


@pytest.fixture
def script(embedded: Loaded) -> Callable[..., list[int]]:
    """The ids of a reply: its messages, each with its metadata, and the token that ends it."""

    def ids(*messages: tuple[str, str], end: str = "<|user|>") -> list[int]:
        tokenizer = embedded.tokenizer
        made: list[int] = []
        for number, (metadata, content) in enumerate(messages):
            made += [tokenizer.get_command("<|assistant|>")] if number else []
            made += [*tokenizer.encode_text(f"{metadata}\n"), *tokenizer.encode_text(content)]
        return [*made, tokenizer.get_command(end)]

    return ids
