"""Without these, a run could go by other settings than were planned, or a resumed one by other than before."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import glmtune
from glmtune.adapters.run_folder import RunManifest
from glmtune.config import RunConfig
from glmtune.errors import ConfigError, TrainingError
from glmtune.export.merge import merge
from glmtune.loading.bases import load_base
from glmtune.loading.runs import load
from glmtune.planning.start import Start
from glmtune.training.run import TrainResult

Run = Callable[..., TrainResult]
EarlierRun = Callable[..., Path]


def test_the_configuration_visits_each_room_once(run: Run) -> None:
    """Whole, that is: other rooms are handed a section, plain values, or the plan that was made with it."""
    package = str(Path(glmtune.__file__).parent)
    rooms: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(package) or code.co_filename.endswith("sections.py"):
            return
        parameters = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if any(isinstance(frame.f_locals.get(name), RunConfig | Start) for name in parameters):
            room = Path(code.co_filename).relative_to(package).as_posix()
            if rooms[-1:] != [room]:
                rooms.append(room)

    sys.setprofile(note)
    try:
        run("train.max_steps=1")
    finally:
        sys.setprofile(None)
    assert rooms == [
        *("training/run.py", "config/reading.py", "planning/start.py", "training/inputs.py", "planning/plan.py")
    ]


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_a_run_on_a_quantised_base(run: Run, tmp_path: Path, quantize: str) -> None:
    result = run(f"model.quantize={quantize}", "model.offload_embedding=true", "train.offload_checkpoints=true")
    assert result.first_loss is not None
    assert result.last_loss is not None
    assert result.last_loss < result.first_loss
    assert result.metrics["num_parameters"] == run(name="full").metrics["num_parameters"]
    manifest = RunManifest.read(tmp_path / "run")
    assert manifest is not None
    assert manifest.config["model"]["quantize"] == quantize


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_an_adapter_trained_on_a_quantised_base_is_merged_into_the_original(
    run: Run, tiny_base: Path, tmp_path: Path, quantize: str
) -> None:
    run(f"model.quantize={quantize}")
    result = merge(tmp_path / "run", tmp_path / "merged")
    assert result.difference <= result.tolerance < result.effect
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        merged = load(tmp_path / "merged").model(input_ids=ids).logits
        exact = load(tmp_path / "run", quantize="none")
        torch.testing.assert_close(merged, exact.model(input_ids=ids).logits, atol=1e-4, rtol=0)
        base, _ = load_base(tiny_base, "float32", "cpu")
        assert (merged - base(ids).logits).abs().max() > 1e-3


def test_a_resumed_run_keeps_its_format(run: Run, tmp_path: Path) -> None:
    constant = "train.lr_scheduler_type=constant"
    run("model.quantize=int8", "train.max_steps=6", constant, name="whole")
    run("model.quantize=int8", "train.max_steps=3", constant)
    with pytest.raises(TrainingError, match=r"model\.quantize"):
        run("model.quantize=nf4", "train.max_steps=6", constant, "train.resume_from_checkpoint=true")
    run("train.max_steps=6", constant, "train.resume_from_checkpoint=true")  # auto: as it was
    losses = []
    for name in ("whole", "run"):
        lines = (tmp_path / name / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
        losses.append([entry["loss"] for entry in map(json.loads, lines) if "loss" in entry])
    assert losses[0] == losses[1]


def test_a_resumed_run_keeps_its_settings(run: Run, tmp_path: Path) -> None:
    constant = "train.lr_scheduler_type=constant"
    run("train.max_steps=3", "train.max_tokens_per_device=40", "train.gradient_checkpointing=2", constant)
    manifest = RunManifest.read(tmp_path / "run")
    assert manifest is not None
    assert manifest.config["train"]["max_tokens_per_device"] == 40
    run("train.max_steps=6", "train.resume_from_checkpoint=true", constant)
    manifest = RunManifest.read(tmp_path / "run")
    assert manifest is not None
    assert manifest.config["train"]["max_tokens_per_device"] == 40
    assert manifest.config["train"]["gradient_checkpointing"] == 2
    run("train.max_steps=7", "train.resume_from_checkpoint=true", "train.max_tokens_per_device=90", constant)
    manifest = RunManifest.read(tmp_path / "run")
    assert manifest is not None
    assert manifest.config["train"]["max_tokens_per_device"] == 90


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ({"cuda_graphs": True}, []),  # as a GPU's plan has it, gone on with on a CPU
        ({"cuda_graphs": True}, ["train.offload_checkpoints=true"]),
        ({"offload_checkpoints": True, "gradient_checkpointing": 3}, ["train.gradient_checkpointing=false"]),
        ({"gradient_checkpointing": 0}, ["train.offload_checkpoints=true"]),
    ],
)
def test_earlier_settings_that_are_not_possible_any_more(
    run: Run, earlier_run: EarlierRun, tmp_path: Path, stored: dict[str, Any], asked: list[str]
) -> None:
    earlier_run("train.max_steps=3", "train.lr_scheduler_type=constant")
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-3"):
        manifest = RunManifest.read(folder)
        assert manifest is not None
        config = {**manifest.config, "train": {**manifest.config["train"], **stored}}
        dataclasses.replace(manifest, config=config).write(folder)
    again = ("train.max_steps=4", "train.lr_scheduler_type=constant", "train.resume_from_checkpoint=true")
    assert run(*again, *asked).num_steps == 4


def test_a_run_that_is_not_planned_stores_what_was_asked(run: Run, tmp_path: Path) -> None:
    run("train.max_steps=1")
    manifest = RunManifest.read(tmp_path / "run")
    assert manifest is not None
    assert manifest.config["model"]["quantize"] == "none"
    assert manifest.config["train"]["gradient_checkpointing"] == "auto"
    assert "cuda_graphs" not in manifest.config["train"]


def test_a_run_whose_layers_cannot_be_fused_as_planned_does_not_begin(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("glmtune.training.packed_model.why_not_fused", lambda _: "a variant of LoRA is used")
    with pytest.raises(TrainingError, match=r"planned with fused layers, .*: a variant of LoRA is used"):
        run("train.max_steps=1")
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_offloading_takes_fused_layers_everywhere(run: Run) -> None:
    with pytest.raises(
        ConfigError, match=r"offload_checkpoints=true is not possible: it requires fused layers; here, lora\.use_dora"
    ):
        run("lora.use_dora=true", "train.offload_checkpoints=true")


@pytest.mark.parametrize(
    "setting",
    [
        "lora.modules_to_save=[word_embeddings]",
        "lora.target_modules=[query_key_value, word_embeddings]",
        r"lora.target_modules='.*\.(word_embeddings|dense)'",
    ],
)
def test_an_embedding_on_the_host_is_not_trained_silently(run: Run, setting: str) -> None:
    """It has no parameters, so that PEFT would find nothing to train in it and say nothing."""
    with pytest.raises(ConfigError, match=r"model\.offload_embedding=true is not possible"):
        run(setting, "model.offload_embedding=true")
