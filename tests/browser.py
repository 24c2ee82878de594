"""A headless Chromium that tests drive through its own protocol, by the standard library alone.

Source: the Chrome DevTools Protocol, over two pipes (`--remote-debugging-pipe`): messages are JSON, each ended by a
zero.
"""

import base64
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import processes

_HANG_S = 900
"""After so long, what a test waits for on a page counts as never to come."""
_ANSWERS = "/queue/data"
"""The address of the stream by which Gradio answers what is asked through its queue."""
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
)


class Browser:
    """A page in Chromium.

    Args:
        to_browser: The pipe that it reads.
        from_browser: The pipe that it writes.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = os.fdopen(to_browser, "wb", buffering=0), os.fdopen(from_browser, "rb", buffering=0)
        self._numbers = itertools.count(1)
        self._rest = b""
        self._loaded: set[str] = set()
        self._answering: set[str] = set()
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.send(f"{domain}.enable")
        self.send("Page.setLifecycleEventsEnabled", enabled=True)

    def send(self, method: str, **params: Any) -> Any:
        """Sends a command and returns its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> Any:
        while b"\0" not in self._rest:
            received = self._from.read(65536)
            assert received, "the browser has ended"
            self._rest += received
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        event, params = message.get("method"), message.get("params", {})
        if event == "Page.lifecycleEvent" and params["name"] == "load":
            self._loaded.add(params["loaderId"])
        elif event == "Network.requestWillBeSent" and _ANSWERS in params["request"]["url"]:
            self._answering.add(params["requestId"])
        elif event in ("Network.loadingFinished", "Network.loadingFailed"):
            self._answering.discard(params["requestId"])
        return message

    def until_answered(self) -> None:
        """Waits until the page is told all answers: what is asked while it closes their stream can be lost."""
        self.evaluate("1")  # after which what has happened so far is known
        while self._answering:
            self._read()

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; of a promise, what it comes to."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str, action: str = "") -> Any:
        """Waits until an expression is true, and returns its value; it may fail until then.

        Args:
            expression: The expression.
            action: Statements that bring it about, repeated with longer and longer pauses, since a page that is still
                drawing may lose what is done to it. They may fail, too.
        """
        look = f"try {{ const value = {expression}; if (value) return done(value); }} catch (error) {{}}"
        look += f"if (Date.now() > end) return fail('never true: ' + {json.dumps(expression)});"
        if action:
            again = f"pause *= 2; next = Date.now() + pause; try {{ {action} }} catch (error) {{}}"
            look += f"if (Date.now() >= next) {{ {again} }}"
        look += "setTimeout(look, 50);"
        if action:
            self.until_answered()
        start = f"const end = Date.now() + {1000 * _HANG_S}; let next = 0, pause = 100"
        return self.evaluate(f"new Promise((done, fail) => {{ {start}; const look = () => {{ {look} }}; look(); }})")

    def open(
        self, url: str, width: int = 1280, height: int = 900, language: str = "en-US", is_dark: bool = False
    ) -> None:
        """Opens an address in a window of a size, as somebody with a language would see it."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = "dark" if is_dark else "light"
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send(
            "Emulation.setUserAgentOverride",
            userAgent="Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/140 Safari/537.36",
            acceptLanguage=language,
        )
        loader = self.send("Page.navigate", url=url)["loaderId"]
        while loader not in self._loaded:
            self._read()

    def click(self, selector: str) -> None:
        """Clicks on what a selector finds, once it is there."""
        self.until_answered()
        self.wait(f"(document.querySelector({json.dumps(selector)}).click(), true)")

    def type(self, selector: str, text: str) -> None:
        """Replaces the text of a field, again until it stays: a page that is still drawing may set it once more."""
        field = f"document.querySelector({json.dumps(selector)})"
        later = f"new Promise(done => setTimeout(() => done({field}?.value), 300))"
        while True:
            self.wait(f"({field}.focus(), {field}.select(), true)")
            self.send("Input.insertText", text=text)
            if self.evaluate(later) == text:
                return

    def text(self, selector: str) -> str:
        """The text of what a selector finds; empty if there is nothing."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def screenshot(self, file: Path) -> None:
        """Writes what the window shows as a PNG."""
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))


def find_chromium() -> str:
    """The browser's program; the test is skipped where there is none."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs a browser: there is no chromium here")
    return found


@contextmanager
def opened(folder: Path) -> Iterator[Browser]:
    """Starts a browser whose profile is in a folder, and ends it."""
    program = find_chromium()
    (read_here, write_there), (read_there, write_here) = os.pipe(), os.pipe()
    # Chromium reads from descriptor 3 and writes to 4.
    command = ["bash", "-c", f'exec "$@" 3<&{read_there} 4>&{write_there}', "bash"]
    command += [program, *_FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with processes.started(*command, pass_fds=(read_there, write_there), **quiet):
        os.close(read_there)
        os.close(write_there)
        yield Browser(write_here, read_here)
