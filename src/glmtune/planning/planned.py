"""A planned run: what has been decided before anything is loaded."""

import math
from dataclasses import dataclass

from glmtune.config import RunConfig
from glmtune.errors import TrainingError
from glmtune.loading.devices import GIB
from glmtune.loading.formats import FORMATS, has_bitsandbytes
from glmtune.loading.quantized_linear import HOW_TO_INSTALL
from glmtune.planning.memory import MemorySettings
from glmtune.planning.planner import Change, Freedom, Plan, Planner
from glmtune.planning.settings import spell

# What a process takes of a card before it has put anything there: CUDA's own memory.
CONTEXT_GIB = 0.6


@dataclass(frozen=True)
class PlannedRun:
    """What a run will take, and the settings that it will go by. Nothing that comes after it decides again.

    Attributes:
        config: The configuration with what was decided filled in; on the CPU, where there is little to decide, what
            was left open stays open for a GPU that the run may be resumed on.
        chosen: The plan; where none fits, the one that needs least.
        free_bytes: What the device has for it; None where that is not known, or not asked.
        num_steps: Optimiser steps of the whole run.
        shares_prefix: Whether what samples begin with alike is computed once.
        why_not_fused: Why layers run one operation at a time; None where they are fused.
        planner: What made the plan.
        whole_freedom: What there would be if the user had decided nothing.
        device: What the time is for, in words.
        longest: Tokens of the longest sample.
        notes: What else the user should know, a line each.
    """

    config: RunConfig
    chosen: Plan
    free_bytes: float | None
    num_steps: int
    shares_prefix: bool
    why_not_fused: str | None
    planner: Planner
    whole_freedom: Freedom
    device: str
    longest: int
    notes: tuple[str, ...] = ()

    @property
    def settings(self) -> MemorySettings:
        """The chosen settings."""
        return self.chosen.settings

    @property
    def max_tokens(self) -> int:
        """Most tokens of a forward and backward pass."""
        return self.chosen.step.max_tokens

    @property
    def fits(self) -> bool:
        """Whether the chosen plan fits."""
        return self.free_bytes is None or self.chosen.memory.needed <= self.free_bytes

    def summary(self) -> str:
        """What is chosen and needed, in one line."""
        settings, gib = self.settings, self.chosen.memory.needed / GIB
        free = "" if self.free_bytes is None else f" / {self.free_bytes / GIB:.1f}"
        parts = [
            f"base {settings.quantize}" if settings.quantize != "none" else "base not quantised",
            f"passes of at most {self.max_tokens:,} tokens",
            f"checkpointed layers: {settings.num_checkpointed}"
            + (" (in host memory)" if settings.offloads_checkpoints else ""),
        ]
        if settings.offloads_embedding:
            parts.append("embedding in host memory")
        parts.append("CUDA graphs" if settings.uses_graphs else "no CUDA graphs")
        return f"memory plan: {gib:.1f}{free} GiB; {', '.join(parts)}"

    def check(self) -> None:
        """Makes sure that it fits.

        Raises:
            TrainingError: It does not; the message says what would.
        """
        if self.fits or self.free_bytes is None:
            return
        raise TrainingError(
            f"this run does not fit: it needs {self.chosen.memory.needed / GIB:.1f} GiB at least, and "
            f"{max(self.free_bytes, 0) / GIB:.1f} GiB are free. {self.what_would_fit(self.free_bytes)}"
            + "".join(f"\n{note}" for note in self.notes)
        )

    def what_would_fit(self, free_bytes: float) -> str:
        """Which settings would fit in so much memory, as a sentence; else how large a card would have to be."""
        fitting = self.planner.choose(self.whole_freedom, free_bytes)
        if fitting is not None:
            settings = " ".join(spell(fitting))
            if FORMATS[fitting.settings.quantize].takes_bitsandbytes and not has_bitsandbytes():
                return f"With bitsandbytes ({HOW_TO_INSTALL}) these settings would fit: {settings}"
            return f"These settings would fit: {settings}"
        smallest = self.planner.smallest(self.whole_freedom)
        card = math.ceil(smallest.memory.needed / GIB + CONTEXT_GIB)
        return (
            f"The smallest card that could do it has {card} GiB ({' '.join(spell(smallest))}). "
            f"Shorter samples need less: data.max_length, now up to {self.longest} tokens"
        )

    def cheapest_changes(self, *, keeps_format: bool) -> list[Change]:
        """The single changes that save memory at the least loss of speed.

        Args:
            keeps_format: Whether the base must stay in the format that it is in.
        """
        freedom = self.whole_freedom
        if keeps_format:
            freedom = freedom.with_format(self.settings.quantize)
        return self.planner.cheapest_changes(self.chosen, freedom)
