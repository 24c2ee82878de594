"""`glmtune data stats --html`: what a data set looks like, on one page."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from glmtune.data.checking import CheckResult
from glmtune.data.dataset import Overlong, tokenize_conversations
from glmtune.data.findings import find, find_in_tokens
from glmtune.data.formats import Conversations, read_conversations
from glmtune.data.printing import visible_token
from glmtune.data.readers import expand_path
from glmtune.data.stats import percentiles
from glmtune.data.weights import Paths
from glmtune.errors import DataError, show_text
from glmtune.files import storage_faults, written_aside
from glmtune.language import localise
from glmtune.models.tokenizer import Tokenizer
from glmtune.pages import Markup, bar_chart, element, figures, joined, note, page, section, table
from glmtune.prompts import Conversation, Rendered, Template, render

_NUM_BARS = 16
_NUM_OPENINGS = 10
_OPENING_LETTERS = 4
_MOST_SHOWN = 2000  # characters of a message, or tokens of a sample
_LETTERS = re.compile(
    r"[A-Za-z\u00c0-\u024f]+|[\u4e00-\u9fff\u3400-\u4dbf]|[\u3041-\u30ff]|[\uac00-\ud7a3]|[\u0400-\u04ff]+"
)


def write_stats_page(
    paths: Paths,
    output: str | Path,
    tokenizer: Tokenizer | None = None,
    *,
    template: Template = "chatglm3",
    system: str | None = None,
    max_length: int | None = None,
    overlong: Overlong = "cut",
    fields: Mapping[str, str] | None = None,
    join: str = "\n",
) -> CheckResult:
    """Writes the page: lengths, languages, openings, findings, and samples with what is learnt in colour.

    Args:
        paths: As for `read_conversations`, as are `fields` and `join`.
        output: The `.html` file to write; an earlier one is replaced.
        tokenizer: The tokenizer; None to count characters.
        template: The prompt template.
        system: The system prompt of conversations without one of their own.
        max_length: Most tokens of a sample; None for no limit.
        overlong: As for `tokenize_conversations`.

    Returns:
        What was found.

    Raises:
        DataError: The data are invalid, or `output` is no `.html` file.
        StorageError: It cannot be written.
    """
    target, name = expand_path(output), show_text(str(output))
    if target.suffix.lower() not in (".html", ".htm"):
        raise DataError(f"{name}: expected a file named .html to write to")
    found = read_conversations(paths, fields, join)
    result = CheckResult(found, findings=find(found))
    if tokenizer is None:
        lengths = numpy.asarray([sum(len(each.text()) for each in item.messages) for item in found.items])
        samples = [_messages(found.items[index].with_system(system)) for index in _shown(lengths)]
    else:
        dataset, result.stats = tokenize_conversations(
            found, tokenizer, template=template, system=system, max_length=max_length, overlong=overlong
        )
        result.findings += find_in_tokens(result.stats, max_length)
        lengths = numpy.asarray(dataset["length"])
        shown = [found.items[dataset[index]["row"]].with_system(system) for index in _shown(lengths)]
        samples = [_tokens(render(item, tokenizer, template, max_length), tokenizer) for item in shown]
    text = stats_page(result, lengths, samples)
    with storage_faults(name):
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(target) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    return result


def stats_page(result: CheckResult, lengths: NDArray[Any], samples: Sequence[Markup]) -> str:
    """The page."""
    found, stats = result.conversations, result.stats
    numbers = [(localise("rows in all"), f"{len(found):,}")]
    if stats is None:
        numbers.append((localise("characters in all"), f"{int(lengths.sum()):,}"))
    else:
        share = 100 * stats.num_supervised_tokens / stats.num_tokens
        numbers += [
            (localise("tokens in all"), f"{stats.num_tokens:,}"),
            (localise("of them learnt"), f"{share:.0f} %"),
        ]
    numbers.append((localise("worth a look"), f"{len(result.findings):,}"))
    names = ", ".join(show_text(Path(path).name) for path in found.formats)
    return page(
        localise(f"Data: {names}"),
        figures(numbers),
        *findings_section(result),
        _lengths_section(lengths, "characters per row" if stats is None else "tokens per sample"),
        section(localise("Languages"), _counted(_languages(found), len(found), localise("Languages"))),
        _openings_section(found),
        section(
            localise("Samples"),
            element(
                "p",
                joined(element("span", localise("this is learnt"), class_="learnt"), localise("; the rest is given")),
            ),
            *(_sample(title, sample) for title, sample in zip(_TITLES, samples, strict=False)),
        ),
        subtitle="; ".join(localise(line) for line in found.format_lines()),
    )


_TITLES = ("the first one", "one of middle length", "the longest one")


def findings_section(result: CheckResult) -> list[Markup]:
    """The findings as a table, or a line that there are none."""
    if not result.findings:
        return [section(localise("Findings"), note(localise("nothing else to note")))]
    rows = []
    for finding in result.findings:
        what, *where, mend = map(localise, finding.lines())
        rows.append([joined(what, *(element("div", text, class_="where") for text in where)), mend])
    return [section(localise("Findings"), table([localise("what was found"), localise("what to do")], rows))]


def _lengths_section(lengths: NDArray[Any], unit: str) -> Markup:
    low, high = int(lengths.min()), int(lengths.max())
    width = max(-(-(high - low + 1) // _NUM_BARS), 1)
    starts = range(low, high + 1, width)
    counts = numpy.histogram(lengths, [*starts, starts[-1] + width])[0].tolist()
    bars = [
        (str(start) if width == 1 else f"{start:,}-{start + width - 1:,}", number, f"{number:,}")
        for start, number in zip(starts, counts, strict=True)
    ]
    spread = ", ".join(f"{name} {value:,}" for name, value in percentiles(lengths).items())
    return section(
        localise("Lengths"), element("p", localise(f"{unit}: {spread}")), bar_chart(bars, label=localise("Lengths"))
    )


def _counted(counts: Counter[str], total: int, label: str) -> Markup:
    bars = [(name, number, f"{number:,} ({100 * number / total:.0f} %)") for name, number in counts.most_common()]
    return bar_chart(bars, label=label)


def _languages(found: Conversations) -> Counter[str]:
    return Counter(localise(_language(item)) for item in found.items)


def _language(item: Conversation) -> str:
    """The language of a conversation, by the letters that most of its words or characters have."""
    kinds = Counter(
        _kind(each) for message in item.messages for each in _LETTERS.findall(message.content[:_MOST_SHOWN])
    )
    if kinds["Japanese"] > 0.1 * kinds.total():
        return "Japanese"
    return kinds.most_common(1)[0][0] if kinds else "no words"


def _kind(word: str) -> str:
    code = ord(word[0])
    if 0x3041 <= code <= 0x30FF:
        return "Japanese"
    if 0xAC00 <= code <= 0xD7A3:
        return "Korean"
    if 0x400 <= code <= 0x4FF:
        return "Cyrillic letters"
    return "Chinese" if code >= 0x3400 else "English and other Latin letters"


def _openings_section(found: Conversations) -> Markup:
    parts = []
    for role, name in (("user", "Questions begin with"), ("assistant", "Answers begin with")):
        texts = [each.content.strip() for item in found.items for each in item.messages if each.role == role]
        counts = Counter(_opening(text) for text in texts if text)
        rows = [
            [visible, f"{number:,}", f"{100 * number / len(texts):.1f} %"]
            for visible, number in counts.most_common(_NUM_OPENINGS)
        ]
        columns = [localise(name), localise("how many"), localise("share")]
        parts.append(table(columns, rows, numeric={1, 2}))
    return section(localise("Most frequent openings"), *parts)


def _opening(text: str) -> str:
    """The first characters of a Chinese text, the first words of another."""
    if re.match(r"[\x21-\x7e]", text):
        return " ".join(text.split(maxsplit=3)[:3])[:40]
    return text[:_OPENING_LETTERS].replace("\n", "⏎")


def _shown(lengths: NDArray[Any]) -> list[int]:
    """The first, one of middle length, the longest."""
    order = numpy.argsort(lengths, kind="stable")
    return list(dict.fromkeys([0, int(order[len(order) // 2]), int(order[-1])]))


def _sample(title: str, sample: Markup) -> Markup:
    return joined(element("h3", localise(title)), sample)


def _messages(item: Conversation) -> Markup:
    """A conversation, message by message."""
    parts = []
    for message in item.messages:
        name = f"{message.role} {show_text(message.metadata, 60)}".rstrip()
        text = message.text()[:_MOST_SHOWN]
        content = element("span", text, class_="learnt") if message.has_loss else text
        inside = joined(element("div", name, class_="role"), element("div", content, class_="content"))
        parts.append(element("div", inside, class_="message"))
    return joined(*parts)


def _tokens(rendered: Rendered, tokenizer: Tokenizer) -> Markup:
    """A sample as the model sees it, with what is learnt in colour."""
    tokens = tokenizer.convert_ids_to_tokens(rendered.input_ids[:_MOST_SHOWN])
    pairs = zip(tokens, rendered.loss_mask, strict=False)
    spans = []
    for is_learnt, group in groupby(pairs, key=lambda pair: pair[1]):
        text = "".join(_readable(token for token, _ in group))
        spans.append(element("span", text, class_="learnt") if is_learnt else joined(text))
    return element("div", element("div", *spans, class_="content"), class_="message")


def _readable(tokens: Iterable[str]) -> Iterator[str]:
    """Tokens as text: characters that are spelled byte by byte are put together."""
    for is_byte, group in groupby(tokens, key=lambda token: bool(re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token))):
        if is_byte:
            yield bytes(int(token[3:5], 16) for token in group).decode(errors="replace")
        else:
            yield from (visible_token(token).replace("▁", " ") for token in group)
