"""Messages as callers of a tokenizer hand them over, turned into conversations for the renderer."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers.utils import get_json_schema

from glmtune.errors import DataError
from glmtune.prompts import Conversation, Message, Role
from glmtune.prompts.messages import read_chat

# For programs that look into a tokenizer's template or want its text, such as TRL, which looks for what the assistant
# generates. `ChatGLMTokenizer.apply_chat_template` does not go through it: in a text, special tokens are letters.
CHAT_TEMPLATE = (
    "[gMASK]sop{% for message in messages %}<|{{ message['role'] }}|>{{ message.get('metadata', '') }}\n "
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


_PAIR: tuple[Role, Role] = ("user", "assistant")


def conversation_from_pairs(query: str, history: Sequence[tuple[str, str]]) -> Conversation:
    """A conversation from earlier pairs of question and answer, and a new question."""
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
        The conversations. Tools stand in the system message, which is the official default one if there is none. Tools
        called at once are called one after the other, each with its own result behind it.

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
