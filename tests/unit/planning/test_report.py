"""Without these, the printed plan could leave out a part of the memory that it counts."""

import re
from collections.abc import Callable

import pytest
from rich.console import Console

from glmtune.planning.planned import PlannedRun
from glmtune.planning.report import print_plan

Plan = Callable[..., PlannedRun]


def test_the_plan_says_what_takes_memory_how_many_steps_and_in_which_format(plan: Plan) -> None:
    console = Console(record=True, width=100)
    print_plan(plan(gib=8), console)
    text = console.export_text()
    for word in ("weights", "adapters", "optimiser", "activations", "logits", "overhead", "reserve", "peak", "needed"):
        assert word in text
    assert "expected: 9 steps" in text
    assert "model.quantize=int8" in text


def test_the_table_adds_up_to_what_is_needed(plan: Plan) -> None:
    """Nothing counts that is not shown."""
    console = Console(record=True, width=100)
    print_plan(plan("train.cuda_graphs=true", gib=24), console)
    lines = re.findall(r"(\w[\w ]*?) +[│|] +([\d.]+) ", console.export_text())
    gib = {name.split()[-1]: float(value) for name, value in lines}
    terms = ("weights", "adapters", "optimiser", "activations", "logits", "overhead")
    assert sum(gib[term] for term in terms) == pytest.approx(gib["peak"], abs=0.04)
    assert gib["peak"] + gib["graphs"] + gib["reserve"] == pytest.approx(gib["needed"], abs=0.02)
    assert min(gib[term] for term in ("weights", "activations", "graphs", "reserve")) > 0


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [((0.0023, 5.1), "less than a minute"), ((18.2, 39.5), "18 to 40 s"), ((80, 320), "1.3 to 5.4 min")],
)
def test_a_time_too_short_to_be_estimated_is_no_range(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], shown: str
) -> None:
    monkeypatch.setattr(PlannedRun, "seconds", seconds)
    console = Console(record=True, width=100)
    print_plan(plan(gib=8), console)
    assert f"expected: 9 steps, {shown} on" in console.export_text()
