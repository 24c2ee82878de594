"""Reads and tokenises a run's data."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glmtune.config import RunConfig, embedded_data
from glmtune.data.dataset import tokenize_conversations
from glmtune.data.formats import read_conversations
from glmtune.data.samples import SampleDataset
from glmtune.data.stats import DataStats
from glmtune.errors import ConfigError
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Conversation, Template


@dataclass(frozen=True)
class SelfTestSample:
    """A training sample, as read and as trained on.

    Attributes:
        conversation: The conversation, without the run's system prompt.
        input_ids: The ids that the model was trained on.
        max_length: The limit under which they were rendered.
    """

    conversation: Conversation
    input_ids: Sequence[int]
    max_length: int | None


@dataclass(frozen=True)
class RunData:
    """The data of a run, tokenised.

    Attributes:
        train: The training samples.
        eval: The evaluation samples, if there are any.
        stats: Statistics of the data.
        sample: The first sample, for the self-test.
        eval_fingerprint: Of evaluation samples from files of their own; empty for others.
    """

    train: SampleDataset
    eval: SampleDataset | None
    stats: DataStats
    sample: SelfTestSample
    eval_fingerprint: str = ""


def load_run_data(config: RunConfig, tokenizer: Tokenizer, seed: int) -> RunData:
    """Reads the data that a configuration names.

    Args:
        config: The configuration.
        tokenizer: The base's tokenizer.
        seed: The seed for drawing the evaluation split.

    Raises:
        DataError: Files or rows are wrong.
        ConfigError: Nothing would be left to train on.
    """
    settings = config.data.model_dump(exclude={"loss_weight"})
    template: Any = config.prompt.template  # no longer `auto`
    return _load_data(tokenizer, template, config.prompt.system, seed, **settings)


def _load_data(
    tokenizer: Tokenizer,
    template: Template,
    system: str | None,
    seed: int,
    *,
    path: str | list[str] | None,
    eval_path: str | list[str] | None,
    eval_fraction: float,
    max_length: int | None,
    fields: Mapping[str, str],
    join: str,
    num_workers: int | None,
) -> RunData:
    """Reads and tokenises the data, and splits off an evaluation set if the configuration asks for one."""
    settings: dict[str, Any] = {
        "template": template,
        "system": system,
        "max_length": max_length,
        "num_workers": num_workers,
    }
    conversations = read_conversations(path or embedded_data(), fields, join)
    dataset, stats = tokenize_conversations(conversations, tokenizer, **settings)
    chosen = list(range(len(dataset)))
    evaluated, eval_fingerprint = None, ""
    if eval_path is not None:
        held_out = read_conversations(eval_path, fields, join)
        evaluated, eval_stats = tokenize_conversations(held_out, tokenizer, **settings)
        eval_fingerprint = eval_stats.fingerprint
    elif eval_fraction > 0:
        random.Random(seed).shuffle(chosen)
        num_held_out = max(1, round(eval_fraction * len(dataset)))
        if num_held_out == len(dataset):
            raise ConfigError(f"data.eval_fraction leaves nothing to train on: there are {len(dataset)} samples")
        evaluated = dataset.select(sorted(chosen[:num_held_out]))
        chosen = sorted(chosen[num_held_out:])
    first = chosen[0]
    sample = SelfTestSample(conversations.items[first], dataset[first]["input_ids"], max_length)
    trained = dataset if evaluated is None else dataset.select(chosen)
    held = None if evaluated is None else SampleDataset(evaluated)
    return RunData(SampleDataset(trained), held, stats, sample, eval_fingerprint)
