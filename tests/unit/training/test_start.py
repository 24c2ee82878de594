"""Without these, the commands that we print to go on from an adapter could be refused for settings that agree."""

import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glmtune.config import load_config
from glmtune.errors import ConfigError, TrainingError
from glmtune.training.run import TrainingInterrupted, TrainResult, train
from settings import changed

Run = Callable[..., TrainResult]
EXAMPLES = Path(__file__).parents[3] / "examples"


def test_settings_that_agree_with_the_adapter_are_not_refused(run: Run, tmp_path: Path) -> None:
    run("train.max_steps=1", "lora.init_lora_weights=gaussian", name="first")
    settings = ["lora.bias=none", "lora.use_dora=false", "lora.use_rslora=false", "lora.modules_to_save=[]"]
    settings += ["lora.r=8", "lora.target_modules=query_key_value", "lora.init_lora_weights=gaussian"]
    assert run(f"model.adapter_path={tmp_path / 'first'}", *settings, "train.max_steps=1").num_steps == 1
    with pytest.raises(ConfigError) as caught:
        run(f"model.adapter_path={tmp_path / 'first'}", "lora.bias=all", "lora.target_modules=all-linear", name="other")
    assert re.search("lora.bias='all' was requested, but the adapter in .* has 'none'", str(caught.value))
    assert "lora.target_modules='all-linear' was requested" in str(caught.value)


def test_settings_that_agree_with_the_run_are_not_refused(run: Run) -> None:
    run("train.max_steps=3")
    assert run("train.max_steps=4", "lora.bias=none", "train.resume_from_checkpoint=true").num_steps == 4


@pytest.mark.parametrize("example", ["lora-without-regret.yaml", "tools.yaml"])
def test_the_command_that_is_printed_goes_on_from_the_adapter(
    tiny_base: Path, data_file: Path, tmp_path: Path, example: str
) -> None:
    settings = [f"model.path={tiny_base}", f"data.path={data_file}", "train.use_cpu=true", "train.max_steps=2"]
    settings += ["train.save_steps=1", "train.per_device_train_batch_size=2"]

    def run(*overrides: str) -> TrainResult:
        return train(load_config(EXAMPLES / example, changed(settings, *overrides)))

    run(f"train.output_dir={tmp_path / 'run'}")
    other = ("train.seed=1", "train.max_steps=3")
    with pytest.raises(TrainingError) as caught:
        run(f"train.output_dir={tmp_path / 'run'}", *other, "train.resume_from_checkpoint=true")
    printed = re.search(r"(model\.adapter_path=\S+) train\.output_dir=ANOTHER_FOLDER", str(caught.value))
    assert printed is not None
    second = (printed[1], f"train.output_dir={tmp_path / 'second'}", *other)
    assert run(*second).num_steps == 3
    assert run(*changed([*second], "train.max_steps=4", "train.resume_from_checkpoint=true")).num_steps == 4


@pytest.mark.parametrize("resumed", [(), ("train.resume_from_checkpoint=true",)])
def test_an_interrupted_run_without_optimiser_states_prints_a_command_that_works(
    run: Run, at_step: Any, tmp_path: Path, resumed: tuple[str, ...]
) -> None:
    signals = [signal.SIGTERM]  # for the first run that gets so far
    at_step(3, lambda: os.kill(os.getpid(), signals.pop()) if signals else None)
    if resumed:
        run("train.max_steps=1")
    with pytest.raises(TrainingInterrupted) as caught:
        run("train.save_only_model=true", "train.max_steps=4", *resumed)
    printed = shlex.split(str(caught.value).splitlines()[-1])
    assert printed[:2] == ["glmtune", "train"]
    assert f"model.adapter_path={tmp_path / 'run'}" in printed
    assert train(load_config(None, changed(printed[2:], f"train.output_dir={tmp_path / 'second'}"))).num_steps == 4
