"""Counts of a tokenised data set."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy

from glmtune.language.plurals import count

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class DataStats:
    """Counts of samples, supervised tokens and truncation.

    Attributes:
        num_samples: Samples, one per row.
        num_tokens: Tokens of all samples.
        num_supervised_tokens: Supervised tokens.
        num_cut_tokens: Tokens that truncation removed from within messages.
        num_cut_samples: Samples that lost tokens or messages.
        num_dropped_messages: Messages that truncation dropped whole.
        num_overlong: Samples left out because they are too long (`data.overlong=drop`); in none of the other counts.
        num_skipped: Rows left out because they are faulty (`data.faulty=skip`); in none of the other counts.
        length_percentiles: Tokens of a sample, by name: min, mean, p50, p90, p99, max.
        join: The separator between `instruction` and `input`.
        num_joined: Rows that have both.
        formats: How each file is read, one line per file.
        fingerprint: The key of the tokenised data in the cache: changes with the conversations, the tokenizer,
            template, system prompt, `max_length` and `overlong`, and with the renderer and the version of glmtune.
    """

    num_samples: int
    num_tokens: int
    num_supervised_tokens: int
    num_cut_tokens: int
    num_cut_samples: int
    num_dropped_messages: int
    num_overlong: int
    num_skipped: int
    length_percentiles: dict[str, int]
    join: str
    num_joined: int
    formats: list[str]
    fingerprint: str

    @classmethod
    def collect(
        cls,
        counts: "pyarrow.Table",
        fingerprint: str,
        *,
        num_overlong: int,
        num_skipped: int,
        join: str,
        num_joined: int,
        formats: list[str],
    ) -> "DataStats":
        """Counts over the columns `length`, `num_supervised`, `num_cut_tokens` and `num_dropped_messages`."""
        names = ["length", "num_supervised", "num_cut_tokens", "num_dropped_messages"]
        lengths, supervised, cut, dropped = (counts[name].to_numpy() for name in names)
        return cls(
            num_samples=len(counts),
            num_tokens=int(lengths.sum()),
            num_supervised_tokens=int(supervised.sum()),
            num_cut_tokens=int(cut.sum()),
            num_cut_samples=int(((cut > 0) | (dropped > 0)).sum()),
            num_dropped_messages=int(dropped.sum()),
            num_overlong=num_overlong,
            num_skipped=num_skipped,
            length_percentiles=percentiles(lengths),
            join=join,
            num_joined=num_joined,
            formats=formats,
            fingerprint=fingerprint,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report, one line per topic; topics that do not apply are left out."""
        share = 100 * self.num_supervised_tokens / self.num_tokens
        spread = ", ".join(f"{name} {value:,}" for name, value in self.length_percentiles.items())
        lines = [
            *self.formats,
            f"{count(self.num_samples, 'samples')}, {count(self.num_tokens, 'tokens')}, "
            f"{self.num_supervised_tokens:,} of them learnt ({share:.0f} %)",
            f"tokens per sample: {spread}",
        ]
        if self.num_cut_samples:
            lines.append(
                f"truncation shortened {count(self.num_cut_samples, 'samples')}: "
                f"{count(self.num_cut_tokens, 'tokens')} cut, {count(self.num_dropped_messages, 'messages')} dropped"
            )
        if self.num_overlong:
            lines.append(f"{self.num_overlong:,} more samples are left out, being too long (data.overlong=drop)")
        if self.num_skipped:
            lines.append(f"{self.num_skipped:,} more rows are left out, being faulty (data.faulty=skip)")
        return [*lines, *join_lines(self.join, self.num_joined)]


def percentiles(lengths: numpy.ndarray) -> dict[str, int]:
    """The spread of lengths: min, mean, p50, p90, p99, max, rounded to whole numbers."""
    spread = {name: numpy.percentile(lengths, percent) for name, percent in (("p50", 50), ("p90", 90), ("p99", 99))}
    values = {"min": lengths.min(), "mean": lengths.mean(), **spread, "max": lengths.max()}
    return {name: round(float(value)) for name, value in values.items()}


def split_line(num_train: int, num_held_out: int) -> str:
    """Says how many samples are for training, and how many for evaluation."""
    if not num_held_out:
        return (
            f"for training: {count(num_train, 'samples')}; for evaluation: none "
            "(data.eval_fraction=0.05 sets some aside)"
        )
    return f"for training: {count(num_train, 'samples')}; for evaluation: {count(num_held_out, 'samples')}"


def set_aside(fraction: float, num_samples: int) -> int:
    """How many of the samples `data.eval_fraction` sets aside."""
    return max(1, round(fraction * num_samples))


def join_lines(join: str, num_joined: int) -> list[str]:
    """A line on how `instruction` and `input` were joined, and in how many rows; none if no row has both."""
    if not num_joined:
        return []
    name = {"": "nothing", "\n": "a newline"}.get(join, repr(join))
    return [f"in {count(num_joined, 'rows')}, instruction and input are joined with {name} (data.join)"]
