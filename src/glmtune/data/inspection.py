"""Inspects data before training: the tokens seen and supervised, and sample lengths.

The output is readable at 80 columns, with wide characters and without colour.
"""

from collections.abc import Mapping, Sequence

import numpy
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from glmtune.data.dataset import Overlong, load_dataset
from glmtune.data.formats import Conversations, read_conversations
from glmtune.data.printing import print_lines, visible_token
from glmtune.data.stats import DataStats, join_lines, percentiles, set_aside, split_line
from glmtune.data.weights import Paths
from glmtune.errors import DataError
from glmtune.language import localise
from glmtune.language.plurals import count
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Rendered, Template, render

_SUPERVISED_STYLE = "bold green"
_LEGEND = (
    "+ lines (green): the model learns to produce these tokens; other lines are given",
    "/ parts tokens; ▁ is a space, ⏎ a newline, <0xE5> one byte of a rare character",
)
_NUM_BARS = 12


def show(
    paths: Paths,
    tokenizer: Tokenizer,
    *,
    template: Template = "chatglm3",
    system: str | None = None,
    max_length: int | None = None,
    num_samples: int = 3,
    start: int = 1,
    fields: Mapping[str, str] | None = None,
    join: str = "\n",
    console: Console | None = None,
) -> None:
    """Prints samples token by token, as training sees them.

    Args:
        paths: As for `read_conversations`, as are `fields` and `join`.
        tokenizer: The tokenizer.
        template: The prompt template.
        system: The system prompt of conversations without one of their own.
        max_length: Most tokens of a sample; None for no limit.
        num_samples: How many samples to print.
        start: The first of them, counted from 1 over all files.
        console: Where to print; None for the standard output.

    Raises:
        DataError: The data are invalid, or have no sample `start`.
    """
    console = console or Console()
    found = read_conversations(paths, fields, join)
    if not 1 <= start <= len(found):
        raise DataError(f"there is no sample {start}; the data have samples 1 to {len(found)}")
    print_lines(console, _LEGEND)
    for index in range(start - 1, min(start - 1 + num_samples, len(found))):
        try:
            rendered = render(found.items[index].with_system(system), tokenizer, template, max_length)
        except DataError as error:
            raise DataError(f"{found.sources[index]}: {error}") from error
        print_lines(console, ["", f"sample {index + 1} ({found.sources[index]}): {_summary(rendered)}"])
        tokens = [visible_token(token) for token in tokenizer.convert_ids_to_tokens(rendered.input_ids)]
        for line in _token_lines(tokens, rendered.loss_mask, console.width):
            console.print(line, no_wrap=True, overflow="ignore", crop=False)


def stats(
    paths: Paths,
    tokenizer: Tokenizer | None = None,
    *,
    template: Template = "chatglm3",
    system: str | None = None,
    max_length: int | None = None,
    overlong: Overlong = "cut",
    eval_fraction: float = 0.0,
    fields: Mapping[str, str] | None = None,
    join: str = "\n",
    console: Console | None = None,
) -> DataStats | None:
    """Prints counts and a histogram of lengths: in tokens with a tokenizer, else in characters.

    Args:
        paths: As for `read_conversations`, as are `fields` and `join`.
        tokenizer: The tokenizer; None for characters.
        template: The prompt template.
        system: The system prompt of conversations without one of their own.
        max_length: Most tokens of a sample; None for no limit.
        overlong: As for `tokenize_conversations`.
        eval_fraction: As `data.eval_fraction`, to show how many samples it sets aside; 0 to leave that out.
        console: Where to print; None for the standard output.

    Returns:
        The statistics, if there is a tokenizer.

    Raises:
        DataError: The data are invalid.
    """
    console = console or Console()
    if tokenizer is None:
        found = read_conversations(paths, fields, join)
        print_lines(console, [*_character_lines(found, console.width), *_split_lines(eval_fraction, len(found))])
        return None
    dataset, counted = load_dataset(
        paths,
        tokenizer,
        fields=fields,
        join=join,
        template=template,
        system=system,
        max_length=max_length,
        overlong=overlong,
    )
    lengths = numpy.asarray(dataset["length"])
    histogram = _histogram(lengths, "tokens", console.width)
    print_lines(console, [*counted.lines(), "", *histogram, *_split_lines(eval_fraction, counted.num_samples)])
    return counted


def _summary(rendered: Rendered) -> str:
    summary = f"{count(len(rendered.input_ids), 'tokens')}, {sum(rendered.loss_mask)} learnt"
    if rendered.num_cut_tokens or rendered.num_dropped_messages:
        summary += (
            f"; cut: {count(rendered.num_cut_tokens, 'tokens')}, "
            f"dropped: {count(rendered.num_dropped_messages, 'messages')}"
        )
    return summary


def _token_lines(tokens: Sequence[str], loss_mask: Sequence[bool], width: int) -> list[Text]:
    """Lines of tokens, each line either supervised (marked with a plus) or not."""
    lines: list[Text] = []
    was_supervised: bool | None = None
    for token, is_supervised in zip(tokens, loss_mask, strict=True):
        if is_supervised is not was_supervised or cell_len(lines[-1].plain) + cell_len(token) + 1 > width:
            lines.append(Text("+ " if is_supervised else "  "))
        else:
            lines[-1].append("/")
        lines[-1].append(token, style=_SUPERVISED_STYLE if is_supervised else "")
        was_supervised = is_supervised
    return lines


def _character_lines(found: Conversations, width: int) -> list[str]:
    lengths = numpy.asarray([sum(len(message.text()) for message in item.messages) for item in found.items])
    spread = ", ".join(f"{name} {value:,}" for name, value in percentiles(lengths).items())
    num_messages = sum(len(item.messages) for item in found.items)
    return [
        *found.format_lines(),
        f"{count(len(found), 'rows')}, {count(num_messages, 'messages')}, {count(int(lengths.sum()), 'characters')}",
        f"characters per row: {spread}",
        *join_lines(found.join, found.num_joined),
        "",
        *_histogram(lengths, "characters", width),
    ]


def _split_lines(eval_fraction: float, num_samples: int) -> list[str]:
    """How many samples a run with this fraction would evaluate on; none if it is not asked."""
    if not eval_fraction:
        return []
    num_held_out = set_aside(eval_fraction, num_samples)
    return ["", split_line(num_samples - num_held_out, num_held_out)]


def _histogram(lengths: numpy.ndarray, unit: str, width: int) -> list[str]:
    """A line for each range of lengths: the range, how many samples, a bar."""
    low, high = int(lengths.min()), int(lengths.max())
    bin_width = -(-(high - low + 1) // _NUM_BARS)
    starts = range(low, high + 1, bin_width)
    counts = [int(((lengths >= start) & (lengths < start + bin_width)).sum()) for start in starts]
    ranges = [f"{start}-{start + bin_width - 1}" if bin_width > 1 else str(start) for start in starts]
    label = max(cell_len(localise(unit)), *map(len, ranges))
    bar_width = max(width - label - 12, 10)
    lines = [f"{_right(localise(unit), label)}  {_right(localise('samples'), 8)}"]
    for name, number in zip(ranges, counts, strict=True):
        bar = "#" * max(round(bar_width * number / max(counts)), min(number, 1))
        lines.append(f"{name:>{label}}  {number:>8,} {bar}".rstrip())
    return lines


def _right(text: str, width: int) -> str:
    """The text right-aligned in a number of columns; Chinese characters take two."""
    return " " * (width - cell_len(text)) + text
