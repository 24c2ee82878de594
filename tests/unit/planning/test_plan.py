"""Without these, a run could be planned for memory that it does not have, or not go by its plan."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from glmtune.adapters.run_folder import RunManifest
from glmtune.data.packing import PackingCollator
from glmtune.data.run_data import RunData
from glmtune.errors import ConfigError, TrainingError
from glmtune.planning.device import KnownDevice
from glmtune.planning.memory import MemorySettings
from glmtune.planning.plan import plan_run
from glmtune.planning.planned import PlannedRun
from glmtune.planning.settings import chosen_settings
from glmtune.planning.start import Start

Begin = Callable[..., tuple[Start, RunData]]
Plan = Callable[..., PlannedRun]
MakeCard = Callable[..., KnownDevice]


@pytest.mark.parametrize("overrides", [[], ["lora.lora_dropout=0"], ["train.max_tokens_per_device=70"]])
def test_no_pass_is_larger_than_planned(begin: Begin, card: MakeCard, overrides: list[str]) -> None:
    start, data = begin(*overrides, "train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=2")
    planned = plan_run(start, data.train, card())
    chosen = planned.chosen
    collator = PackingCollator(
        max_tokens=chosen.step.max_tokens,
        shares_prefix="lora.lora_dropout=0" in overrides,
        pads_to_buckets=chosen.settings.uses_graphs,
    )
    for first in range(0, len(data.train), 4):
        for packed in collator([data.train[index] for index in range(first, first + 4)])["micro_batches"]:
            assert len(packed.input_ids) <= chosen.step.largest.num_tokens


def test_labels_of_the_largest_pass(begin: Begin, card: MakeCard, data_file: Path) -> None:
    """Samples that are learnt in full may come together, however rare they are."""
    rows = [{"instruction": "问" * 40, "output": "答"}] * 200 + [{"instruction": "问", "output": "答" * 40}] * 4
    data_file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    start, data = begin("train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=2")
    assert data.train.num_labels.tolist() == [
        sum(label != -100 for label in data.train[index]["labels"][1:]) for index in range(204)
    ]
    planned = plan_run(start, data.train, card())
    longest = sorted(data.train.num_labels)[-2:]
    assert planned.chosen.step.largest.num_labels >= sum(longest)


@pytest.mark.parametrize("limit", ["4000", "null"])
def test_samples_longer_than_the_bases_context_are_refused(
    begin: Begin, card: MakeCard, data_file: Path, limit: str
) -> None:
    """Positions that the base was never trained on would be learnt badly, and nobody would know why."""
    data_file.write_text(json.dumps([{"instruction": "问" * 2100, "output": "答"}], ensure_ascii=False), "utf-8")
    start, data = begin(f"data.max_length={limit}")
    with pytest.raises(
        ConfigError, match=r"longest sample has 2[12]\d\d tokens.* to read 2048 .*data\.max_length=2048"
    ):
        plan_run(start, data.train, card())


def test_a_limit_beyond_the_context_that_no_sample_reaches_is_told(begin: Begin, card: MakeCard) -> None:
    start, data = begin("data.max_length=4000")
    notes = plan_run(start, data.train, card()).notes
    assert [note for note in notes if note.startswith("data.max_length=4000 is more than the 2048 tokens")]


def test_a_run_that_is_not_planned_is_plain(begin: Begin, card: MakeCard) -> None:
    start, data = begin()
    planned = plan_run(start, data.train, card(kind="cpu"))
    assert (planned.settings, planned.max_tokens) == (MemorySettings(), 4 * max(data.train.lengths))
    filled = start.config.with_settings(chosen_settings(planned.chosen))
    assert plan_run(replace(start, config=filled), data.train, card(kind="cpu")).chosen == planned.chosen
    assert filled.command() == start.config.command()
    with pytest.raises(ConfigError, match=r"cuda_graphs=true is not possible: it requires fused layers"):
        plan_run(begin("train.cuda_graphs=true")[0], data.train, card(kind="cpu"))


def test_a_run_on_a_gpu_goes_by_its_plan(decide: Plan) -> None:
    assert decide(gib=23.4).settings.quantize == "none"
    small = decide(gib=5.4)
    assert small.settings.quantize == "nf4"
    assert small.fits
    assert small.config.model.quantize == "nf4"
    assert small.config.train["max_tokens_per_device"] == small.max_tokens
    with pytest.raises(TrainingError, match="does not fit"):
        decide(gib=2)


def test_a_resumed_run_on_a_gpu_keeps_its_plan_while_that_fits(decide: Plan) -> None:
    first = decide("model.quantize=nf4", "train.gradient_checkpointing=9", gib=23.4)
    before = RunManifest(None, config=first.config.model_dump(mode="json"))
    assert decide("model.quantize=nf4", gib=23.4, before=before).settings == first.settings
    tight = decide("model.quantize=nf4", gib=4.5, before=before)
    assert tight.settings != first.settings
    assert tight.settings.quantize == "nf4"
    with pytest.raises(TrainingError, match="does not fit") as caught:
        decide("model.quantize=none", gib=8, before=before)
    assert "int8" not in str(caught.value)  # a resumed run cannot change its base
