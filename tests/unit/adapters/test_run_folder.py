"""Without these, a run could forget how it was trained, or the wrong checkpoint be taken for its newest."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from glmtune.adapters.run_folder import RunManifest, checkpoints, current_versions, find_adapter
from glmtune.errors import AdapterError, ModelError


def make_adapter(folder: Path, *, with_state: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    if with_state:
        (folder / "trainer_state.json").write_text("{}")
    return folder


def test_manifest_survives_writing(tmp_path: Path) -> None:
    manifest = RunManifest("/base", "tutorial", "你是甄嬛", "abc", {"lora": {"r": 8}}, current_versions())
    manifest.write(tmp_path)
    assert RunManifest.read(tmp_path) == manifest
    assert "你是甄嬛" in (tmp_path / "glmtune.json").read_text(encoding="utf-8")


def test_manifest_of_the_run_stands_for_its_checkpoints(tmp_path: Path) -> None:
    RunManifest(None, system="run").write(tmp_path)
    checkpoint = make_adapter(tmp_path / "checkpoint-5")
    assert RunManifest.read(checkpoint) == RunManifest(None, system="run")
    RunManifest(None, system="own").write(checkpoint)
    assert RunManifest.read(checkpoint) == RunManifest(None, system="own")
    assert RunManifest.read(make_adapter(tmp_path / "elsewhere")) is None


def test_runs_that_are_older_than_a_key_have_what_was_done_then() -> None:
    old = RunManifest(None, config={"data": {"max_length": 64}})
    assert [old.setting(f"data.{key}") for key in ("max_length", "join", "overlong", "loss_weight")] == [
        *(64, "\n", "cut", "token")
    ]
    assert old.setting("model.quantize") == "none"
    assert old.setting("train.cuda_graphs") is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"base_path": 1}'])
def test_damaged_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "glmtune.json").write_text(text)
    with pytest.raises(AdapterError, match=r"glmtune\.json is damaged"):
        RunManifest.read(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_path": 5}, "base_path: expected text or null; found 5"),
        ({"system": []}, r"system: expected text or null; found \[\]"),
        ({"config": "x"}, "config: expected settings by section; found 'x'"),
        ({"config": {"data": 1}}, "config: expected settings by section"),
        ({"config": {"train": {"cuda_graphs": "yes"}}}, "config: train.cuda_graphs: expected bool; found 'yes'"),
        ({"config": {"model": {"quantize": 8}}}, "config: model.quantize: expected str; found 8"),
        ({"config": {"data": {"path": 8}}}, "config: data.path: expected dict or list or str; found 8"),
        (
            {"config": {"train": {"gradient_checkpointing": []}}},
            r"config: train.gradient_checkpointing: expected bool or int or str; found \[\]",
        ),
        ({"base_fingerprint": None}, "base_fingerprint: expected text; found None"),
        ({"template": {}}, "unknown template"),
    ],
)
def test_manifest_with_values_of_the_wrong_type(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    RunManifest(None).write(tmp_path)
    file = tmp_path / "glmtune.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(AdapterError, match=rf"{file}.*{message}"):
        RunManifest.read(tmp_path)


def test_a_manifest_of_before_bases_had_fingerprints_can_be_read(tmp_path: Path) -> None:
    RunManifest("/base", system="x").write(tmp_path)
    file = tmp_path / "glmtune.json"
    values = json.loads(file.read_text())
    del values["base_fingerprint"], values["eval_fingerprint"]
    file.write_text(json.dumps(values))
    assert RunManifest.read(tmp_path) == RunManifest("/base", system="x")


def test_manifest_with_an_unknown_template(tmp_path: Path) -> None:
    RunManifest(None).write(tmp_path)
    values = json.loads((tmp_path / "glmtune.json").read_text())
    (tmp_path / "glmtune.json").write_text(json.dumps({**values, "template": "next"}))
    with pytest.raises(AdapterError, match="unknown template 'next'"):
        RunManifest.read(tmp_path)


def test_versions() -> None:
    assert {"glmtune", "torch", "transformers", "peft", "python"} <= current_versions().keys()


def test_checkpoints_in_order_and_only_complete_ones(tmp_path: Path) -> None:
    for step in (100, 20, 3):
        make_adapter(tmp_path / f"checkpoint-{step}", with_state=True)
    make_adapter(tmp_path / "checkpoint-300")  # cut off before its state was written
    make_adapter(tmp_path / "checkpoint-x", with_state=True)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]
    assert checkpoints(tmp_path / "none") == []


def test_find_adapter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    newest = make_adapter(run / "checkpoint-20", with_state=True)
    make_adapter(run / "checkpoint-3", with_state=True)
    with caplog.at_level(logging.WARNING):
        assert find_adapter(run) == newest
    assert "interrupted" in caplog.text
    assert "checkpoint-20" in caplog.text
    assert find_adapter(run / "checkpoint-3") == run / "checkpoint-3"
    make_adapter(run)
    assert find_adapter(str(run)) == run
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    assert find_adapter(base) is None
    assert find_adapter("owner/name") is None


def test_what_is_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ModelError, match=r"is not a run folder.*found: notes\.txt"):
        find_adapter(tmp_path)
    with pytest.raises(ModelError, match="is a file"):
        find_adapter(tmp_path / "notes.txt")
    with pytest.raises(ModelError, match="does not exist"):
        find_adapter(tmp_path / "none")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError, match="no adapter weights"):
        find_adapter(tmp_path)
