"""Answers to the rows, through the engine where it supports the model."""

from collections.abc import Callable, Sequence
from contextlib import closing

from transformers import PreTrainedModel

from glmtune.evaluation.rows import EvaluationRow
from glmtune.evaluation.text_metrics import Answer
from glmtune.inference.engine.layers import base_of
from glmtune.inference.generate import answer, fit_prompts, max_prompt_tokens, read_reply
from glmtune.inference.options import DEFAULT_MAX_NEW_TOKENS, build_generation_config
from glmtune.models.families import shape_of
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Template

_LEAST_NEW_TOKENS, _SPARE_TOKENS = 64, 32
_ROWS_ON_GPU, _ROWS_ON_CPU = 256, 32  # more than for a file of replies: the first one is not waited for


def enough_new_tokens(rows: Sequence[EvaluationRow], tokenizer: Tokenizer, context_length: int) -> int:
    """How long answers may get: 32 tokens more than the longest reference, from 64 to 512.

    Args:
        rows: The rows.
        tokenizer: The tokenizer.
        context_length: The model's context length, half of which is kept for the prompt.
    """
    longest = max(len(tokenizer.encode_text(row.label)) for row in rows)
    return min(max(longest + _SPARE_TOKENS, _LEAST_NEW_TOKENS), DEFAULT_MAX_NEW_TOKENS, max(context_length // 2, 1))


def answer_rows(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    rows: Sequence[EvaluationRow],
    *,
    template: Template,
    system: str | None,
    max_new_tokens: int,
    batch_size: int | None = None,
    on_done: Callable[[int], None] = lambda _: None,
) -> list[Answer]:
    """Greedy answers to the questions of the rows.

    Args:
        model: The model, bare or within PEFT.
        tokenizer: Its tokenizer.
        rows: The rows.
        template: The prompt template.
        system: The system prompt of rows without one.
        max_new_tokens: Most tokens of an answer.
        batch_size: The most questions at once; None for a number that suits the device.
        on_done: Called with the number of answers that have ended since the last time.

    Returns:
        An answer for each row, in their order.

    Raises:
        ConfigError: `max_new_tokens` or the batch size is wrong.
        DataError: A row cannot be rendered.
        ModelError: Memory is too small for a single prompt, or the model computes NaN.
    """
    options = {"max_new_tokens": max_new_tokens}
    generation = build_generation_config(tokenizer, shape_of(model).context_length, options)
    conversations = [row.asked.with_system(system) for row in rows]
    prompts, _ = fit_prompts(conversations, tokenizer, template, max_prompt_tokens(model, generation), "evaluation")
    if batch_size is None:
        batch_size = _ROWS_ON_GPU if base_of(model).device.type == "cuda" else _ROWS_ON_CPU
    answers: dict[int, Answer] = {}
    with closing(answer(model, tokenizer, prompts, generation, batch_size)) as steps:
        for ended, _ in steps:
            for index, token_ids in ended:
                reply, row = read_reply(token_ids, tokenizer, template, generation), rows[index]
                answers[index] = Answer(row.question, row.label, reply.text, reply.is_complete, len(token_ids))
            if ended:
                on_done(len(ended))
    return [answers[index] for index in range(len(rows))]
