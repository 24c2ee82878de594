"""Prints a plan: the memory terms, the settings and the estimated time."""

from rich.console import Console
from rich.table import Table

from glmtune.language import localise
from glmtune.loading.devices import GIB
from glmtune.planning.planned import PlannedRun
from glmtune.planning.settings import spell


def print_plan(planned: PlannedRun, console: Console) -> None:
    """Prints a plan.

    Args:
        planned: The planned run.
        console: Where to print.
    """
    console.print(_memory_table(planned))
    if not planned.fits:
        return
    step = planned.chosen.step
    console.print(
        f"largest pass: {step.largest.num_tokens:,} tokens, {step.largest.num_labels:,} of them learnt; "
        f"{step.num_passes:.3g} passes per step",
        highlight=False,
    )
    seconds = planned.num_steps * planned.chosen.seconds_per_step
    console.print(f"expected: {planned.num_steps:,} steps, {_duration(seconds)} on {planned.device}", highlight=False)
    console.print(f"settings: {' '.join(spell(planned.chosen))}", highlight=False, soft_wrap=True)
    console.print("(leave these out to let train choose by the card that it finds)")
    if planned.free_bytes is None:
        console.print("no GPU here to compare with; --gpu-gib N plans for a card of N GiB")
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
    if planned.free_bytes is not None:
        table.add_row(localise("free"), f"{planned.free_bytes / GIB:.2f}")
    return table


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{max(seconds, 1):.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
