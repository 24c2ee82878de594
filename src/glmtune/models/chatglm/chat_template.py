"""Turns the messages passed to a tokenizer into conversations for the renderer."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers.utils import get_json_schema

from glmtune.errors import DataError
from glmtune.prompts import Conversation, Message, Role
from glmtune.prompts.messages import read_chat

# For programs that inspect or render a tokenizer's template, such as TRL, which looks for its generation block.
# `ChatGLMTokenizer.apply_chat_template` does not use it: in its text, special tokens would be encoded as plain letters.
CHAT_TEMPLATE = (
    "[gMASK]sop{% for message in messages %}<|{{ message['role'] }}|>{{ message.get('metadata', '') }}\n "
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


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
