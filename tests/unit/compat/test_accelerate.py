"""Canary: what a launcher was asked for can be read from where accelerate leaves it."""

import os

import pytest
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from canary import changed
from glmtune import compat

ACCELERATE = "accelerate 1.15"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FSDP", ["--multi_gpu", "--use_fsdp"]),
        ("DEEPSPEED", ["--use_deepspeed"]),
        ("MEGATRON_LM", ["--multi_gpu", "--use_megatron_lm"]),
        ("PARALLELISM_CONFIG", ["--multi_gpu", "--use_parallelism_config"]),
        ("CPU", ["--cpu"]),
    ],
)
def test_the_launcher_says_what_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, name: str, options: list[str]
) -> None:
    arguments = launch_command_parser().parse_args([*options, "--num_processes=2", "--mixed_precision=no", "train.py"])
    arguments.num_machines, arguments.num_cpu_threads_per_process, arguments.dynamo_backend = 1, 1, "no"
    if name == "CPU":
        arguments.num_processes = 1
        environment = prepare_simple_launcher_cmd_env(arguments)[1]
    elif name == "DEEPSPEED":
        arguments.deepspeed_fields_from_accelerate_config = ""
        environment = prepare_deepspeed_cmd_env(arguments)[1]
    else:
        environment = prepare_multi_gpu_env(arguments)
    assert not compat.launcher_asks_for(name)
    monkeypatch.setattr(os, "environ", environment)
    assert compat.launcher_asks_for(name), changed(
        ACCELERATE, f"accelerate launch {' '.join(options)} does not set ACCELERATE_USE_{name}"
    )
