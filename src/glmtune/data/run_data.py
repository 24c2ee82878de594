"""Reads and tokenises a run's data."""

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from datasets import Dataset
from numpy.typing import NDArray

from glmtune.config import DataSection, PromptSection, embedded_data
from glmtune.data.checking import try_find_leaks
from glmtune.data.compact import SourceList
from glmtune.data.dataset import tokenize_conversations
from glmtune.data.findings import Finding, find, find_in_tokens
from glmtune.data.formats import Conversations, read_conversations
from glmtune.data.rows import RowFault
from glmtune.data.samples import SampleDataset
from glmtune.data.stats import DataStats, set_aside, split_line
from glmtune.errors import ConfigError
from glmtune.language.plurals import count
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Conversation

_MOST_COMPARED = 20_000  # rows; some seconds


@dataclass(frozen=True)
class RunData:
    """The data of a run, tokenised.

    Attributes:
        train: The training samples.
        eval: The evaluation samples, if there are any.
        stats: Statistics of the data.
        first_conversation: The conversation of the first training sample, without the run's system prompt.
        eval_fingerprint: Of evaluation samples from files of their own; empty for others.
        eval_conversations: The conversations of the evaluation samples, without the run's system prompt.
        skipped: What is wrong with rows that were left out, of training and of evaluation.
        findings: What is worth a look in them, if that was asked for.
        unchecked: What could not be looked for, with the reason.
    """

    train: SampleDataset
    eval: SampleDataset | None
    stats: DataStats
    first_conversation: Conversation
    eval_fingerprint: str
    eval_conversations: Sequence[Conversation]
    skipped: Sequence[RowFault]
    findings: Sequence[Finding]
    unchecked: Sequence[str]

    def split_line(self) -> str:
        """Says how many samples are for training, and how many for evaluation."""
        return split_line(len(self.train), 0 if self.eval is None else len(self.eval))


def load_run_data(
    data: DataSection, prompt: PromptSection, tokenizer: Tokenizer, seed: int, *, looks: bool = False
) -> RunData:
    """Reads and tokenises the data of a run.

    Args:
        data: The `data` section of the configuration.
        prompt: The `prompt` section, with the template decided.
        tokenizer: The base's tokenizer.
        seed: The seed for drawing the evaluation split, and rows from files with weights.
        looks: Whether to look for what is worth a look, which takes a fraction of the time that tokenising does.

    Raises:
        DataError: Files or rows are wrong.
        ConfigError: Nothing would be left to train on.
    """
    conversations = read_conversations(
        data.path or embedded_data(), data.fields, data.join, faulty=data.faulty, seed=seed
    )
    dataset, stats = _tokenize(conversations, data, prompt, tokenizer)
    trained, evaluated = dataset, None
    held_out, eval_fingerprint, skipped = conversations, "", conversations.skipped
    if data.eval_path is not None:
        held_out = read_conversations(data.eval_path, data.fields, data.join, faulty=data.faulty)
        evaluated, eval_stats = _tokenize(held_out, data, prompt, tokenizer)
        eval_fingerprint, skipped = eval_stats.fingerprint, skipped + held_out.skipped
    elif data.eval_fraction > 0:
        held, kept = _held_out(conversations.sources, dataset["row"], data.eval_fraction, seed)
        trained, evaluated = dataset.select(kept), dataset.select(held)
    evaluation = None if evaluated is None else SampleDataset(evaluated)
    eval_conversations = [] if evaluated is None else held_out.items.take(evaluated["row"])
    findings: list[Finding] = []
    unchecked: list[str] = []
    if looks:
        if evaluated is not None:
            findings, unchecked = _leaks(conversations, trained["row"], held_out, evaluated["row"])
        findings += [*find(conversations), *find_in_tokens(stats, data.max_length)]
    return RunData(
        SampleDataset(trained),
        evaluation,
        stats,
        conversations.items[trained[0]["row"]],
        eval_fingerprint,
        eval_conversations,
        skipped,
        findings,
        unchecked,
    )


def _leaks(
    training: Conversations, training_rows: Sequence[int], evaluation: Conversations, evaluation_rows: Sequence[int]
) -> tuple[list[Finding], list[str]]:
    number = len(training_rows) + len(evaluation_rows)
    if number > _MOST_COMPARED:
        reason = f"of {number:,} rows, only glmtune data check TRAINING --eval EVALUATION does"
        return [], [f"whether evaluation rows stand in training: {reason}"]
    return try_find_leaks(training.take(training_rows), evaluation.take(evaluation_rows))


def _held_out(
    sources: SourceList, rows: Sequence[int], fraction: float, seed: int
) -> tuple[NDArray[numpy.int64], NDArray[numpy.int64]]:
    """Draws the samples to evaluate on, and returns their indices and those of the others.

    A row that is there several times, by the weight of its file, is evaluated once and not trained on.

    Args:
        sources: The sources of all conversations.
        rows: By sample, the index of its conversation.
        fraction: The share of distinct rows to draw.
        seed: Decides which.
    """
    keys = sources.keys()[numpy.fromiter(rows, numpy.int64, len(rows))]
    _, firsts, groups = numpy.unique(keys, return_index=True, return_inverse=True)
    in_order = numpy.argsort(firsts)  # the distinct rows, as they come in the data
    drawn = array("q", in_order.tobytes())
    random.Random(seed).shuffle(drawn)
    num_held_out = set_aside(fraction, len(drawn))
    if num_held_out == len(drawn):
        raise ConfigError(f"data.eval_fraction leaves nothing to train on, of {count(len(drawn), 'samples')}")
    is_held = numpy.zeros(len(drawn), bool)
    is_held[drawn[:num_held_out]] = True
    return numpy.sort(firsts[is_held]), numpy.flatnonzero(~is_held[groups])


def _tokenize(
    conversations: Conversations, data: DataSection, prompt: PromptSection, tokenizer: Tokenizer
) -> tuple[Dataset, DataStats]:
    template: Any = prompt.template  # no longer `auto`
    return tokenize_conversations(
        conversations,
        tokenizer,
        template=template,
        system=prompt.system,
        max_length=data.max_length,
        overlong=data.overlong,
        faulty=data.faulty,
        num_workers=data.num_workers,
    )
