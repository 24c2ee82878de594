"""The work behind `apply_chat_template`: messages -> conversations -> ids and masks."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers.utils import get_json_schema

from glmtune.errors import DataError
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Conversation, Message, Role, render, render_prompt
from glmtune.prompts.messages import read_chat

_PAIR: tuple[Role, Role] = ("user", "assistant")


def conversation_from_pairs(query: str, history: Sequence[tuple[str, str]]) -> Conversation:
    """Makes a conversation from earlier pairs of question and answer and a new question."""
    turns = [Message(role, text) for pair in history for role, text in zip(_PAIR, pair, strict=True)]
    return Conversation((*turns, Message("user", query)))


def conversations_from_dicts(
    *conversations: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any] | Callable] | None = None
) -> list[Conversation]:
    """Reads conversations from `role`/`content` dictionaries, as data files are read.

    Args:
        *conversations: Each a list of messages, in any of the forms that `glmtune.prompts.messages` reads. Contents
            may be empty.
        tools: Tools that every conversation offers: JSON schemas, OpenAI's wrapping of them, or annotated functions.

    Returns:
        The conversations. Tools are listed in the system message, by default the official one. Parallel tool calls are
        serialised, each followed by its result.

    Raises:
        DataError: A message is malformed or the turns are out of order.
    """
    definitions = [get_json_schema(tool) if callable(tool) else tool for tool in tools or ()]
    return [_conversation(messages, definitions) for messages in conversations]


def _conversation(messages: Sequence[dict[str, Any]], tools: list[Any]) -> Conversation:
    row = {"messages": list(messages), "tools": tools}
    conversation, faults = read_chat(row, "messages", for_training=False)
    if faults:
        raise DataError("; ".join(faults))
    return conversation


def rendered_as_asked(
    conversation: Conversation, tokenizer: Tokenizer, add_generation_prompt: bool, max_length: int | None
) -> tuple[list[int], list[int]]:
    """Renders a conversation as a prompt, or as in training if it ends with an answer.

    Args:
        conversation: The conversation.
        tokenizer: The tokenizer, whose template is used.
        add_generation_prompt: Whether to render a prompt in any case.
        max_length: Maximum number of tokens; None for no limit.

    Returns:
        The ids, and a mask with 1 for the assistant's tokens.
    """
    if not add_generation_prompt and conversation.messages[-1].role == "assistant":
        rendered = render(conversation, tokenizer, tokenizer.template, max_length)
        return rendered.input_ids, [int(has_loss) for has_loss in rendered.loss_mask]
    ids = render_prompt(conversation, tokenizer, tokenizer.template, max_length)
    if not add_generation_prompt and tokenizer.template == "chatglm3":
        ids = ids[:-1]  # the generation marker, which is one token
    return ids, [0] * len(ids)


def padded_masks(masks: list[list[int]], padded_ids: list[list[int]], padding_side: str) -> list[list[int]]:
    """Pads masks with zeros to the lengths of their padded ids, on the same side."""
    fills = [[0] * (len(ids) - len(mask)) for ids, mask in zip(padded_ids, masks, strict=True)]
    return [fill + mask if padding_side == "left" else mask + fill for fill, mask in zip(fills, masks, strict=True)]
