"""Prints a plan: the memory terms, the settings and the estimated time."""

import math
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from glmtune.language import localise
from glmtune.language.plurals import count
from glmtune.loading.devices import GIB
from glmtune.planning.planned import CONTEXT_GIB, PlannedRun
from glmtune.planning.settings import spell


def print_plan(planned: PlannedRun, console: Console) -> None:
    """Prints a plan.

    Args:
        planned: The planned run.
        console: Where to print.
    """
    console.print(_memory_table(planned))
    if not planned.fits:  # the error that follows says so, and what would fit
        return
    console.print(_fit(planned), highlight=False, soft_wrap=True)
    step = planned.chosen.step
    console.print(
        f"largest pass: {step.largest.num_tokens:,} tokens, {step.largest.num_labels:,} of them learnt; "
        f"passes per step: {step.num_passes:.3g}",
        highlight=False,
    )
    expected = f"expected: {count(planned.num_steps, 'steps')}, {_span(*planned.seconds)} on {planned.known.name}"
    console.print(f"{expected}; loading, evaluation and saving come on top", highlight=False, soft_wrap=True)
    console.print(f"settings: {' '.join(spell(planned.chosen))}", highlight=False, soft_wrap=True)
    console.print("(leave these out to let train choose by the card that it finds)")
    for note in planned.notes:
        console.print(note, highlight=False, soft_wrap=True)


def _memory_table(planned: PlannedRun) -> Table:
    memory = planned.chosen.memory
    table = Table(title=localise("GPU memory"), title_justify="left")
    table.add_column(localise("term"))
    table.add_column("GiB", justify="right")
    rows = {
        localise("weights"): memory.weights,
        localise("adapters"): memory.adapters,
        localise("optimiser"): memory.optimizer,
        localise("activations"): memory.activations,
        "logits": memory.logits,
        localise("overhead"): memory.overhead,
    }
    for name, value in rows.items():
        table.add_row(name, f"{value / GIB:.2f}")
    table.add_section()
    table.add_row(localise("peak"), f"{memory.peak / GIB:.2f}")
    table.add_row("CUDA graphs", f"{memory.graphs / GIB:.2f}")
    table.add_row(localise("reserve"), f"{memory.reserve / GIB:.2f}")
    table.add_section()
    table.add_row(localise("needed"), f"{memory.needed / GIB:.2f}")
    if planned.known.free_bytes is not None:
        table.add_row(localise("free"), f"{planned.known.free_bytes / GIB:.2f}")
    return table


def _fit(planned: PlannedRun) -> str:
    """Says that the plan fits, and in how much memory."""
    needed = planned.chosen.memory.needed / GIB
    if planned.known.free_bytes is None:
        return f"it takes {needed:.1f} GiB of GPU memory"
    if planned.known.total_gib is None:
        return f"it fits: {needed:.1f} of the {planned.known.free_bytes / GIB:.1f} GiB that are free"
    needed += CONTEXT_GIB
    return f"it fits: {needed:.1f} of {planned.known.total_gib:g} GiB, {CONTEXT_GIB} of them for CUDA itself"


def _span(least_s: float, most_s: float) -> str:
    """A range of times in one unit, rounded outwards to two digits: `18 to 40 s`, `1.4 to 5.3 min`.

    Of what the device is hardly busy with, the host's work takes most of the time, and that is not estimated.
    """
    if least_s < 1 and most_s < 60:
        return "less than a minute"
    if most_s < 120:
        return f"{_rounded(least_s, math.floor)} to {_rounded(most_s, math.ceil)} s"
    if most_s < 7200:
        return f"{_rounded(least_s / 60, math.floor)} to {_rounded(most_s / 60, math.ceil)} min"
    return f"{_rounded(least_s / 3600, math.floor)} to {_rounded(most_s / 3600, math.ceil)} h"


def _rounded(number: float, towards: Callable[[float], int]) -> str:
    """A number above 0, rounded up or down to two digits."""
    scale = 10.0 ** (math.floor(math.log10(number)) - 1)
    return f"{towards(number / scale) * scale:.6g}"
