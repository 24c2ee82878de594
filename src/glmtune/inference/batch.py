"""Generates a file of replies from a file of questions, batch by batch; an interrupted run is resumed."""

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
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

from glmtune.data.formats import Question, read_questions
from glmtune.data.readers import expand_path
from glmtune.errors import ConfigError, DataError, StorageError, show_text
from glmtune.files import check_writable_folder, held, storage_faults
from glmtune.inference.generate import (
    Reply,
    check_batch_size,
    fit_prompts,
    generate_batches,
    max_prompt_tokens,
    read_reply,
)
from glmtune.inference.options import build_generation_config, remembered_prompt
from glmtune.language import localise
from glmtune.language.terminal import TerminalConsole
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Template

_OWN_KEYS = ("index", "reply", "metadata")


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
            f"{show_text(str(self.output_path))}: {self.num_rows} replies, {new} of them new, in {self.seconds:.1f} s"
        )
        line += f"; {self.num_cut} prompts were shortened" if self.num_cut else ""
        return line + (f"; {self.num_unfinished} replies were cut at max_new_tokens" if self.num_unfinished else "")


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
    batch_size: int = 8,
    fields: Mapping[str, str] | None = None,
    join: str = "\n",
    console: Console | None = None,
    **options: Any,
) -> GenerationReport:
    """Answers all questions of a file.

    The output has one JSON object per line, in the order of the input: `index` (from 0), the row's own fields, `reply`,
    and for a tool call `metadata`, the tool's name. If it exists already, generation is resumed after its last line.

    Args:
        model: A ChatGLM model, bare or within PEFT.
        tokenizer: Its tokenizer.
        input_path: As `read_questions` takes it.
        output_path: A JSON lines file; its folder is created if needed.
        template: The prompt template; None for the one stored with the tokenizer.
        system: The system prompt of rows without one; None for the tokenizer's, "" for none at all.
        batch_size: The number of prompts per batch; halved when memory runs out.
        fields: Other column names, as `read_questions` takes them.
        join: The separator between `instruction` and `input`.
        console: Where notes and the progress bar go; standard error if None.
        **options: Sampling options by their transformers names. Without any, replies are greedy.

    Returns:
        The result.

    Raises:
        ConfigError: An option or the batch size is wrong, or the output is not a file.
        DataError: The input is wrong, or the output exists and belongs to another input.
        StorageError: The output cannot be written, or is being written by another process. The lines already written
            are kept, and the same call resumes after them.
        ModelError: Memory is too small for a single prompt.
    """
    template, system = remembered_prompt(tokenizer, template, system)
    generation = build_generation_config(tokenizer, model.config.seq_length, options)
    check_batch_size(batch_size)
    output = _check_output(input_path, output_path)
    questions = read_questions(input_path, fields, join)
    with storage_faults(show_text(str(output))):
        output.parent.mkdir(parents=True, exist_ok=True)
    with _held(output):
        num_done = _resume(output, questions)
        console = console or TerminalConsole(stderr=True)
        if num_done:
            console.print(
                f"{show_text(str(output))}: {num_done} replies are there already and are kept; for another "
                "model or other options, choose another file.",
                markup=False,
                highlight=False,
            )
        rest = questions[num_done:]
        max_tokens = max_prompt_tokens(model, generation)
        source = show_text(str(input_path))
        conversations = [question.conversation.with_system(system) for question in rest]
        prompts = fit_prompts(conversations, tokenizer, template, max_tokens, source, first_number=num_done + 1)
        with storage_faults(show_text(str(output))):
            output.touch()

        started = time.monotonic()
        waiting: dict[int, Reply] = {}
        num_written = num_unfinished = 0
        with _progress(console) as progress:
            task = progress.add_task(localise("generating"), total=len(questions), completed=num_done)
            for batch in generate_batches(model, [prompt.input_ids for prompt in prompts], generation, batch_size):
                for index, token_ids in batch:
                    waiting[index] = read_reply(token_ids, tokenizer, template, generation)
                    num_unfinished += not waiting[index].is_complete
                lines = []
                while num_written in waiting:
                    reply = waiting.pop(num_written)
                    lines.append(_line(num_done + num_written, rest[num_written].values, reply))
                    num_written += 1
                _append(output, lines)
                progress.advance(task, len(batch))
    num_cut = sum(prompt.num_cut_tokens > 0 for prompt in prompts)
    return GenerationReport(
        output, len(questions), num_done, num_cut, num_unfinished, seconds=time.monotonic() - started
    )


def _check_output(input_path: str | Path, output_path: str | Path) -> Path:
    """The file to write to, after all checks that are possible without writing."""
    output, questions = expand_path(output_path), expand_path(input_path)
    name = show_text(str(output_path))
    with storage_faults(name):
        if output.is_dir():
            raise ConfigError(f"{name}: expected a file to write replies to, found a folder; name a file in it")
        check_writable_folder(output.parent)
        if not output.exists():
            return output
        if not output.is_file():
            raise ConfigError(f"{name}: expected a file to write replies to, found a device or a pipe")
        if questions.exists() and output.samefile(questions):
            raise ConfigError(f"{name}: input and output are the same file; choose another --output")
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


def _resume(output: Path, questions: Sequence[Question]) -> int:
    """Checks the lines of an earlier run, drops an incomplete last one, and returns the number of complete ones."""
    with storage_faults(show_text(str(output))):
        if not output.exists():
            return 0
        *lines, unfinished = output.read_bytes().split(b"\n")
    if len(lines) > len(questions):
        raise DataError(_mismatch(output, f"it has {len(lines)} rows, the input only {len(questions)}"))
    for number, (line, question) in enumerate(zip(lines, questions, strict=False), start=1):
        try:
            written = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(_mismatch(output, f"line {number} is not JSON")) from error
        if not isinstance(written, dict) or "reply" not in written:
            raise DataError(_mismatch(output, f'line {number} has no "reply"'))
        if _dump(_without_own_keys(written)) != _dump(_without_own_keys(json.loads(_dump(question.values)))):
            raise DataError(_mismatch(output, f"line {number} answers another question than {question.source} asks"))
    if unfinished:
        if not any(_may_begin(unfinished, len(lines), question) for question in questions[len(lines) :][:1]):
            raise DataError(_mismatch(output, "its last line is not the beginning of the next reply"))
        with storage_faults(show_text(str(output))):
            os.truncate(output, sum(len(line) + 1 for line in lines))
    return len(lines)


def _may_begin(unfinished: bytes, index: int, question: Question) -> bool:
    """Whether bytes are the beginning of a question's line, so that only this program's own output is dropped."""
    start = _encode({"index": index, **_without_own_keys(question.values), "reply": ""}).removesuffix(b'"}\n')
    return unfinished.startswith(start) or start.startswith(unfinished)


def _mismatch(output: Path, reason: str) -> str:
    name = show_text(str(output))
    return f"{name} exists and does not continue this input: {reason}. Choose another --output, or delete the file"


def _line(index: int, values: Mapping[str, Any], reply: Reply) -> bytes:
    row = {"index": index, **_without_own_keys(values), "reply": reply.text}
    if reply.metadata:
        row["metadata"] = reply.metadata
    return _encode(row)


def _encode(row: Mapping[str, Any]) -> bytes:
    """A line of the output. A lone surrogate, which UTF-8 cannot encode, stays a JSON escape."""
    return f"{_dump(row)}\n".encode(errors="backslashreplace")


def _without_own_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """The row without the names that the output itself uses, so that an output can be the next input."""
    return {name: value for name, value in values.items() if name not in _OWN_KEYS}


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


class _RateColumn(ProgressColumn):
    """Samples a second."""

    def render(self, task: Task) -> Text:
        return Text(localise(f"{task.speed:.2f} replies/s" if task.speed else "- replies/s"))


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
