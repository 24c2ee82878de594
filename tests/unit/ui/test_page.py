"""Without these, every user of a shared machine could start training runs as the one who opened the page."""

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from glmtune.server.auth import ApiKeys, page_key
from glmtune.ui import page
from glmtune.ui.jobs import Jobs


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """A client of a page that has a key, and nothing on it."""
    import gradio as gr

    def build_page(*_: Any) -> Any:
        with gr.Blocks() as blocks:
            gr.Markdown("something secret")
        return blocks

    monkeypatch.setattr(page, "build_page", build_page)
    app, service = FastAPI(), Any
    page.mount_page(app, service, Jobs(), ApiKeys(["right-key-1"]))  # type: ignore[arg-type]
    return TestClient(app)


def test_the_page_opens_with_its_key_alone(client: TestClient) -> None:
    assert client.get("/ui/config").status_code == 401
    assert "something secret" not in client.get("/ui/").text
    for key in ("", "wrong-key-2"):
        assert client.post("/ui/login", data={"username": "page", "password": key}).status_code >= 400
    assert client.get("/ui/config").status_code == 401
    assert client.post("/ui/login", data={"username": "page", "password": "right-key-1"}).status_code == 200
    assert "something secret" in client.get("/ui/config").text


def test_the_link_leads_to_the_login_without_sending_the_key(client: TestClient) -> None:
    answer = client.get("/ui/enter")
    assert answer.status_code == 200
    assert "location.hash" in answer.text
    assert "right-key-1" not in answer.text


def test_where_no_key_is_set_the_page_has_one_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLMTUNE_API_KEY", raising=False)
    first, second = page_key(), page_key()
    assert first is not None
    assert second not in (None, first)
    assert ApiKeys([first]).allow(b"Bearer " + first.encode())
    monkeypatch.setenv("GLMTUNE_API_KEY", "")
    assert page_key() is None
