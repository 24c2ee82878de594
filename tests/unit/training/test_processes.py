"""Processes of a launcher that was told to do what is not done here end with a sentence, and at once."""

import json
import os
import socket
import sys
from typing import Any

import pytest

import processes
from glmtune.errors import ConfigError
from glmtune.training.processes import join_processes


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_a_launcher_that_spreads_the_model_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ConfigError, match=f"accelerate launch has {name} switched on.*torchrun.*accelerate config"):
        join_processes({})


def test_a_launcher_with_all_that_switched_off_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FSDP", "DEEPSPEED"):
        monkeypatch.setenv(f"ACCELERATE_USE_{name}", "false")
    assert join_processes({}).num_processes == 1


JOIN = """
import json, sys
from glmtune.errors import GlmtuneError
from glmtune.training.processes import join_processes
try:
    join_processes(json.loads(sys.argv[1]))
except GlmtuneError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def first_of_two(**settings: Any) -> str:
    """The error of a run's first process on the CPU, whose second one never comes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    place = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    command = (sys.executable, "-c", JOIN, json.dumps({"use_cpu": True, **settings}))
    done = processes.run(*command, env={**os.environ, **place})
    assert done.returncode == 1, done.stdout
    return done.stderr.splitlines()[-1]


def test_the_time_limit_for_joining_holds_on_the_cpu_too() -> None:
    error = first_of_two(ddp_timeout=1)
    assert "did not all join within 1 s (train.ddp_timeout): Timed out" in error


def test_a_back_end_that_the_cpu_has_not_is_refused_in_a_sentence() -> None:
    assert first_of_two(ddp_backend="nccl").startswith("ConfigError: train.ddp_backend: ")
