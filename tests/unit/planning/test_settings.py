"""Without these, a plan could override what the user decided, or print settings that are not its own."""

from collections.abc import Callable
from typing import Any

import pytest

from glmtune.adapters.run_folder import RunManifest
from glmtune.config import RunConfig
from glmtune.data.run_data import load_run_data
from glmtune.loading.bases import load_tokenizer
from glmtune.planning.device import KnownDevice
from glmtune.planning.plan import plan_run
from glmtune.planning.planned import PlannedRun
from glmtune.planning.settings import as_before, spell

Configure = Callable[..., RunConfig]
Plan = Callable[..., PlannedRun]
MakeCard = Callable[..., KnownDevice]


def test_the_settings_printed_are_the_settings_planned(plan: Plan) -> None:
    for gib in (6, 7, 12, 16, 40):
        planned = plan(gib=gib)
        again = plan(*spell(planned.chosen), gib=gib)
        assert again.chosen == planned.chosen


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
    plan: Plan, configure: Configure, card: MakeCard, override: str, expected: dict[str, Any]
) -> None:
    chosen = plan(override, gib=40).chosen.settings
    assert {name: getattr(chosen, name) for name in expected} == expected
    if "graphs" not in override:  # which the CPU has none of
        config = configure(override)
        data = load_run_data(config, load_tokenizer(config.model.path or ""), 0)
        settings = plan_run(config, data.train, card(kind="cpu")).settings
        assert {name: getattr(settings, name) for name in expected} == expected


def test_earlier_settings_fill_in_what_is_left_open(configure: Configure) -> None:
    settings = {"model": {"quantize": "nf4"}, "train": {"gradient_checkpointing": 5, "cuda_graphs": None}}
    before = RunManifest(None, config=settings)
    config = as_before(configure("train.max_tokens_per_device=77"), before)
    assert config.model.quantize == "nf4"
    assert config.train["gradient_checkpointing"] == 5
    assert config.train["max_tokens_per_device"] == 77
    assert config.train.get("cuda_graphs") is None
    assert as_before(configure("model.quantize=int8"), before).model.quantize == "int8"
    assert as_before(configure(), RunManifest(None)).model.quantize == "none"  # runs of earlier versions knew no other
