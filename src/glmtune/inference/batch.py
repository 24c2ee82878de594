"""Generates a file of replies from a file of questions, many at once; an interrupted run is resumed."""

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from transformers import PreTrainedModel

from glmtune.data.formats import read_questions
from glmtune.data.readers import expand_path, find_files
from glmtune.errors import ConfigError, StorageError, show_names, show_text
from glmtune.files import check_writable_folder, held, storage_faults
from glmtune.inference.generate import (
    Reply,
    answer,
    check_batch_size,
    fit_prompts,
    max_prompt_tokens,
    read_reply,
)
from glmtune.inference.options import build_generation_config, remembered_prompt
from glmtune.inference.origin import check_origin, origin_of, write_origin
from glmtune.inference.reply_files import ReplyFile, check_reply_suffix
from glmtune.language import localise
from glmtune.language.plurals import count
from glmtune.language.terminal import TerminalConsole
from glmtune.models.families import shape_of
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Template


@dataclass(frozen=True)
class GenerationReport:
    """The result of `generate_file`.

    Attributes:
        output_path: The file of replies, complete.
        num_rows: Replies in it.
        num_resumed: Replies that an earlier, interrupted run had written.
        num_cut: New replies whose prompt was truncated.
        num_unfinished: New replies that `max_new_tokens` cut short.
        seconds: The time that generation took, in seconds.
    """

    output_path: Path
    num_rows: int
    num_resumed: int
    num_cut: int
    num_unfinished: int
    seconds: float

    def summary(self) -> str:
        """The result in one line."""
        new = self.num_rows - self.num_resumed
        line = (
            f"{show_text(str(self.output_path))}: {count(self.num_rows, 'replies')}, {new} of them new, "
            f"in {self.seconds:.1f} s"
        )
        line += f"; shortened: {count(self.num_cut, 'prompts')}" if self.num_cut else ""
        line += f"; cut at max_new_tokens: {count(self.num_unfinished, 'replies')}" if self.num_unfinished else ""
        return line


def check_generation_files(
    input_path: str | Path, output_path: str | Path, fields: Mapping[str, str] | None = None
) -> None:
    """Checks the questions and the output file before a large model is loaded.

    Args:
        input_path: As for `generate_file`, as are `output_path` and `fields`.

    Raises:
        ConfigError: The output is not a file, or is the input itself.
        DataError: The input is wrong.
        StorageError: The output cannot be written, or is being written by another process.
    """
    _check_output(input_path, output_path)
    read_questions(input_path, fields)


def generate_file(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    input_path: str | Path,
    output_path: str | Path,
    *,
    template: Template | None = None,
    system: str | None = None,
    batch_size: int | None = None,
    fields: Mapping[str, str] | None = None,
    join: str = "\n",
    overwrite: bool = False,
    console: Console | None = None,
    **options: Any,
) -> GenerationReport:
    """Answers all questions of a file.

    The output has a row for each question, in the order of the input: `index` (from 0), the row's own columns, `reply`,
    and for a tool call `metadata`, the tool's name. Columns of the input that have one of these names are written as
    `input_index` and so on, unless the input is an earlier output. If the output exists already, generation is resumed
    after its last row. A hidden file beside it notes what its replies are made with, so that no others are added.

    Args:
        model: A ChatGLM model, bare or within PEFT.
        tokenizer: Its tokenizer.
        input_path: As `read_questions` takes it.
        output_path: A file named `.jsonl` or `.json`, for JSON lines, or `.csv`; its folder is created if needed.
        template: The prompt template; None for the one stored with the tokenizer.
        system: The system prompt of rows without one; None for the tokenizer's, "" for none at all.
        batch_size: The most questions at once, halved when memory runs out; None for a number that suits the device.
        fields: Other column names, as `read_questions` takes them.
        join: The separator between `instruction` and `input`.
        overwrite: Whether an existing output is replaced rather than continued.
        console: Where notes and the progress bar go; standard error if None.
        **options: Sampling options by their transformers names. Without any, replies are greedy.

    Returns:
        The result.

    Raises:
        ConfigError: An option or the batch size is wrong, the output is not a file, or its replies were made with
            another adapter, base, prompt or options.
        DataError: The input is wrong, or the output exists and belongs to another input.
        StorageError: The output cannot be written, or is being written by another process. The lines already written
            are kept, and the same call resumes after them.
        ModelError: Memory is too small for a single prompt.
    """
    template, system = remembered_prompt(tokenizer, template, system)
    generation = build_generation_config(tokenizer, shape_of(model).context_length, options)
    check_batch_size(batch_size)
    output = _check_output(input_path, output_path)
    questions = read_questions(input_path, fields, join)
    with storage_faults(show_text(str(output))):
        output.parent.mkdir(parents=True, exist_ok=True)
    with _held(output):
        replies = ReplyFile(output, questions)
        num_done = 0 if overwrite else _resume(output, replies)
        origin = origin_of(model, template, system, {**options, "join": join, "fields": dict(fields or {}) or None})
        if num_done:
            check_origin(output, origin)
        console = console or TerminalConsole(stderr=True)
        if replies.renamed:
            names, new = show_names(replies.renamed), show_names(replies.renamed.values())
            line = f"{show_text(str(input_path))}: the columns {names} are written as {new}"
            console.print(line, markup=False, highlight=False)
        if num_done:
            console.print(
                f"{show_text(str(output))}: {count(num_done, 'replies')} kept from before.",
                markup=False,
                highlight=False,
            )
        rest = questions[num_done:]
        max_tokens = max_prompt_tokens(model, generation)
        conversations = [question.conversation.with_system(system) for question in rest]
        prompts, num_cut = fit_prompts(
            conversations, tokenizer, template, max_tokens, show_text(str(input_path)), first_number=num_done + 1
        )
        with storage_faults(show_text(str(output))):
            if not num_done:
                output.write_bytes(replies.head)
        write_origin(output, origin)

        started = time.monotonic()
        waiting: dict[int, Reply] = {}
        num_written = num_unfinished = 0
        answering = answer(model, tokenizer, prompts, generation, batch_size, first_index=num_done)
        with _progress(console) as progress, closing(answering) as steps:
            task = progress.add_task(localise("generating"), total=len(questions), completed=num_done, num_tokens=0)
            for ended, num_tokens in steps:
                progress.update(task, num_tokens=num_tokens)
                for index, token_ids in ended:
                    waiting[index] = read_reply(token_ids, tokenizer, template, generation)
                    num_unfinished += not waiting[index].is_complete
                lines = []
                while num_written in waiting:
                    lines.append(replies.line(num_done + num_written, waiting.pop(num_written)))
                    num_written += 1
                if lines:
                    _append(output, lines)
                    progress.advance(task, len(lines))  # one that waits for an earlier one would be lost with the run
    return GenerationReport(
        output, len(questions), num_done, num_cut, num_unfinished, seconds=time.monotonic() - started
    )


def _check_output(input_path: str | Path, output_path: str | Path) -> Path:
    """The file to write to, after all checks that are possible without writing."""
    output = expand_path(output_path)
    name = show_text(str(output_path))
    with storage_faults(name):
        if output.is_dir():
            raise ConfigError(f"{name}: expected a file to write replies to, found a folder; name a file in it")
        check_writable_folder(output.parent)
        if not output.exists():
            check_reply_suffix(output)
            return output
        if not output.is_file():
            raise ConfigError(f"{name}: expected a file to write replies to, found a device or a pipe")
        inputs = [expand_path(file) for file in find_files(input_path)]
        if any(file.exists() and output.samefile(file) for file in inputs):
            raise ConfigError(f"{name}: input and output are the same file; choose another --output")
        check_reply_suffix(output)
    with _held(output):
        _append(output, [])
    return output


def _held(output: Path) -> AbstractContextManager[None]:
    """The lock of the file itself, with symbolic links resolved."""
    return held(os.path.realpath(output), "is being written")


def _append(output: Path, lines: Iterable[bytes]) -> None:
    """Appends lines to a file, which must exist: if it was deleted, the output must not restart in the middle."""
    try:
        with storage_faults(show_text(str(output))), output.open("r+b") as stream:
            stream.seek(0, os.SEEK_END)
            stream.writelines(lines)
    except StorageError as error:
        raise StorageError(
            f"{error}. Once that is fixed, run the same command again: it continues where it stopped"
        ) from error


def _resume(output: Path, replies: ReplyFile) -> int:
    """Checks the rows of an earlier run, drops an incomplete last one, and returns the number of complete ones."""
    name = show_text(str(output))
    with storage_faults(name):
        if not output.exists():
            return 0
        content = output.read_bytes()
    num_rows, size = replies.count_rows(content, name)
    if size < len(content):
        with storage_faults(name):
            os.truncate(output, size)
    return num_rows


class _RateColumn(ProgressColumn):
    """Generated tokens a second, since the beginning."""

    def render(self, task: Task) -> Text:
        num_tokens, seconds = task.fields["num_tokens"], task.elapsed
        return Text(f"{num_tokens / seconds:.0f} tokens/s" if num_tokens and seconds else "- tokens/s")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TextColumn(localise("elapsed")),
        TimeElapsedColumn(),
        TextColumn(localise("left")),
        TimeRemainingColumn(),
        console=console,
    )
