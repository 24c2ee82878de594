"""Without these, a run that runs out of memory could end in a traceback, or advise what is no help."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from glmtune.errors import ModelError, TrainingError
from glmtune.planning.device import KnownDevice
from glmtune.planning.speed import DeviceSpeed
from glmtune.training.lora_trainer import LoraTrainer
from glmtune.training.run import TrainResult

Run = Callable[..., TrainResult]


def test_a_run_that_does_not_fit_stops_before_loading(
    run: Run, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU; here it is only said to be one. Loading this base would find that it holds NaN."""
    base = shutil.copytree(tiny_base, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    next(iter(weights.values())).fill_(float("nan"))
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="NaN"):
        run(f"model.path={base}")
    full = KnownDevice(None, torch.bfloat16, 0.001 * 2**30, DeviceSpeed.assumed())
    monkeypatch.setattr(KnownDevice, "look", lambda *_: full)
    with pytest.raises(TrainingError, match=r"does not fit.*smallest card that would do"):
        run(f"model.path={base}", name="planned")


@pytest.mark.parametrize(
    ("error", "is_out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_errors_that_mean_too_little_memory(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, is_out: bool
) -> None:
    """Raised while the base is loaded, where torch's own is turned into one of ours."""

    def fail(_: Any) -> Any:
        raise error

    monkeypatch.setattr(PreTrainedModel, "eval", fail)  # what loading ends with
    with pytest.raises(TrainingError if is_out else RuntimeError) as caught:
        run()
    assert ("out of memory before training began" in str(caught.value)) == is_out
    assert str(error) in str(caught.value)


def test_running_out_of_memory_anyway(run: Run, at_step: Any, tmp_path: Path) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    at_step(5, fail)
    with pytest.raises(TrainingError) as caught:
        run()
    message = str(caught.value)
    assert "out of memory after step 4" in message
    assert 1 <= message.count("GiB less") <= 3
    assert str(tmp_path / "run" / "checkpoint-3") in message
    assert (tmp_path / "run" / "checkpoint-3" / "adapter_model.safetensors").is_file()


def test_after_a_checkpoint_no_other_format_is_advised(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LoraTrainer, "save_state", fail)  # once all steps are done
    with pytest.raises(TrainingError, match="out of memory after step 3") as caught:
        run("train.max_steps=3")
    assert "checkpoint-3" in str(caught.value)
    assert "model.quantize" not in str(caught.value)
    with pytest.raises(TrainingError, match="out of memory after step 1") as caught:
        run("train.max_steps=1", "train.save_strategy=no", name="unsaved")
    assert "model.quantize" in str(caught.value)
