"""Without these, a reply could make the browser tell somebody else that it was read, and what is in it."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import browser
import processes

_IMAGE = '<svg xmlns="http://www.w3.org/2000/svg" width="5" height="5"/>'


class Elsewhere(ThreadingHTTPServer):
    """Somebody else's server, which has an image at every address.

    Attributes:
        asked: The paths that it was asked for.
    """

    def __init__(self) -> None:
        asked: list[str] = []
        self.asked = asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(200)
                self.send_header("Content-Type", "image/svg+xml")
                self.end_headers()
                self.wfile.write(_IMAGE.encode())

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    with Elsewhere() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[str]:
    browser.find_chromium()
    environment = {**os.environ, "GLMTUNE_API_KEY": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "glmtune", "ui", "--port", 0]
    with processes.started(
        *command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        printed = processes.read_until(process.stderr, "/v1 (Ctrl-C")
        found = re.search(r"Page: (http://\S+)", printed)
        assert found, printed
        yield found[1]


def test_an_image_in_a_message_is_not_loaded_from_elsewhere(
    page: str, elsewhere: Elsewhere, tmp_path_factory: pytest.TempPathFactory
) -> None:
    address = f"http://127.0.0.1:{elsewhere.server_port}"
    with browser.opened(tmp_path_factory.mktemp("profile")) as chromium:
        chromium.open(page)
        chromium.wait("document.body.dataset.language === 'en'")
        # Nor from the page's own server, which would fetch it from elsewhere: /ui/gradio_api/file=http://...
        images = [f"![]({address}/x.svg)", f"![]({page}/static/img/logo.svg)"]
        chromium.type("#question textarea", " ".join(images))
        chromium.click("#send")
        shown = "[...document.querySelectorAll('#left .user .message img')]"
        chromium.wait(f"{shown}.length === 2 && {shown}.every(each => each.complete)")
        assert chromium.evaluate(f"{shown}.map(each => each.naturalWidth)") == [0, 0]
    assert elsewhere.asked == []
