"""Runs of the published shape, planned for cards that are not here."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from glmtune.adapters.run_folder import RunManifest
from glmtune.config import RunConfig, load_config
from glmtune.data.run_data import RunData, load_run_data
from glmtune.models.chatglm import ChatGLMConfig
from glmtune.planning.card import plan_for_card
from glmtune.planning.device import KnownDevice
from glmtune.planning.plan import plan_run
from glmtune.planning.planned import PlannedRun
from glmtune.planning.resume import EarlierRun
from glmtune.planning.speed import DeviceSpeed
from glmtune.planning.start import Start, read_start
from settings import changed

Configure = Callable[..., RunConfig]


@pytest.fixture
def configure(tiny_base: Path, data_file: Path, tmp_path: Path) -> Configure:
    """A run of ChatGLM3-6B's shape: there are no weights in its folder, and none are needed."""
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_base / name).read_bytes())
    ChatGLMConfig(multi_query_attention=True, multi_query_group_num=2, add_qkv_bias=True).save_pretrained(folder)

    def configure(*overrides: str) -> RunConfig:
        decided = ["prompt.template=chatglm3", "lora.target_modules=[query_key_value]"]
        return load_config(None, changed([f"model.path={folder}", f"data.path={data_file}", *decided], *overrides))

    return configure


@pytest.fixture
def begin(configure: Configure) -> Callable[..., tuple[Start, RunData]]:
    def begin(*overrides: str) -> tuple[Start, RunData]:
        start = read_start(configure(*overrides), may_overwrite=True)
        return start, load_run_data(start.config.data, start.config.prompt, start.tokenizer, 0)

    return begin


@pytest.fixture
def plan(configure: Configure) -> Callable[..., PlannedRun]:
    def plan(*overrides: str, gib: float | None = None) -> PlannedRun:
        _, planned, _ = plan_for_card(configure(*overrides), gib=gib)
        return planned

    return plan


def make_card(gib: float | None = None, kind: str | None = None) -> KnownDevice:
    """A device with so much free memory; none that is here, unless a kind is named."""
    device = None if kind is None else torch.device(kind)
    free = None if gib is None else gib * 2**30
    return KnownDevice(device, torch.bfloat16, free, DeviceSpeed.assumed())


@pytest.fixture
def card() -> Callable[..., KnownDevice]:
    return make_card


@pytest.fixture
def decide(begin: Callable[..., tuple[Start, RunData]]) -> Callable[..., PlannedRun]:
    """What is decided for a card with so much free memory."""

    def decide(*overrides: str, gib: float, before: RunManifest | None = None) -> PlannedRun:
        start, data = begin(*overrides)
        earlier = None if before is None else EarlierRun(Path("checkpoint-1"), before)
        planned = plan_run(replace(start, earlier=earlier), data.train, make_card(gib))
        planned.check()
        return planned

    return decide
