"""Without these, `glmtune plan` could promise what a card cannot hold, or not say what would fit."""

from collections.abc import Callable

import pytest

from glmtune.errors import AdapterError, ConfigError, TrainingError
from glmtune.planning import plan as plan_module
from glmtune.planning import planned as planned_module
from glmtune.planning.planned import PlannedRun

Plan = Callable[..., PlannedRun]


def test_a_card_holds_the_base_as_exactly_as_it_has_room_for(plan: Plan) -> None:
    formats = {gib: plan(gib=gib).chosen.settings.quantize for gib in (6, 12, 16, 24)}
    assert formats == {6: "nf4", 12: "int8", 16: "none", 24: "none"}
    assert all(plan(gib=gib).fits for gib in (6, 12, 16, 24))
    assert plan(gib=16).chosen.settings.num_checkpointed == 0


def test_a_card_that_cannot(plan: Plan) -> None:
    planned = plan(gib=4)
    assert not planned.fits
    with pytest.raises(TrainingError, match=r"needs at least 3\.\d GiB, and 3\.4 GiB are free.*smallest card.*5 GiB"):
        planned.check()


def test_what_would_fit_instead_of_what_was_asked(plan: Plan) -> None:
    planned = plan("model.quantize=none", gib=8)
    with pytest.raises(TrainingError, match=r"These settings would fit: model\.quantize=int8") as caught:
        planned.check()
    settings = str(caught.value).partition("would fit: ")[2].partition("\n")[0].split()
    assert plan(*settings, gib=8).fits


def test_settings_that_contradict_each_other(plan: Plan) -> None:
    with pytest.raises(ConfigError, match=r"cuda_graphs=true cannot be used with train\.offload_checkpoints"):
        plan("train.cuda_graphs=true", "train.offload_checkpoints=true")
    with pytest.raises(ConfigError, match=r"offload_checkpoints=true is not possible"):
        plan("lora.use_dora=true", "train.offload_checkpoints=true")
    with pytest.raises(ConfigError, match=r"lora\.use_dora cannot be used with model\.quantize=nf4"):
        plan("lora.use_dora=true", "model.quantize=nf4")
    with pytest.raises(AdapterError, match="matches nothing"):
        plan("lora.target_modules=[q_proj]")


def test_what_cannot_be_quantised_is_not(plan: Plan) -> None:
    planned = plan("lora.use_dora=true", gib=8)
    assert planned.chosen.settings.quantize == "none"
    with pytest.raises(TrainingError, match=r"(?s)does not fit.*cannot be fused.*cannot be quantised: lora\.use_dora"):
        planned.check()


def test_what_else_there_is_to_know(plan: Plan) -> None:
    assert plan(gib=24).notes == plan(gib=40).notes
    assert "prefixes that samples have in common" in plan(gib=24).notes[0]
    assert "Hopper" in plan("model.quantize=fp8", gib=24).notes[0]
    assert "below the longest sample" in plan("train.max_tokens_per_device=9", gib=24).notes[0]
    assert plan("train.max_tokens_per_device=100", gib=80).chosen.step.largest.num_tokens <= 192


def test_pissa_is_planned_without_weights(plan: Plan) -> None:
    assert plan("lora.init_lora_weights=pissa", gib=24).fits


def test_without_bitsandbytes_nothing_is_quantised(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "has_bitsandbytes", lambda: False)
    monkeypatch.setattr(planned_module, "has_bitsandbytes", lambda: False)
    planned = plan(gib=8)
    assert planned.chosen.settings.quantize == "none"
    with pytest.raises(TrainingError, match=r"With bitsandbytes \(pip install .*would fit: model\.quantize=int8"):
        planned.check()
    assert plan("model.quantize=nf4", gib=8).fits  # a sum takes no package


def test_as_many_steps_are_announced_as_the_run_will_take(plan: Plan) -> None:
    assert plan("train.num_train_epochs=2").num_steps == 2 * 3  # 24 samples, 8 a step
    assert plan("train.max_steps=70").num_steps == 70
    assert plan(gib=24).chosen.seconds_per_step > 0


@pytest.mark.parametrize("optim", ["paged_adamw_8bit", "adafactor"])
def test_graphs_take_torchs_own_optimisers(plan: Plan, optim: str) -> None:
    assert plan("train.cuda_graphs=true", gib=40).chosen.settings.uses_graphs
    with pytest.raises(ConfigError, match=r"cuda_graphs=true is not possible"):
        plan("train.cuda_graphs=true", f"train.optim={optim}", gib=40)
    assert plan("model.dtype=float32", gib=80).chosen.settings.uses_graphs is False


def test_what_the_command_cannot_plan_is_said(plan: Plan) -> None:
    assert "train.torch_compile compiles them" in plan("train.torch_compile=true", gib=24).notes[0]
