"""Tokenises conversations into a `datasets.Dataset` in parallel; the result is cached on disk."""

import hashlib
import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy
import pyarrow
import pyarrow.compute
from datasets import Dataset, Features, List, Value
from numpy.typing import NDArray

from glmtune import __version__, prompts
from glmtune.data.compact import CompactList, read_encoded
from glmtune.data.formats import Conversations, Faulty, read_conversations
from glmtune.data.rows import RowFault
from glmtune.data.skipped import num_skipped
from glmtune.data.stats import DataStats
from glmtune.data.token_cache import find_or_make, read_columns
from glmtune.data.weights import Paths
from glmtune.errors import DataError, summarise_faults
from glmtune.language import localise
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Conversation, PromptTokenizer, Template, render
from glmtune.signals import handling

_COLUMNS = Features(
    {
        "input_ids": List(Value("int32")),
        "labels": List(Value("int32")),
        "length": Value("int32"),
        "row": Value("int32"),
        "is_overlong": Value("bool"),
        "num_supervised": Value("int32"),
        "num_cut_tokens": Value("int32"),
        "num_dropped_messages": Value("int32"),
        "fault": Value("string"),
    }
)
_TRAINING_COLUMNS = ["input_ids", "labels", "length", "row"]
_ROWS_A_BATCH = 1000
_ROWS_A_PROCESS = 20_000  # a worker takes about a second to start and a few seconds for this many rows

Overlong = Literal["cut", "drop"]


def load_dataset(
    paths: Paths,
    tokenizer: Tokenizer,
    *,
    fields: Mapping[str, str] | None = None,
    join: str = "\n",
    template: Template = "chatglm3",
    system: str | None = None,
    max_length: int | None = None,
    overlong: Overlong = "cut",
) -> tuple[Dataset, DataStats]:
    """Reads data files and tokenises them; see `read_conversations` and `tokenize_conversations`.

    Raises:
        DataError: A file or a row is wrong; all faults, with their row numbers.
    """
    return tokenize_conversations(
        read_conversations(paths, fields, join),
        tokenizer,
        template=template,
        system=system,
        max_length=max_length,
        overlong=overlong,
    )


def tokenize_conversations(
    conversations: Conversations,
    tokenizer: Tokenizer,
    *,
    template: Template = "chatglm3",
    system: str | None = None,
    max_length: int | None = None,
    overlong: Overlong = "cut",
    faulty: Faulty = "stop",
    num_workers: int | None = None,
) -> tuple[Dataset, DataStats]:
    """Renders conversations into training samples.

    The result is cached (see `token_cache.find_or_make`) under a fingerprint of everything that it depends on: the
    conversations, the tokenizer, the settings below, the renderer and the package's version.

    Args:
        conversations: At least one conversation.
        tokenizer: The tokenizer.
        template: The prompt template.
        system: The system prompt of conversations that have none of their own; None or empty for none.
        max_length: Most tokens of a sample; None for no limit.
        overlong: What becomes of longer ones: `cut` truncates them as `prompts.render` describes, `drop` leaves them
            out.
        faulty: Whether a sample with nothing to learn is an error or is left out, and added to what was skipped.
        num_workers: Processes to tokenise in; None to choose by the number of cores and rows.

    Returns:
        A data set with a row for each conversation that is kept, in order, and its statistics. Its columns are
        `input_ids` (int32), `labels` (int32, -100 where not supervised), `length` (tokens) and `row` (the index of the
        conversation).

    Raises:
        DataError: Samples have nothing left to learn from, or the template cannot express them; all such rows. Or all
            samples are too long, and are to be dropped.
    """
    items = conversations.items
    settings: dict[str, Any] = {
        "template": template,
        "system": system or None,
        "max_length": max_length,
        "overlong": overlong,
    }
    fingerprint = _fingerprint(items, tokenizer, settings)

    def tokenize(file: Path | None) -> Dataset:
        return _encoded(items, file).map(
            partial(_tokenize_batch, tokenizer=tokenizer, **settings),
            batched=True,
            with_indices=True,
            remove_columns=["conversation"],
            features=_COLUMNS,
            num_proc=_num_processes(len(items), num_workers),
            new_fingerprint=fingerprint,
            cache_file_name=None if file is None else str(file),
            keep_in_memory=file is None,
            load_from_cache_file=False,
            desc=localise("tokenising"),
        )

    with _workers_end_with_us():
        tokenized = find_or_make(fingerprint, len(items), _COLUMNS, tokenize)
    counts = read_columns(tokenized, [name for name in _COLUMNS if name not in ("input_ids", "labels")])
    valid = kept = _without_faulty(counts["fault"], conversations, faulty)
    if overlong == "drop":
        kept = _without_overlong(counts["is_overlong"], valid, max_length)
    if len(kept) < len(tokenized):
        tokenized, counts = tokenized.select(kept), counts.take(kept)
    stats = DataStats.collect(
        counts,
        fingerprint,
        num_overlong=len(valid) - len(kept),
        num_skipped=num_skipped(conversations.skipped),
        join=conversations.join,
        num_joined=conversations.num_joined,
        formats=conversations.format_lines(),
    )
    return tokenized.select_columns(_TRAINING_COLUMNS), stats


@contextmanager
def _workers_end_with_us() -> Iterator[None]:
    """Ends the workers when a signal ends this process, and keeps them from printing a traceback at Ctrl-C."""
    received: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    try:
        with handling(on_signal):
            yield
    finally:
        # Not only in the handler: the clean-up in datasets raises an error of its own.
        if received:
            raise (KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + received[0])) from None


def _encoded(items: CompactList[Conversation], file: Path | None) -> Dataset:
    """The conversations as text, for worker processes: in a file beside another one, or in memory."""
    each = map(items.encoded, range(len(items)))
    batches = (
        pyarrow.record_batch({"conversation": pyarrow.array(texts, pyarrow.string())})
        for texts in iter(lambda: list(islice(each, _ROWS_A_BATCH)), [])
    )
    schema = pyarrow.schema({"conversation": pyarrow.string()})
    if file is None:
        return Dataset(pyarrow.Table.from_batches(batches, schema))
    encoded = file.with_name("conversations.arrow")
    with pyarrow.OSFile(str(encoded), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return Dataset.from_file(str(encoded))


def _tokenize_batch(
    batch: Mapping[str, Sequence[str]],
    indices: Sequence[int],
    tokenizer: PromptTokenizer,
    template: Template,
    system: str | None,
    max_length: int | None,
    overlong: Overlong,
) -> dict[str, list[Any]]:
    """The columns of one batch of conversations. Faults are a column, so that all of them can be reported."""
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    # What is to be dropped is not truncated: where truncation would leave nothing to learn, that is no fault.
    limit = max_length if overlong == "cut" else None
    for text in batch["conversation"]:
        try:
            rendered, fault = render(read_encoded(text).with_system(system), tokenizer, template, limit), ""
        except DataError as error:
            rendered, fault = prompts.Rendered([], []), str(error)
        is_overlong = max_length is not None and len(rendered.input_ids) > max_length
        if is_overlong:
            rendered = prompts.Rendered([], [])
        columns["is_overlong"].append(is_overlong)
        columns["input_ids"].append(rendered.input_ids)
        columns["labels"].append(rendered.labels)
        columns["length"].append(len(rendered.input_ids))
        columns["num_supervised"].append(sum(rendered.loss_mask))
        columns["num_cut_tokens"].append(rendered.num_cut_tokens)
        columns["num_dropped_messages"].append(rendered.num_dropped_messages)
        columns["fault"].append(fault)
    columns["row"] = list(indices)
    return columns


def _without_overlong(
    is_overlong: pyarrow.ChunkedArray, rows: NDArray[numpy.int64], max_length: int | None
) -> NDArray[numpy.int64]:
    kept = rows[~is_overlong.to_numpy()[rows]]
    if not len(kept):
        raise DataError(
            f"data.overlong=drop leaves nothing: all {len(rows):,} samples have more than {max_length} tokens "
            "(data.max_length). Raise data.max_length, or set data.overlong=cut to shorten them"
        )
    return kept


def _without_faulty(faults: pyarrow.ChunkedArray, conversations: Conversations, faulty: Faulty) -> NDArray[numpy.int64]:
    """The samples that can be learnt from. The others are added to what was skipped.

    Raises:
        DataError: There are others, and they may not be skipped; or nothing would be left.
    """
    is_faulty = pyarrow.compute.not_equal(faults, "").to_numpy()
    found = []
    for row in numpy.flatnonzero(is_faulty).tolist():
        source = conversations.sources[row]
        found.append(RowFault(f"{source}: {faults[row].as_py()}", source))
    if found and (faulty == "stop" or is_faulty.all()):
        raise DataError(summarise_faults("samples cannot be learnt from", found))
    conversations.skipped += found
    return numpy.flatnonzero(~is_faulty)


def _fingerprint(items: CompactList[Conversation], tokenizer: Tokenizer, settings: Mapping[str, Any]) -> str:
    """The cache key of the result: 32 hexadecimal digits that change with everything that it depends on."""
    digest = hashlib.sha256()
    renderer = [file.read_text(encoding="utf-8") for file in sorted(Path(prompts.__file__).parent.glob("*.py"))]
    vocabulary = sorted(tokenizer.get_vocab().items())
    special = [*tokenizer.prefix_token_ids, tokenizer.eos_token_id]
    digest.update(json.dumps([__version__, renderer, vocabulary, special, settings], sort_keys=True).encode())
    for index in range(len(items)):
        digest.update(items.encoded(index))
        digest.update(b"\n")  # a separator that does not occur in the JSON
    return digest.hexdigest()[:32]


def _num_processes(num_rows: int, num_workers: int | None) -> int | None:
    """The number of worker processes for a number of rows; None to tokenise in this process."""
    wanted = min(os.cpu_count() or 1, num_rows // _ROWS_A_PROCESS) if num_workers is None else num_workers
    wanted = min(wanted, num_rows)
    return wanted if wanted > 1 else None
