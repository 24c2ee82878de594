"""Chooses the fastest settings that fit, among those that change only a run's memory and speed."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from glmtune.data.packing import MOST_GRAPHED_TOKENS
from glmtune.loading.devices import GIB
from glmtune.loading.formats import FORMATS, Quantize
from glmtune.loading.shape import BaseShape
from glmtune.planning.memory import MemorySettings, StepShape, estimate_memory
from glmtune.planning.settings import SETTINGS, Candidate, Choices, in_format, spell_values, values_of
from glmtune.planning.shape import AdapterShape
from glmtune.planning.speed import DeviceSpeed

# Numbers that norms, rotation and activation of a layer read and write per token, both ways, in units of F and H.
_MOVED_F, _MOVED_H = 8, 20
# Products read their weights while they compute, but not all of that time is hidden: a pass of 449 tokens took 4 ms
# more than the 40 us a token of a pass of 8,192, where reading takes 5.3 ms; CUDA graphs in
# results/train_throughput.csv.
_NOT_HIDDEN = 0.7
# Bytes a second between host and device, at the bandwidth of a narrow PCIe slot.
_BUS_BYTES_PER_S = 6e9
# Each departure from the plainest settings must make the run faster by this share.
_LEAST_SPEEDUP = 0.01
# A less exact format is worth a line where it is faster by this share.
_LEAST_SUGGESTED_SPEEDUP = 0.25
# Unfused layers take longer by this factor: 473 ms a step against 326, 8,192 tokens, in the same file.
_UNFUSED_TIME = 1.45


class _Change(NamedTuple):
    """A single change to a candidate.

    Attributes:
        setting: The setting, as written on the command line.
        saved_bytes: Device memory saved.
        slowdown: The share by which a step takes longer.
    """

    setting: str
    saved_bytes: int
    slowdown: float

    def __str__(self) -> str:
        slower = "no slower" if self.slowdown < 0.005 else f"about {self.slowdown:.0%} slower"
        return f"{self.setting}: {self.saved_bytes / GIB:.2g} GiB less, {slower}"


class Planner:
    """Plans runs of one base, adapter and data set on one device.

    Args:
        base: The base.
        adapter: The adapter.
        speed: The device.
        size_step: The passes of a step under a limit of tokens, with or without padding for CUDA graphs.
        state_bytes: As for `estimate_memory`.
    """

    def __init__(
        self,
        base: BaseShape,
        adapter: AdapterShape,
        speed: DeviceSpeed,
        size_step: Callable[[int, bool], StepShape],
        state_bytes: int = 8,
    ) -> None:
        self._base, self._adapter, self._speed = base, adapter, speed
        self._size_step, self._state_bytes = size_step, state_bytes

    def estimate(self, settings: MemorySettings, max_tokens: int) -> Candidate:
        """Estimates memory and time of given settings."""
        step = self._size_step(max_tokens, settings.uses_graphs)
        memory = estimate_memory(self._base, self._adapter, settings, step.largest, self._state_bytes)
        return Candidate(settings, step, memory, self.seconds_per_step(settings, step, self._speed))

    def choose(self, space: Choices, free_bytes: float) -> Candidate | None:
        """The fastest candidate that fits, in the most exact format that has one; None if no candidate fits."""
        for quantize in space["quantize"]:
            fitting = [
                candidate
                for candidate in self._candidates(space, quantize, free_bytes)
                if candidate.memory.needed <= free_bytes
            ]
            if fitting:
                return min(fitting, key=self._price)
        return None

    def faster_format(self, candidate: Candidate, space: Choices, free_bytes: float) -> _Change | None:
        """A format that would make a run faster by a quarter or more, if there is one, to suggest to the user.

        Args:
            candidate: The chosen candidate.
            space: The values to choose among.
            free_bytes: Memory that the device has for the run.
        """
        others = [quantize for quantize in space["quantize"] if quantize != candidate.settings.quantize]
        chosen = (self.choose(in_format(space, quantize), free_bytes) for quantize in others)
        fastest = min((each for each in chosen if each is not None), key=self._price, default=None)
        if fastest is None or self._price(fastest) * (1 + _LEAST_SUGGESTED_SPEEDUP) > self._price(candidate):
            return None
        slowdown = fastest.seconds_per_step / candidate.seconds_per_step - 1
        saved = candidate.memory.needed - fastest.memory.needed
        return _Change(_say({"quantize": fastest.settings.quantize}, space), saved, slowdown)

    def plainest(self, space: Choices) -> Candidate:
        """The candidate with the first choice of each setting, without graphs unless they are required."""
        first = {name: values[0] for name, values in space.items()} | {"uses_graphs": space["uses_graphs"][-1]}
        return self._estimate_values(first)

    def smallest(self, space: Choices) -> Candidate:
        """The candidate that needs least memory."""
        candidates = (candidate for quantize in space["quantize"] for candidate in self._candidates(space, quantize, 0))
        return min(candidates, key=lambda candidate: candidate.memory.needed)

    def cheapest_changes(self, candidate: Candidate, space: Choices, count: int = 3) -> list[_Change]:
        """The single changes that save memory at the least loss of speed.

        Args:
            candidate: The candidate to change.
            space: All choices, without the user's settings.
            count: The largest number of changes.
        """
        values, changes = values_of(candidate), []
        for changed in self._single_changes(values, space):
            other = self._estimate_values({**values, **changed})
            saved = candidate.memory.needed - other.memory.needed
            if saved >= 0.01 * (candidate.memory.peak - candidate.memory.overhead):
                slowdown = other.seconds_per_step / candidate.seconds_per_step - 1
                changes.append(_Change(_say(changed, space), saved, slowdown))
        return sorted(changes, key=lambda change: change.slowdown)[:count]

    def _single_changes(self, values: Mapping[str, Any], space: Choices) -> Iterator[dict[str, Any]]:
        """The values of the changed settings, by name."""
        for setting in SETTINGS:
            if setting.name == "offloads_checkpoints" and values["num_checkpointed"] == 0:
                continue
            for value in setting.alternatives(values[setting.name], space[setting.name]):
                yield {setting.name: value, **(setting.excludes if value else {})}

    def _estimate_values(self, values: Mapping[str, Any]) -> Candidate:
        """Estimates settings given by their names."""
        settings = {name: value for name, value in values.items() if name != "max_tokens"}
        return self.estimate(MemorySettings(**settings), values["max_tokens"])

    def _candidates(self, space: Choices, quantize: Quantize, free_bytes: float) -> Iterator[Candidate]:
        """For each combination the candidate with the fewest checkpointed layers that fits, or with the most."""
        combined = {name: values for name, values in space.items() if name not in ("quantize", "num_checkpointed")}
        for values in itertools.product(*combined.values()):
            combination = dict(zip(combined, values, strict=True))
            max_tokens = combination.pop("max_tokens")
            settings = MemorySettings(quantize, **combination)
            if not self._is_worthwhile(settings, max_tokens, space):
                continue
            for num_checkpointed in space["num_checkpointed"]:
                candidate = self.estimate(replace(settings, num_checkpointed=num_checkpointed), max_tokens)
                if candidate.memory.needed <= free_bytes:
                    break
            yield candidate

    def _is_worthwhile(self, settings: MemorySettings, max_tokens: int, space: Choices) -> bool:
        if settings.offloads_checkpoints and (settings.uses_graphs or max(space["num_checkpointed"]) == 0):
            return False
        if not settings.uses_graphs or False not in space["uses_graphs"]:
            return True
        # Otherwise hardly any pass would be small enough to record.
        return self._size_step(max_tokens, False).mean_tokens < MOST_GRAPHED_TOKENS

    def _price(self, candidate: Candidate) -> float:
        values = values_of(candidate)
        departures = sum(setting.is_departure and bool(values[setting.name]) for setting in SETTINGS)
        return candidate.seconds_per_step * (1 + _LEAST_SPEEDUP * departures)

    def seconds_per_step(self, settings: MemorySettings, step: StepShape, speed: DeviceSpeed) -> float:
        """Products, memory traffic and the bus one after the other; or the host, where it takes longer.

        Args:
            settings: The settings.
            step: The size and number of the passes.
            speed: The device's speed.
        """
        base, shape, weight_format = self._base, self._base.shape, FORMATS[settings.quantize]
        itemsize, in_blocks = base.dtype.itemsize, base.in_blocks
        checkpointed_share = settings.num_checkpointed / shape.num_layers
        # Running a layer forward again stops before its last projection.
        recomputed = checkpointed_share * (1 - shape.ffn_hidden_size * shape.hidden_size * shape.num_layers / in_blocks)
        through_layers = 2 + recomputed
        share_of_tokens = (shape.num_layers - 1 + step.mean_labels / step.mean_tokens) / shape.num_layers
        products = 2 * step.mean_tokens * share_of_tokens * in_blocks * through_layers
        products /= weight_format.product_speed
        products += 4 * step.mean_labels * base.head
        # However few the tokens, every weight is read: many small passes take longer than one large pass.
        reading_s = through_layers * in_blocks * itemsize / speed.bytes_per_s
        seconds = max(products / speed.flops + _NOT_HIDDEN * reading_s, reading_s)
        if self._adapter.why_not_fused is not None:
            seconds *= _UNFUSED_TIME
        moved = step.mean_tokens * shape.num_layers * itemsize
        moved *= _MOVED_F * shape.ffn_hidden_size + _MOVED_H * shape.hidden_size
        moved += in_blocks * weight_format.traffic_bytes(base.dtype) * through_layers
        seconds += moved / speed.bytes_per_s
        over_bus = step.mean_tokens * shape.hidden_size * itemsize
        seconds += settings.offloads_embedding * over_bus / _BUS_BYTES_PER_S
        if settings.offloads_checkpoints:
            seconds += 2 * settings.num_checkpointed * over_bus / _BUS_BYTES_PER_S
        if not settings.uses_graphs:
            launches = weight_format.launches_per_layer * (1 + checkpointed_share / 3) * shape.num_layers
            seconds = max(seconds, launches * speed.launch_s)
        return step.num_passes * seconds


def _say(changed: dict[str, Any], space: Choices) -> str:
    if changed.get("num_checkpointed") == max(space["num_checkpointed"]):
        changed = {**changed, "num_checkpointed": True}  # all layers, as people write it
    return " ".join(spell_values(changed))
