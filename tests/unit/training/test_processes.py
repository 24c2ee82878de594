"""Processes of a launcher that was told to do what is not done here end with a sentence, and at once."""

import pytest

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
    join_processes({})
