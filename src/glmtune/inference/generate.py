"""Replies to many conversations: rendered prompts, replies in input order.

The engine generates them, and transformers' `generate`, in left-padded batches, those for which it does not.
"""

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from glmtune.errors import ConfigError, DataError, ModelError, summarise_faults
from glmtune.inference.answering import Answered, answer_all, stream_ids, uses_engine
from glmtune.inference.faults import nan_logits, out_of_memory
from glmtune.inference.options import build_generation_config
from glmtune.models.families import shape_of
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Conversation, Message, Template, check_turns, parse_reply, render_prompt

_BATCH_SIZE = 8  # of transformers' `generate`, unless given
_BATCHES_PER_WINDOW = 4  # sorted by length only within a window, so that replies can be written in order early

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """A reply of the model.

    Attributes:
        messages: The assistant's messages; a tool call has the tool's name as metadata.
        is_complete: Whether the model ended the reply itself, rather than `max_new_tokens`.
    """

    messages: tuple[Message, ...]
    is_complete: bool

    @property
    def text(self) -> str:
        """The contents of all messages, separated by line breaks."""
        return "\n".join(message.content for message in self.messages if message.content)

    @property
    def metadata(self) -> str:
        """The name of the tool that the last message calls; empty if it calls none."""
        return self.messages[-1].metadata


def fit_prompt(
    conversation: Conversation, tokenizer: Tokenizer, template: Template, max_length: int
) -> tuple[list[int], int]:
    """Renders a prompt that fits into `max_length` tokens.

    Returns:
        Token ids, the generation marker last, and the number of tokens that were cut.

    Raises:
        DataError: The order of turns is wrong, or the template cannot express the conversation.
    """
    if faults := check_turns(conversation, for_training=False):
        raise DataError("; ".join(faults))
    full = render_prompt(conversation, tokenizer, template)
    if len(full) <= max_length:
        return full, 0
    cut = render_prompt(conversation, tokenizer, template, max_length)
    return cut, len(full) - len(cut)


def fit_prompts(
    conversations: Sequence[Conversation],
    tokenizer: Tokenizer,
    template: Template,
    max_length: int,
    source: str = "conversations",
    first_number: int = 1,
) -> tuple[list[list[int]], int]:
    """Renders many prompts; those that were truncated are reported in one warning.

    Args:
        conversations: Each ends with the user's turn or an observation.
        tokenizer: The tokenizer.
        template: The prompt template.
        max_length: Most tokens of a prompt.
        source: Where they come from, for messages: a file's name.
        first_number: The number of the first one in that file.

    Returns:
        The token ids of each prompt, and the number of prompts that were shortened.

    Raises:
        DataError: Some cannot be rendered; all of them are named.
    """
    prompts, faults, cut_numbers = [], [], []
    for number, conversation in enumerate(conversations, start=first_number):
        try:
            prompt, num_cut_tokens = fit_prompt(conversation, tokenizer, template, max_length)
        except DataError as error:
            faults.append(f"{source}, row {number}: {error}")
            continue
        prompts.append(prompt)
        if num_cut_tokens:
            cut_numbers.append(number)
    if faults:
        raise DataError(summarise_faults(source, faults))
    if cut_numbers:
        logger.warning(
            "%s: %d of %d prompts are longer than %d tokens and were shortened: rows %s%s",
            source,
            len(cut_numbers),
            len(prompts),
            max_length,
            ", ".join(map(str, cut_numbers[:10])),
            " ..." if len(cut_numbers) > 10 else "",
        )
    return prompts, len(cut_numbers)


def max_prompt_tokens(model: PreTrainedModel, generation: GenerationConfig) -> int:
    """The most tokens that a prompt may have so that the reply still fits into the model's context."""
    return shape_of(model).context_length - int(generation.max_new_tokens)


def generate_replies(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    conversations: Sequence[Conversation],
    template: Template = "chatglm3",
    batch_size: int | None = None,
    **options: Any,
) -> list[Reply]:
    """Answers conversations, many at once.

    Args:
        model: A ChatGLM model, bare or within PEFT.
        tokenizer: Its tokenizer.
        conversations: Each ends with the user's turn or an observation.
        template: The prompt template that the model was trained with.
        batch_size: The most prompts at once, halved when memory runs out; None for a number that suits the device.
        **options: Sampling options by their transformers names. Without any, replies are greedy.

    Returns:
        One reply per conversation, in the same order.

    Raises:
        ConfigError: An option or the batch size is wrong.
        DataError: A conversation cannot be rendered.
        ModelError: Memory is too small for a single prompt, or the model computes NaN.
    """
    generation = build_generation_config(tokenizer, shape_of(model).context_length, options)
    prompts, _ = fit_prompts(conversations, tokenizer, template, max_prompt_tokens(model, generation))
    replies: dict[int, Reply] = {}
    with closing(answer(model, tokenizer, prompts, generation, batch_size)) as steps:
        for ended, _ in steps:
            for index, token_ids in ended:
                replies[index] = read_reply(token_ids, tokenizer, template, generation)
    return [replies[index] for index in range(len(prompts))]


def read_reply(
    token_ids: Sequence[int], tokenizer: Tokenizer, template: Template, generation: GenerationConfig
) -> Reply:
    """Parses generated ids, including the one that ended the reply."""
    is_complete = bool(token_ids) and token_ids[-1] in generation.eos_token_id
    content_ids = token_ids[:-1] if is_complete else token_ids
    return Reply(tuple(parse_reply(content_ids, tokenizer, template)), is_complete)


def answer(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    generation: GenerationConfig,
    batch_size: int | None = None,
    first_index: int = 0,
) -> Generator[Answered, None, None]:
    """Answers prompts, many at once.

    Args:
        model: A ChatGLM model, bare or within PEFT.
        tokenizer: Its tokenizer.
        prompts: Token ids.
        generation: From `build_generation_config`.
        batch_size: As for `generate_replies`.
        first_index: The index of the first prompt among all; with a seed, each draws by its own.

    Yields:
        The replies that have ended meanwhile, those of earlier prompts often, but not always, before those of later;
        and the tokens generated so far.

    Raises:
        ConfigError: The batch size is not positive, or this model does not support an option.
        ModelError: Memory is too small for a single prompt, or the model computes NaN.
    """
    check_batch_size(batch_size)
    if not prompts:
        return
    if uses_engine(model, generation):
        yield from answer_all(model, tokenizer, prompts, generation, batch_size, first_index)
        return
    num_tokens = 0
    for batch in generate_batches(model, prompts, generation, batch_size or _BATCH_SIZE):
        num_tokens += sum(len(token_ids) for _, token_ids in batch)
        yield batch, num_tokens


def answer_one(
    model: PreTrainedModel, tokenizer: Tokenizer, prompt: Sequence[int], generation: GenerationConfig
) -> list[int]:
    """The reply to one prompt.

    Args:
        model: As for `answer`, as are the others.

    Raises:
        As `answer`.
    """
    if uses_engine(model, generation):
        return list(stream_ids(model, tokenizer, prompt, generation))
    return generate_ids(model, [prompt], generation)[0]


def generate_batches(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], generation: GenerationConfig, batch_size: int
) -> Iterator[list[tuple[int, list[int]]]]:
    """Generates with transformers, in batches of prompts of similar length, and yields each batch when it is done.

    When memory runs out, the batch size is halved for the rest of the prompts.

    Args:
        model: A ChatGLM model, bare or within PEFT.
        prompts: Token ids.
        generation: From `build_generation_config`.
        batch_size: Most prompts per batch.

    Yields:
        Pairs of a prompt's index and its generated ids.

    Raises:
        ConfigError: The batch size is not positive.
        ModelError: Memory is too small for a single prompt, or the model computes NaN.
    """
    check_batch_size(batch_size)
    window = batch_size * _BATCHES_PER_WINDOW
    order: list[int] = []
    for start in range(0, len(prompts), window):
        order += sorted(range(start, min(start + window, len(prompts))), key=lambda index: -len(prompts[index]))
    start = 0
    while start < len(order):
        batch = order[start : start + batch_size]
        replies = _generate_unless_out_of_memory(model, [prompts[index] for index in batch], generation)
        if replies is None:
            batch_size = len(batch) // 2
            logger.warning("Out of memory with %d prompts at once; continuing with %d.", len(batch), batch_size)
            continue
        yield list(zip(batch, replies, strict=True))
        start += len(batch)


def check_batch_size(batch_size: int | None) -> None:
    """Refuses a batch size that is not positive; None will do.

    Raises:
        ConfigError: It is not.
    """
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size: expected a whole number of at least 1, found {batch_size}")


def _generate_unless_out_of_memory(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], generation: GenerationConfig
) -> list[list[int]] | None:
    """New ids; None if memory runs out for several prompts at once. Memory of the failed attempt is freed."""
    try:
        return generate_ids(model, prompts, generation)
    except ModelError as error:
        if len(prompts) == 1 or not isinstance(error.__cause__, torch.OutOfMemoryError):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def generate_ids(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], generation: GenerationConfig
) -> list[list[int]]:
    """Generates once for a batch of prompts, with transformers.

    Args:
        model: A ChatGLM model, bare or within PEFT.
        prompts: Token ids, of any lengths; padded on the left.
        generation: From `build_generation_config`.

    Returns:
        The new ids of each prompt, up to and including the one that ended the reply.

    Raises:
        ModelError: Memory ran out, or the model computes NaN.
    """
    inputs = generation_inputs(model, prompts, generation)
    width = inputs["input_ids"].shape[1]
    with in_evaluation(model), out_of_memory_as_error(inputs["input_ids"], generation):
        output_ids = model.generate(**inputs, generation_config=generation)
    return [_until_stop(token_ids, generation.eos_token_id) for token_ids in output_ids[:, width:].tolist()]


def generation_inputs(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], generation: GenerationConfig
) -> dict[str, Any]:
    """The arguments of `generate`.

    Returns:
        `input_ids` and `attention_mask`, int64 [B, T] on the model's device, padded on the left; and, as
        `logits_processor`, a check that no logit is NaN.
    """
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), generation.pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, width - len(prompt) :] = 1
    device = model.get_input_embeddings().weight.device
    return {
        "input_ids": input_ids.to(device),
        "attention_mask": attention_mask.to(device),
        "logits_processor": LogitsProcessorList([_RefuseNaN()]),
    }


class _RefuseNaN(LogitsProcessor):
    """Stops at NaN logits, of which the argmax is token 0, so that the reply would be empty."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if scores.isnan().any():
            raise nan_logits()
        return scores


@contextmanager
def in_evaluation(model: PreTrainedModel) -> Iterator[None]:
    """Puts the model in evaluation mode (no dropout), and restores the previous mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def out_of_memory_as_error(input_ids: torch.Tensor, generation: GenerationConfig) -> Iterator[None]:
    """Turns an out-of-memory error into a ModelError that says what did not fit.

    Raises:
        ModelError: Memory ran out.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise out_of_memory(generation.max_new_tokens, *input_ids.shape) from error


def _until_stop(token_ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    kept = list(takewhile(lambda token_id: token_id not in stop_ids, token_ids))
    return token_ids[: len(kept) + 1]
