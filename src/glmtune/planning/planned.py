"""A planned run: the settings chosen before anything is loaded."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.adapters.run_folder import RunManifest, current_versions
from glmtune.config import RunConfig, without_secrets
from glmtune.data.run_data import RunData
from glmtune.errors import TrainingError
from glmtune.loading.devices import GIB
from glmtune.loading.formats import FORMATS, has_bitsandbytes
from glmtune.loading.quantized_linear import HOW_TO_INSTALL
from glmtune.planning.device import KnownDevice
from glmtune.planning.memory import MemorySettings
from glmtune.planning.planner import Planner
from glmtune.planning.resume import EarlierRun
from glmtune.planning.settings import Candidate, Choices, in_format, say_settings, spell
from glmtune.planning.speed import DeviceSpeed, seconds_within

# Memory of the CUDA context of a process.
CONTEXT_GIB = 0.6


@dataclass(frozen=True)
class PlannedRun:
    """The settings of a run and its estimated memory and time. They are final: nothing is chosen again later.

    Attributes:
        config: The configuration with the chosen settings filled in; on the CPU, where there is little to choose, open
            settings stay open for a GPU that the run may be resumed on.
        chosen: The plan; if none fits, the one that needs least memory.
        known: The device that it is planned for.
        num_steps: Optimiser steps of the whole run.
        shares_prefix: Whether a prefix common to several samples is computed once.
        why_not_fused: Why the layers cannot be fused; None if they are fused.
        planner: The planner that made the plan.
        whole_space: All choices, without the user's settings.
        longest: Tokens of the longest sample.
        notes: Further notes to the user, one line each.
    """

    config: RunConfig
    chosen: Candidate
    known: KnownDevice
    num_steps: int
    shares_prefix: bool
    why_not_fused: str | None
    planner: Planner
    whole_space: Choices
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
        return self.known.free_bytes is None or self.chosen.memory.needed <= self.known.free_bytes

    @property
    def seconds(self) -> tuple[float, float]:
        """The least and the most that the steps are expected to take."""

        def at_speed(speed: DeviceSpeed) -> float:
            return self.num_steps * self.planner.seconds_per_step(self.settings, self.chosen.step, speed)

        return seconds_within(self.known.possible_speeds or [self.known.speed], at_speed)

    def manifest(self, data: RunData, base_fingerprint: str, earlier: EarlierRun | None) -> RunManifest:
        """The record of the run, without secrets.

        Args:
            data: Its data.
            base_fingerprint: Tells whether the base's weights are still the same.
            earlier: The run that is resumed; None for a new one.
        """
        path, prompt = self.config.model.path, self.config.prompt
        template: Any = prompt.template  # `auto` has been resolved
        return RunManifest(
            base_path=str(Path(path).resolve()) if path is not None and Path(path).is_dir() else path,
            template=template,
            system=prompt.system,
            data_fingerprint=data.stats.fingerprint,
            config=without_secrets(self.config.model_dump(mode="json")),
            versions=current_versions(),
            base_fingerprint=base_fingerprint,
            # Evaluation may be left out for a while; what was the best so far was found with these data all the same.
            eval_fingerprint=data.eval_fingerprint or ("" if earlier is None else earlier.manifest.eval_fingerprint),
            num_overlong=data.stats.num_overlong,
        )

    def summary(self) -> str:
        """The chosen settings and the memory needed, in one line."""
        gib = self.chosen.memory.needed / GIB
        free = "" if self.known.free_bytes is None else f" / {self.known.free_bytes / GIB:.1f}"
        return f"memory plan: {gib:.1f}{free} GiB; {', '.join(say_settings(self.chosen))}"

    def check(self) -> None:
        """Checks that the plan fits.

        Raises:
            TrainingError: It does not; the message says what would fit.
        """
        if self.fits or self.known.free_bytes is None:
            return
        raise TrainingError(
            f"this run does not fit: it needs at least {self.chosen.memory.needed / GIB:.1f} GiB, and "
            f"{max(self.known.free_bytes, 0) / GIB:.1f} GiB are free. {self.what_would_fit(self.known.free_bytes)}"
            + "".join(f"\n{note}" for note in self.notes)
        )

    def what_would_fit(self, free_bytes: float) -> str:
        """Which settings would fit in `free_bytes`, as a sentence; otherwise how large a card is needed."""
        fitting = self.planner.choose(self.whole_space, free_bytes)
        if fitting is not None:
            settings = " ".join(spell(fitting))
            if FORMATS[fitting.settings.quantize].takes_bitsandbytes and not has_bitsandbytes():
                return f"With bitsandbytes ({HOW_TO_INSTALL}) these settings would fit: {settings}"
            return f"These settings would fit: {settings}"
        smallest = self.planner.smallest(self.whole_space)
        card = math.ceil(smallest.memory.needed / GIB + CONTEXT_GIB)
        return (
            f"The smallest card that would do has {card} GiB ({' '.join(spell(smallest))}). "
            f"Shorter samples need less: data.max_length, now up to {self.longest} tokens"
        )

    def cheapest_changes(self, *, keeps_format: bool) -> list[str]:
        """The single changes that save memory at the least loss of speed, in words.

        Args:
            keeps_format: Whether the base must stay in its current format.
        """
        space = self.whole_space
        if keeps_format:
            space = in_format(space, self.settings.quantize)
        return [str(change) for change in self.planner.cheapest_changes(self.chosen, space)]
