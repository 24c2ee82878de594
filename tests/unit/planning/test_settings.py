"""Without these, a plan could override what the user decided, or print settings that are not its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glmtune.adapters.run_folder import RunManifest
from glmtune.config import describe_keys, value_types
from glmtune.data.run_data import RunData
from glmtune.planning.device import KnownDevice
from glmtune.planning.memory import MemorySettings
from glmtune.planning.plan import plan_run
from glmtune.planning.planned import PlannedRun
from glmtune.planning.resume import EarlierRun
from glmtune.planning.settings import SETTINGS, spell
from glmtune.planning.start import Start

Begin = Callable[..., tuple[Start, RunData]]
Plan = Callable[..., PlannedRun]
MakeCard = Callable[..., KnownDevice]


def test_the_settings_printed_are_the_settings_planned(plan: Plan) -> None:
    for gib in (6, 7, 12, 16, 40):
        planned = plan(gib=gib)
        again = plan(*spell(planned.chosen), gib=gib)
        assert again.chosen == planned.chosen


def test_the_summary_names_what_was_chosen(plan: Plan) -> None:
    given = ("model.offload_embedding=true", "train.offload_checkpoints=true", "train.gradient_checkpointing=9")
    summary = plan(*given, gib=6).summary()
    settings = "base nf4, embedding in host memory, passes of at most 112 tokens, checkpointed layers: 9, "
    assert summary.startswith("memory plan: ")
    assert summary.partition("; ")[2] == settings + "their inputs in host memory, no CUDA graphs"


def test_every_setting_has_a_row_a_key_and_a_type_in_the_records_of_runs() -> None:
    """A field of `MemorySettings` without a row would never be chosen, a row without a key never given by the user."""
    assert sorted(each.name for each in SETTINGS) == sorted(["max_tokens", *MemorySettings.__dataclass_fields__])
    assert {each.key for each in SETTINGS} <= describe_keys().keys() & value_types().keys()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.quantize=nf4", {"quantize": "nf4"}),
        ("model.offload_embedding=true", {"offloads_embedding": True}),
        ("train.gradient_checkpointing=true", {"num_checkpointed": 28}),
        ("train.gradient_checkpointing=9", {"num_checkpointed": 9}),
        ("train.gradient_checkpointing=99", {"num_checkpointed": 28}),
        ("train.gradient_checkpointing=false", {"num_checkpointed": 0}),
        ("train.cuda_graphs=true", {"uses_graphs": True}),
        ("train.offload_checkpoints=true", {"offloads_checkpoints": True}),
    ],
)
def test_what_the_user_decided_stays(
    plan: Plan, begin: Begin, card: MakeCard, override: str, expected: dict[str, Any]
) -> None:
    chosen = plan(override, gib=40).chosen.settings
    assert {name: getattr(chosen, name) for name in expected} == expected
    if "graphs" not in override:  # which the CPU has none of
        start, data = begin(override)
        settings = plan_run(start, data.train, card(kind="cpu")).settings
        assert {name: getattr(settings, name) for name in expected} == expected


def test_earlier_settings_fill_in_what_is_left_open(begin: Begin, card: MakeCard) -> None:
    settings = {"model": {"quantize": "nf4"}, "train": {"gradient_checkpointing": 5, "cuda_graphs": None}}
    earlier = EarlierRun(Path("checkpoint-1"), RunManifest(None, config=settings))
    start, data = begin("train.max_tokens_per_device=77")
    config = plan_run(replace(start, earlier=earlier), data.train, card(kind="cpu")).config
    assert config.model.quantize == "nf4"
    assert config.train["gradient_checkpointing"] == 5
    assert config.train["max_tokens_per_device"] == 77
    assert config.train.get("cuda_graphs") is None
    start, data = begin("model.quantize=int8")
    assert plan_run(replace(start, earlier=earlier), data.train, card(kind="cpu")).config.model.quantize == "int8"
