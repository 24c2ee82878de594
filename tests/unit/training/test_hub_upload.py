"""Without these, a run could be computed for nothing because the hub cannot be reached."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi

from glmtune.errors import ConfigError, TrainingError
from glmtune.training.run import TrainResult

Run = Callable[..., TrainResult]
UPLOADED = ("train.push_to_hub=true", "train.hub_model_id=me/mine", "train.max_steps=2", "train.save_steps=1")


def test_a_hub_that_cannot_be_reached_is_told_before_training(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.push_to_hub: .*offline mode is enabled"):
        run(*UPLOADED, "train.hub_token=hf_x")
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_a_run_that_cannot_be_uploaded_is_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("the network is unreachable")

    monkeypatch.setattr(HfApi, "whoami", lambda *_, **__: {"name": "me"})
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: SimpleNamespace(repo_id="me/mine"))
    monkeypatch.setattr(HfApi, "upload_folder", fail)
    folder = tmp_path / "run"
    with pytest.raises(TrainingError, match=f"kept in {folder}, .*network is unreachable(.|\n)*hf upload me/mine"):
        run(*UPLOADED)
    assert (folder / "all_results.json").is_file()
    assert "checkpoint-1 could not be uploaded to the hub: the network is unreachable" in caplog.text
