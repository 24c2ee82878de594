"""Chooses the fastest settings that fit, among those that change only a run's memory and speed."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from glmtune.data.packing import MOST_GRAPHED_TOKENS
from glmtune.loading.devices import GIB
from glmtune.loading.formats import FORMATS, Quantize
from glmtune.loading.shape import BaseShape
from glmtune.planning.memory import MemoryEstimate, MemorySettings, Pass, estimate_memory
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


class StepShape(NamedTuple):
    """The passes of an optimiser step under a limit of tokens per pass.

    Attributes:
        max_tokens: The limit: most tokens of a pass.
        largest: The largest possible pass.
        num_passes: Passes of a step, on average.
        mean_tokens: Tokens computed in a pass, padding included, on average.
        mean_labels: Labels of a pass, on average.
    """

    max_tokens: int
    largest: Pass
    num_passes: float
    mean_tokens: float
    mean_labels: float


@dataclass(frozen=True)
class SearchSpace:
    """The values to choose among; a single one for each setting that the user has made.

    Attributes:
        quantize: Formats, the most exact first; one is chosen only if nothing fits with those before it.
        offloads_embedding: Whether the embedding may or must stay on the host.
        num_checkpointed: Numbers of layers with activation checkpointing, ascending; the first that fits is chosen.
        offloads_checkpoints: Whether checkpoints may or must be offloaded to the host.
        uses_graphs: Whether CUDA graphs may or must be used.
        max_tokens: Limits of a pass.
    """

    quantize: Sequence[Quantize] = ("none",)
    offloads_embedding: Sequence[bool] = (False, True)
    num_checkpointed: Sequence[int] = (0,)
    offloads_checkpoints: Sequence[bool] = (False, True)
    uses_graphs: Sequence[bool] = (True, False)
    max_tokens: Sequence[int] = ()

    def with_format(self, quantize: Quantize) -> "SearchSpace":
        """The same for a base in one format."""
        return replace(self, quantize=(quantize,))


@dataclass(frozen=True)
class Candidate:
    """Settings, with their estimated memory and time.

    Attributes:
        settings: The settings.
        step: The size and number of its passes.
        memory: The estimated device memory.
        seconds_per_step: The estimated time of an optimiser step.
    """

    settings: MemorySettings
    step: StepShape
    memory: MemoryEstimate
    seconds_per_step: float


class Change(NamedTuple):
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

    def choose(self, space: SearchSpace, free_bytes: float) -> Candidate | None:
        """The fastest candidate that fits, in the most exact format that has one; None if no candidate fits."""
        for quantize in space.quantize:
            fitting = [
                candidate
                for candidate in self._candidates(space, quantize, free_bytes)
                if candidate.memory.needed <= free_bytes
            ]
            if fitting:
                return min(fitting, key=self._price)
        return None

    def faster_format(self, candidate: Candidate, space: SearchSpace, free_bytes: float) -> Change | None:
        """A format that would make a run faster by a quarter or more, if there is one, to suggest to the user.

        Args:
            candidate: The chosen candidate.
            space: The values to choose among.
            free_bytes: Memory that the device has for the run.
        """
        others = [quantize for quantize in space.quantize if quantize != candidate.settings.quantize]
        chosen = (self.choose(space.with_format(quantize), free_bytes) for quantize in others)
        fastest = min((each for each in chosen if each is not None), key=self._price, default=None)
        if fastest is None or self._price(fastest) * (1 + _LEAST_SUGGESTED_SPEEDUP) > self._price(candidate):
            return None
        slowdown = fastest.seconds_per_step / candidate.seconds_per_step - 1
        saved = candidate.memory.needed - fastest.memory.needed
        return Change(f"model.quantize={fastest.settings.quantize}", saved, slowdown)

    def plainest(self, space: SearchSpace) -> Candidate:
        """The candidate with the first choice of each setting, without graphs unless they are required."""
        settings = MemorySettings(
            space.quantize[0],
            space.offloads_embedding[0],
            space.num_checkpointed[0],
            space.offloads_checkpoints[0],
            space.uses_graphs[-1],
        )
        return self.estimate(settings, space.max_tokens[0])

    def smallest(self, space: SearchSpace) -> Candidate:
        """The candidate that needs least memory."""
        candidates = (candidate for quantize in space.quantize for candidate in self._candidates(space, quantize, 0))
        return min(candidates, key=lambda candidate: candidate.memory.needed)

    def cheapest_changes(self, candidate: Candidate, space: SearchSpace, count: int = 3) -> list[Change]:
        """The single changes that save memory at the least loss of speed.

        Args:
            candidate: The candidate to change.
            space: All choices, without the user's settings.
            count: The largest number of changes.
        """
        settings, limit = candidate.settings, candidate.step.max_tokens
        changed = [
            (f"train.max_tokens_per_device={smaller}", settings, smaller)
            for smaller in space.max_tokens
            if smaller < limit
        ][:1]
        for name, new in self._changed_settings(settings, space):
            changed.append((name, new, limit))
        changes = []
        for name, new, max_tokens in changed:
            other = self.estimate(new, max_tokens)
            saved = candidate.memory.needed - other.memory.needed
            if saved >= 0.01 * (candidate.memory.peak - candidate.memory.overhead):
                changes.append(Change(name, saved, other.seconds_per_step / candidate.seconds_per_step - 1))
        return sorted(changes, key=lambda change: change.slowdown)[:count]

    def _changed_settings(self, settings: MemorySettings, space: SearchSpace) -> Iterator[tuple[str, MemorySettings]]:
        if settings.uses_graphs:
            yield "train.cuda_graphs=false", replace(settings, uses_graphs=False)
        if not settings.offloads_embedding and True in space.offloads_embedding:
            yield "model.offload_embedding=true", replace(settings, offloads_embedding=True)
        num_layers = max(space.num_checkpointed)
        if settings.num_checkpointed < num_layers:
            yield "train.gradient_checkpointing=true", replace(settings, num_checkpointed=num_layers)
        if settings.num_checkpointed and not settings.offloads_checkpoints and True in space.offloads_checkpoints:
            new = replace(settings, offloads_checkpoints=True, uses_graphs=False)
            yield "train.offload_checkpoints=true train.cuda_graphs=false", new
        for quantize in space.quantize:
            if quantize != settings.quantize:
                yield f"model.quantize={quantize}", replace(settings, quantize=quantize)

    def _candidates(self, space: SearchSpace, quantize: Quantize, free_bytes: float) -> Iterator[Candidate]:
        """For each combination the candidate with the fewest checkpointed layers that fits, or with the most."""
        for embedding, offloads, graphs, max_tokens in itertools.product(
            space.offloads_embedding, space.offloads_checkpoints, space.uses_graphs, space.max_tokens
        ):
            if offloads and (graphs or max(space.num_checkpointed) == 0):
                continue
            if (
                graphs
                and False in space.uses_graphs
                and self._size_step(max_tokens, False).mean_tokens >= MOST_GRAPHED_TOKENS
            ):
                continue  # hardly any pass would be small enough to record
            for num_checkpointed in space.num_checkpointed:
                settings = MemorySettings(quantize, embedding, num_checkpointed, offloads, graphs)
                candidate = self.estimate(settings, max_tokens)
                if candidate.memory.needed <= free_bytes:
                    break
            yield candidate

    def _price(self, candidate: Candidate) -> float:
        settings = candidate.settings
        departures = settings.offloads_embedding + settings.offloads_checkpoints + (settings.num_checkpointed > 0)
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
