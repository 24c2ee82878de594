"""Without these, `glmtune plan --gpu` could take a card for another one, or promise a time that no run on it takes."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from glmtune.errors import ConfigError
from glmtune.loading.shape import BaseShape
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.planning.card import plan_for_card
from glmtune.planning.cards import CARDS, cards_of, find_card
from glmtune.planning.memory import MemorySettings, Pass
from glmtune.planning.planned import PlannedRun
from glmtune.planning.planner import Planner, StepShape
from glmtune.planning.report import print_plan
from glmtune.planning.shape import AdapterShape
from glmtune.planning.speed import seconds_within

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
PlanFor = Callable[..., PlannedRun]


@pytest.fixture
def plan_for(configure: Callable[..., object]) -> PlanFor:
    def plan_for(*overrides: str, **asked: object) -> PlannedRun:
        _, planned, _ = plan_for_card(configure(*overrides), **asked)
        return planned

    return plan_for


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *((name, "RTX 4090") for name in ("4090", "RTX 4090", "rtx4090", "NVIDIA GeForce RTX 4090", "4090 24GB")),
        *((name, "A100 80GB") for name in ("A100-80G", "a100 80gb", "A100-SXM4-80GB", "NVIDIA A100-PCIE-80GB")),
        *((name, "H100 SXM") for name in ("h100", "NVIDIA H100 80GB HBM3", "H100-SXM5-80GB")),
        ("H100 PCIe", "H100 PCIe"),
        ("3060", "RTX 3060"),
        ("3060ti", "RTX 3060 Ti"),
        ("Tesla T4", "T4"),
        ("a6000", "RTX A6000"),
        ("6000 Ada", "RTX 6000 Ada"),
        ("V100-32G", "V100 32GB"),
    ],
)
def test_a_card_is_found_however_its_name_is_spelt(name: str, found: str) -> None:
    assert find_card(name).name == found


def test_every_card_is_found_by_its_own_name() -> None:
    assert [find_card(card.name) for card in CARDS] == list(CARDS)
    assert {card.source for card in CARDS} == {
        *("turing", "volta", "ga100", "ga102", "ada", "blackwell", "hopper", "clock")
    }


def test_unknown_names_lead_to_the_nearest_ones() -> None:
    with pytest.raises(ConfigError, match=r"--gpu 4090ti: no such card in the table; did you mean .*RTX 4090.*\?"):
        find_card("4090ti")
    with pytest.raises(ConfigError, match=r"known: RTX 2060, .*H200\. For another card: --gpu-gib"):
        find_card("Radeon VII")
    with pytest.raises(ConfigError, match="several sizes: V100 16GB, V100 32GB"):
        find_card("v100")
    assert find_card("v100", 32).name == "V100 32GB"


def test_a_size_stands_for_the_cards_that_have_it() -> None:
    assert {card.name for card in cards_of(80)} == {"A100 80GB", "A800 80GB", "H100 SXM", "H800 SXM", "H100 PCIe"}
    assert cards_of(80)[0].name.endswith("SXM")
    assert cards_of(16)[0].has_bf16
    assert cards_of(4) == cards_of(6)
    assert cards_of(500) == [find_card("H200")]


def test_an_80_gib_card_is_not_taken_for_one_of_50_tflops(plan_for: PlanFor, configure: Callable[..., object]) -> None:
    _, by_size, about = plan_for_card(configure(), gib=80)
    by_name = plan_for(gpu="H100")
    assert by_size.settings == by_name.settings
    assert by_size.settings.uses_graphs
    assert by_size.seconds[0] <= by_name.seconds[0] < by_name.seconds[1] < by_size.seconds[1]
    assert "settings as for H100 SXM" in about
    assert "A100 80GB" in about


def test_a_card_before_ampere_has_no_graphs_and_no_bfloat16(plan_for: PlanFor) -> None:
    with pytest.raises(ConfigError, match="cuda_graphs=true is not possible"):
        plan_for("train.cuda_graphs=true", gpu="T4")
    assert plan_for("train.cuda_graphs=true", gpu="L4").fits


def test_fp8_is_for_cards_that_have_it(plan_for: PlanFor) -> None:
    assert plan_for("model.quantize=fp8", gpu="H100").fits
    with pytest.raises(ConfigError, match="fp8 needs a Hopper or newer GPU; this is a RTX 4090"):
        plan_for("model.quantize=fp8", gpu="4090")


def _printed(planned: PlannedRun) -> str:
    console = Console(record=True, width=200)
    print_plan(planned, console)
    return console.export_text()


def test_the_plan_says_that_it_fits_and_how_long_it_takes(plan_for: PlanFor) -> None:
    text = _printed(plan_for(gpu="4090"))
    assert "it fits: " in text
    assert " of 24 GiB, 0.6 of them for CUDA itself" in text
    assert ", less than a minute on RTX 4090 (estimated); loading, evaluation and saving come on top" in text
    assert "it takes " in _printed(plan_for())


def _rows(file: str) -> list[dict[str, str]]:
    with (RESULTS / file).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _whole_runs() -> list[tuple[str, float, float, int, bool]]:
    """Card, tokens of a step, seconds of a step, steps, and graphs: runs of the plain recipe that were measured."""
    runs = []
    for row in _rows("train_throughput.csv"):
        if row["layout"] == "packed" and row["layers"] in ("fused", "graphs") and row["base"] == "bf16":
            seconds = float(row["step_ms_median"]) / 1000
            tokens = float(row["executed_tokens_per_s"]) * int(row["samples_per_step"]) / float(row["samples_per_s"])
            runs.append((row["gpu"], tokens, seconds, int(row["steps"]), row["layers"] == "graphs"))
    for row in _rows("devices.csv"):
        if row["devices"] == "1" and row["settings"] == "the plan's choice":
            tokens = 63.7 * int(row["samples_per_device"])
            seconds = tokens / float(row["tokens_per_s"])
            runs.append((row["gpu"], tokens, seconds, int(row["steps"]), "no CUDA graphs" not in row["plan"]))
    return runs


@pytest.mark.parametrize(("gpu", "tokens", "seconds", "steps", "graphs"), _whole_runs())
def test_the_range_holds_what_was_measured(gpu: str, tokens: float, seconds: float, steps: int, graphs: bool) -> None:
    card = find_card(gpu)
    with torch.device("meta"):
        shape = ChatGLMConfig(multi_query_attention=True, multi_query_group_num=2, add_qkv_bias=True)
        base = BaseShape.of(ChatGLMForConditionalGeneration(shape).to(torch.bfloat16), torch.bfloat16)
    step = StepShape(int(tokens), Pass(int(tokens), int(tokens / 3), 8), 1.0, tokens, tokens / 3)
    adapter = AdapterShape(1_949_696, 0, 8, False, True)
    planner = Planner(base, adapter, card.speed, lambda *_: step)
    settings = MemorySettings(uses_graphs=graphs)
    least, most = seconds_within([card.speed], lambda speed: steps * planner.seconds_per_step(settings, step, speed))
    assert least < steps * seconds < most
    assert most - 5 < 2 * least  # a range that holds everything says nothing
