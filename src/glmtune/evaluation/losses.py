"""Losses of rows and of single continuations, packed into passes of similar length."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from numpy.typing import NDArray

from glmtune.data.dataset import Overlong
from glmtune.data.packing import LossWeight, TokenizedSample, pack
from glmtune.errors import DataError, summarise_faults
from glmtune.evaluation.measures import Measure, ratio
from glmtune.evaluation.rows import EvaluationRow
from glmtune.inference.engine.layers import base_of
from glmtune.inference.generate import in_evaluation
from glmtune.inference.scoring import label_losses
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Template, render

_TOKENS_A_PASS = 4096


@dataclass(frozen=True)
class Rendering:
    """How conversations become samples, as in the training of a run.

    Attributes:
        template: The prompt template.
        system: The system prompt of rows without one.
        max_length: Most tokens of a sample; None for the model's whole context.
        overlong: Whether longer ones are cut or left out.
        loss_weight: Whether each token has the same weight, or each sample.
    """

    template: Template
    system: str | None
    max_length: int | None
    overlong: Overlong = "cut"
    loss_weight: LossWeight = "token"


def render_rows(
    rows: Sequence[EvaluationRow], tokenizer: Tokenizer, rendering: Rendering, context: int
) -> list[TokenizedSample | None]:
    """The samples of the rows; None for one that is left out because it is too long.

    Args:
        rows: The rows.
        tokenizer: The tokenizer.
        rendering: How to render them.
        context: The model's context length in tokens.

    Raises:
        DataError: Rows cannot be rendered; all of them are named.
    """
    limit = min(rendering.max_length or context, context)
    samples: list[TokenizedSample | None] = []
    faults: list[str] = []
    for row in rows:
        conversation = row.conversation.with_system(rendering.system)
        try:
            is_cut = rendering.overlong == "cut"
            rendered = render(conversation, tokenizer, rendering.template, limit if is_cut else None)
        except DataError as error:
            faults.append(f"{row.source}: {error}")
            continue
        fits = len(rendered.input_ids) <= limit
        samples.append(TokenizedSample.of(rendered.input_ids, rendered.labels) if fits else None)
    if faults:
        raise DataError(summarise_faults("samples cannot be evaluated", faults))
    return samples


def loss_measures(losses: NDArray[numpy.float64], loss_weight: LossWeight) -> dict[str, Measure]:
    """The loss, weighted as in training, and the perplexity, in which each token always has the same weight.

    Args:
        losses: From `sample_losses`.
        loss_weight: Whether each token has the same weight, or each sample.
    """
    statistics = losses
    if loss_weight == "sample":
        counts = losses[:, 1:]
        means = numpy.divide(losses[:, :1], counts, out=numpy.zeros_like(counts), where=counts > 0)
        statistics = numpy.concatenate([means, numpy.sign(counts)], axis=1)
    return {
        "loss": Measure(statistics, ratio),
        "perplexity": Measure(losses, lambda sums: float(numpy.exp(min(ratio(sums), 700.0)))),
    }


@torch.no_grad()
def sample_losses(
    model: Any, samples: Sequence[TokenizedSample | None], on_done: Callable[[int], None] = lambda _: None
) -> NDArray[numpy.float64]:
    """The summed loss of each sample, in nats, and the number of its labels, [samples, 2].

    Args:
        model: The model, bare or within PEFT.
        samples: The samples; None has no loss and no labels.
        on_done: Called after each pass with the number of its samples.
    """
    losses = numpy.zeros((len(samples), 2))
    present = [(index, sample) for index, sample in enumerate(samples) if sample is not None]
    base = base_of(model)
    device = base.get_output_embeddings().weight.device
    with in_evaluation(model):
        for part in _passes(sorted(present, key=lambda each: len(each[1].input_ids))):
            packed = pack([sample for _, sample in part]).to(device)
            found = label_losses(base, packed).double().cpu().numpy()
            ends = numpy.cumsum([len(sample.labels) for _, sample in part])
            for (index, sample), of_sample in zip(part, numpy.split(found, ends[:-1]), strict=True):
                losses[index] = of_sample.sum(), len(sample.labels)
            on_done(len(part))
    return losses


def _passes(samples: Sequence[tuple[int, TokenizedSample]]) -> list[list[tuple[int, TokenizedSample]]]:
    """Consecutive samples of at most so many tokens together; a longer one is a pass of its own."""
    passes: list[list[tuple[int, TokenizedSample]]] = []
    num_tokens = _TOKENS_A_PASS
    for each in samples:
        num_tokens += len(each[1].input_ids)
        if num_tokens > _TOKENS_A_PASS or not passes:
            passes.append([])
            num_tokens = len(each[1].input_ids)
        passes[-1].append(each)
    return passes
