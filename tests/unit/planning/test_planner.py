"""Without these, a run could be planned slower or less exact than its card allows."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from glmtune.loading.devices import GIB
from glmtune.loading.shape import BaseShape
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.planning.memory import MemorySettings, Pass, StepShape
from glmtune.planning.planner import Planner
from glmtune.planning.settings import in_format, possible_choices
from glmtune.planning.shape import AdapterShape
from glmtune.planning.speed import DeviceSpeed

CHATGLM3_6B = ChatGLMConfig(multi_query_attention=True, multi_query_group_num=2, add_qkv_bias=True)
QKV = AdapterShape(1_949_696, first_layer=0, ranks=8, is_on_last_projection=False, has_dropout=True)
FREEDOM = possible_choices(
    formats=("none", "int8", "nf4"),
    num_layers=28,
    is_fused=True,
    is_tied=False,
    can_graph=True,
    pass_limits=(2048, 1024, 512),
)


def size_step(max_tokens: int, uses_graphs: bool) -> StepShape:
    """A step of 4,096 tokens, a third of them learnt."""
    return StepShape(max_tokens, Pass(max_tokens, max_tokens // 3, 40), 4096 / max_tokens, max_tokens, max_tokens / 3)


@pytest.fixture(scope="module")
def planner() -> Planner:
    with torch.device("meta"):
        base = BaseShape.of(ChatGLMForConditionalGeneration(CHATGLM3_6B), torch.bfloat16)
    return Planner(base, QKV, DeviceSpeed.assumed(50), size_step)


def test_with_much_memory_all_is_plain(planner: Planner) -> None:
    plan = planner.choose(FREEDOM, 80 * GIB)
    assert plan is not None
    assert dataclasses.replace(plan.settings, uses_graphs=False) == MemorySettings()
    assert plan.step.max_tokens == 2048


@pytest.mark.parametrize("speed", [DeviceSpeed(1e15, 4e12, 2e-6), DeviceSpeed(4e13, 4e11, 2e-5)])
def test_a_step_is_split_only_where_memory_asks_for_it(speed: DeviceSpeed) -> None:
    with torch.device("meta"):
        base = BaseShape.of(ChatGLMForConditionalGeneration(CHATGLM3_6B), torch.bfloat16)
    split = [Planner(base, QKV, speed, size_step).estimate(MemorySettings(), limit) for limit in (8192, 4096, 2048)]
    assert [plan.step.num_passes for plan in split] == [0.5, 1, 2]
    seconds = [plan.seconds_per_step for plan in split]
    assert seconds == sorted(seconds)
    assert seconds[2] > 1.01 * seconds[1]


def test_graphs_take_no_memory_where_no_pass_would_be_recorded(planner: Planner) -> None:
    chosen = planner.choose({**FREEDOM, "max_tokens": (4096,)}, 80 * GIB)
    assert chosen is not None
    assert not chosen.settings.uses_graphs


def test_with_no_memory_nothing_fits(planner: Planner) -> None:
    assert planner.choose(FREEDOM, 2 * GIB) is None
    smallest = planner.smallest(FREEDOM)
    assert smallest.settings.quantize == "nf4"
    assert smallest.settings.offloads_embedding
    assert smallest.step.max_tokens == 512
    assert 3.5 * GIB < smallest.memory.needed < 5 * GIB


@pytest.mark.parametrize("quantize", ["nf4", "int8", "none"])
def test_more_memory_never_means_a_slower_run_in_the_same_format(planner: Planner, quantize: Any) -> None:
    """But for the 1 % by which each departure from the plainest settings must pay."""
    space = in_format(FREEDOM, quantize)
    sizes = (5, 5.5, 6, 8, 10, 12, 13, 14, 15, 16, 20, 24, 40)
    plans = [plan for gib in sizes if (plan := planner.choose(space, gib * GIB))]
    seconds = [plan.seconds_per_step for plan in plans]
    assert len(seconds) > 4
    assert all(after <= 1.03 * before for before, after in itertools.pairwise(seconds))
    assert seconds[-1] < 0.9 * seconds[0]


def test_the_most_exact_format_that_fits_is_taken(planner: Planner) -> None:
    formats = []
    for gib in (40, 16, 11, 6):
        plan = planner.choose(FREEDOM, gib * GIB)
        assert plan is not None
        assert plan.memory.needed <= gib * GIB
        formats.append(plan.settings.quantize)
    assert formats == ["none", "none", "int8", "nf4"]


def test_a_less_exact_format_is_taken_only_where_nothing_else_fits(planner: Planner) -> None:
    space = {**FREEDOM, "max_tokens": (512,)}
    for gib in (6.6, 7.0, 8.0, 12.0, 13.0, 14.0, 24.0):
        plan = planner.choose(space, gib * GIB)
        assert plan is not None
        before = space["quantize"][: list(space["quantize"]).index(plan.settings.quantize)]
        assert all(planner.choose(in_format(space, quantize), gib * GIB) is None for quantize in before)


def test_a_much_faster_format_is_suggested(planner: Planner) -> None:
    """7 GiB hold this base in 8 bits with most layers checkpointed, in 4 bits with none; 24 GiB hold it as it is."""
    space = {**FREEDOM, "max_tokens": (512,)}
    tight, roomy = (planner.choose(space, gib * GIB) for gib in (7, 24))
    assert tight is not None
    assert roomy is not None
    suggested = planner.faster_format(tight, space, 7 * GIB)
    assert suggested is not None
    assert tight.settings.quantize == "int8"
    assert suggested.setting == "model.quantize=nf4"
    assert suggested.slowdown <= -0.2
    assert planner.faster_format(roomy, space, 24 * GIB) is None


@pytest.mark.parametrize(
    ("decided", "expected"),
    [
        ({"quantize": ("int8",)}, {"quantize": "int8"}),
        ({"num_checkpointed": (7,)}, {"num_checkpointed": 7}),
        ({"offloads_embedding": (True,)}, {"offloads_embedding": True}),
        ({"uses_graphs": (False,)}, {"uses_graphs": False}),
        ({"offloads_checkpoints": (True,), "uses_graphs": (False,)}, {"offloads_checkpoints": True}),
    ],
)
def test_what_the_user_decided_stays(planner: Planner, decided: dict[str, Any], expected: dict[str, Any]) -> None:
    plan = planner.choose({**FREEDOM, **decided}, 80 * GIB)
    assert plan is not None
    assert {name: getattr(plan.settings, name) for name in expected} == expected


def test_as_few_layers_as_fit_are_checkpointed(planner: Planner) -> None:
    space = {
        **FREEDOM,
        "quantize": ("none",),
        "offloads_embedding": (False,),
        "uses_graphs": (False,),
        "max_tokens": (2048,),
    }
    plan = planner.choose(space, 15.5 * GIB)
    assert plan is not None
    number = plan.settings.num_checkpointed
    assert 0 < number < 28
    fewer = dataclasses.replace(plan.settings, num_checkpointed=number - 1)
    assert planner.estimate(fewer, 2048).memory.needed > 15.5 * GIB >= plan.memory.needed


def test_time_is_that_of_the_products(planner: Planner) -> None:
    """By hand: 4,096 tokens through 5.7 billion weights, forward and back, at 50 TFLOP/s: about 1.9 s."""
    plan = planner.estimate(MemorySettings(), 2048)
    assert plan.seconds_per_step == pytest.approx(4 * 4096 * 5.71e9 / 50e12, rel=0.25)


def test_what_takes_longer(planner: Planner) -> None:
    plain = planner.estimate(MemorySettings(), 2048).seconds_per_step
    for changed in (
        {"num_checkpointed": 28},
        {"quantize": "nf4"},
        {"offloads_embedding": True},
        {"num_checkpointed": 28, "offloads_checkpoints": True},
    ):
        assert planner.estimate(MemorySettings(**changed), 2048).seconds_per_step > plain
    assert planner.estimate(MemorySettings(quantize="fp8"), 2048).seconds_per_step < plain
    again = planner.estimate(MemorySettings(num_checkpointed=28), 2048).seconds_per_step
    assert 1.2 * plain < again < 1.4 * plain  # the layers' products once more, but for the last


def test_small_passes_wait_for_the_host() -> None:
    with torch.device("meta"):
        base = BaseShape.of(ChatGLMForConditionalGeneration(CHATGLM3_6B), torch.bfloat16)
    planner = Planner(base, QKV, DeviceSpeed(700e12, 3e12, 1e-5), size_step)
    eager, graphs = (planner.estimate(MemorySettings(uses_graphs=uses), 64).seconds_per_step for uses in (False, True))
    assert eager > 2 * graphs


def test_the_cheapest_changes(planner: Planner) -> None:
    plan = planner.estimate(MemorySettings(uses_graphs=True), 2048)
    changes = planner.cheapest_changes(plan, FREEDOM)
    assert len(changes) == 3
    assert [change.slowdown for change in changes] == sorted(change.slowdown for change in changes)
    everything = planner.cheapest_changes(plan, FREEDOM, count=10)
    assert {change.setting for change in everything} == {
        "train.cuda_graphs=false",
        "model.offload_embedding=true",
        "train.max_tokens_per_device=1024",
        "train.gradient_checkpointing=true",
        "model.quantize=int8",
        "model.quantize=nf4",
    }
    saved = {change.setting: change.saved_bytes for change in everything}
    assert saved["model.quantize=nf4"] > saved["model.quantize=int8"] > saved["model.offload_embedding=true"]
    assert saved["model.offload_embedding=true"] == pytest.approx(533e6, rel=0.05)
    assert "GiB less" in str(everything[0])


def test_checkpoints_that_are_there_may_go_to_the_host(planner: Planner) -> None:
    plan = planner.estimate(MemorySettings(quantize="nf4", num_checkpointed=28, offloads_embedding=True), 2048)
    changes = {change.setting: change for change in planner.cheapest_changes(plan, FREEDOM, count=10)}
    assert (
        changes["train.offload_checkpoints=true train.cuda_graphs=false"].saved_bytes > 25 * 2048 * 8192
    )  # all but the one at work and its input
    assert "train.gradient_checkpointing=true" not in changes
