"""Does a server keep its replies apart, its memory flat and its places free under load?

    python benchmarks/serve_load.py                200 clients for 60 s, then 50 that vanish half-way

A real process serves the embedded base. Every client asks one question after the other, drawn from a list, and
compares each reply with what the server said to that question when nobody else asked; some of them draw, with a seed.
"""

import argparse
import asyncio
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from stream_client import get, post

WORDS = ["春江花月夜", "青石桥边", "山高水长", "一帆风顺", "花好月圆", "云淡风轻", "海阔天空", "万里无云"]
CHAT = "/v1/chat/completions"


def questions() -> list[dict[str, Any]]:
    """Requests, no two alike: sums, words to repeat, and drawn replies."""
    made: list[dict[str, Any]] = []
    for first in range(2, 10):
        made += [_asking(f"{first}+{second}等于几？") for second in range(2, 6)]
    made += [_asking(f"请重复：{word}") for word in WORDS]
    return made + [_asking("你好", seed=seed, temperature=1.2) for seed in range(10)]


def _asking(text: str, **options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 48, "stream": True, **options}


def start(rows: int) -> tuple[subprocess.Popen[bytes], int]:
    """Starts a server; returns its process and its port."""
    command = [sys.executable, "-m", "glmtune", "serve", "--port", "0", "--max-rows", str(rows), "--max-queue", "1000"]
    environment = {**os.environ, "GLMTUNE_LANG": "en", "GLMTUNE_API_KEY": ""}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    while line := process.stderr.readline().decode():
        if found := re.search(r":(\d+)/v1", line):
            return process, int(found[1])
    raise SystemExit("the server did not start")


def rss_mib(process: subprocess.Popen[bytes]) -> float:
    """The process's memory."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return int(found[1]) / 1024 if found else 0.0


async def num_busy(port: int) -> float:
    """Requests that run or wait."""
    text = await get(port, "/metrics")
    return sum(map(float, re.findall(r"^glmtune_(?:running|waiting) (\S+)$", text, re.MULTILINE)))


async def load(process: subprocess.Popen[bytes], port: int, num_clients: int, seconds: float) -> Counter[str]:
    """Runs the clients, prints memory as it goes, and returns how many replies were right, wrong, or failed."""
    asked = questions()
    right = [(await post(port, CHAT, body)).text for body in asked]
    print(f"{len(asked)} questions, {len(set(right))} different replies, such as {right[0]!r}", flush=True)
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds

    async def client(number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < end:
            index = draw.randrange(len(asked))
            try:
                received = await post(port, CHAT, asked[index])
            except OSError as error:
                counts[f"broken: {error}"] += 1
                continue
            if received.status != 200:
                counts[f"status {received.status}"] += 1
            elif received.text == right[index]:
                counts["right"] += 1
            else:
                counts["wrong"] += 1
                print(f"expected {right[index]!r}, found {received.text!r}", flush=True)

    async def watch() -> None:
        while time.monotonic() < end:
            print(f"{end - time.monotonic():4.0f} s left: {rss_mib(process):.0f} MiB, {dict(counts)}", flush=True)
            await asyncio.sleep(seconds / 6)

    await asyncio.gather(watch(), *(client(number) for number in range(num_clients)))
    return counts


async def vanish(port: int, num_clients: int) -> float:
    """Clients that close their connection at the first token of a long reply; returns when all places are free."""
    body = {**_asking("你是谁？", min_tokens=450), "max_tokens": 450}
    await asyncio.gather(*(post(port, CHAT, body, vanish_after_first=True) for _ in range(num_clients)))
    begin = time.monotonic()
    while await num_busy(port):
        await asyncio.sleep(0.01)
    return time.monotonic() - begin


async def vanish_at_once(port: int, num_clients: int) -> float:
    """Clients that all close their connections at the same time, while some of them still wait for a place."""
    body = {**_asking("你是谁？", min_tokens=450), "max_tokens": 450}
    tasks = [asyncio.ensure_future(post(port, CHAT, body)) for _ in range(num_clients)]
    while await num_busy(port) < num_clients:
        await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    begin = time.monotonic()
    while await num_busy(port):
        await asyncio.sleep(0.01)
    return time.monotonic() - begin


async def main() -> None:
    """Runs all of it; exits with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rows", type=int, default=32, help="the server's --max-rows")
    parser.add_argument("--vanishing", type=int, default=50)
    arguments = parser.parse_args()
    process, port = start(arguments.rows)
    try:
        before = rss_mib(process)
        await load(process, port, arguments.clients, min(10, arguments.seconds))  # what is allocated once
        warm = rss_mib(process)
        counts = await load(process, port, arguments.clients, arguments.seconds)
        after = rss_mib(process)
        freed_s = await vanish_at_once(port, arguments.vanishing)
        one_by_one_s = await vanish(port, arguments.vanishing)
        last = rss_mib(process)
    finally:
        process.terminate()
        code = process.wait()
    print(f"replies: {dict(counts)}")
    print(f"memory, MiB: {before:.0f} loaded, {warm:.0f} warm, {after:.0f} after the load, {last:.0f} at the end")
    print(f"{arguments.vanishing} clients vanished at once: all places free after {freed_s:.2f} s")
    print(
        f"{arguments.vanishing} vanished at their first token: free {one_by_one_s:.2f} s after the last; "
        f"exit code {code}"
    )
    sys.exit(set(counts) != {"right"} or freed_s > 2)


if __name__ == "__main__":
    asyncio.run(main())
