"""Clients of the server, as a process of their own: it reads what to ask from its input, a JSON object a line.

    {"count": 16, "prompt": 64, "new": 512, "is_streamed": true, "seed": 1}

All of them ask at once. Its answer is a line too: when they began and ended by the machine's clock, and for each the
milliseconds to its first token.
"""

import asyncio
import json
import random
import subprocess
import sys
import time
from typing import Any

from stream_client import Received, post


class ClientProcess:
    """The other end of such a process.

    Args:
        port: The server's.
    """

    def __init__(self, port: int) -> None:
        command = [sys.executable, __file__, str(port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **what: Any) -> None:
        """Lets the clients begin."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(what)}\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Waits for them."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the clients have failed")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


async def _run(port: int, what: dict[str, Any]) -> dict[str, Any]:
    draw = random.Random(what["seed"])
    prompts = [[draw.randrange(300, 4300) for _ in range(what["prompt"])] for _ in range(what["count"])]
    begin = time.monotonic()
    received = await asyncio.gather(*(_ask(port, prompt, what) for prompt in prompts))
    end = time.monotonic()
    return {"begin": begin, "end": end, "first_ms": [1e3 * one.first_s for one in received]}


async def _ask(port: int, prompt: list[int], what: dict[str, Any]) -> Received:
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": what["new"], "stream": what["is_streamed"]}
    if what["is_streamed"]:
        body["stream_options"] = {"include_usage": True}
    received = await post(port, "/v1/completions", body)
    num_tokens = received.num_tokens if what["is_streamed"] else what["new"]
    if received.status != 200 or num_tokens != what["new"]:
        raise SystemExit(f"status {received.status}, {num_tokens} tokens: {received.text}")
    return received


def main() -> None:
    """Answers line by line until the input ends."""
    for line in sys.stdin:
        print(json.dumps(asyncio.run(_run(int(sys.argv[1]), json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
