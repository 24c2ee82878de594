"""Conversations, before and after rendering."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

Role = Literal["system", "user", "assistant", "observation"]
Template = Literal["chatglm3", "chatglm2", "tutorial"]
TEMPLATES: tuple[Template, ...] = get_args(Template)
Encode = Callable[[str], list[int]]

IGNORED_LABEL = -100  # torch's cross entropy leaves it out


class PromptTokenizer(Protocol):
    """What the renderer needs of a tokenizer."""

    @property
    def eos_token_id(self) -> int:
        """The id of `</s>`."""

    @property
    def prefix_token_ids(self) -> list[int]:
        """The ids of `[gMASK] sop`."""

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text, without a prefix; special tokens in the text are not recognised."""

    def get_command(self, token: str) -> int:
        """The id of a special token such as `<|user|>`."""

    def decode_text(self, token_ids: list[int]) -> str:
        """The text of ids, without special tokens."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: Who speaks.
        content: The text of the turn.
        metadata: The rest of the role token's line: the tool's name in a tool call, otherwise empty.
        tools: Tool definitions of a system message, as JSON values.
        is_supervised: Whether an assistant turn is supervised; other turns never are.
    """

    role: Role
    content: str
    metadata: str = ""
    tools: Sequence[Any] = ()
    is_supervised: bool = True

    @property
    def has_loss(self) -> bool:
        """Whether the loss counts the message: a supervised turn of the assistant."""
        return self.role == "assistant" and self.is_supervised

    def text(self) -> str:
        """The content as the model sees it: a system message's tools follow it as indented JSON."""
        if not self.tools:
            return self.content
        return f"{self.content}\n{json.dumps(list(self.tools), indent=4, ensure_ascii=False)}"


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order. `check_turns` checks that the order is valid."""

    messages: tuple[Message, ...]

    def with_system(self, system: str | None) -> "Conversation":
        """The conversation with a system prompt in front, unless it has its own or `system` is None or empty."""
        if not system or (self.messages and self.messages[0].role == "system"):
            return self
        return Conversation((Message("system", system), *self.messages))


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation.

    Attributes:
        input_ids: Token ids.
        loss_mask: For each id, whether the model must learn to produce it.
        num_cut_tokens: Tokens that truncation removed from within messages.
        num_dropped_messages: Whole messages that truncation dropped.
    """

    input_ids: list[int]
    loss_mask: list[bool]
    num_cut_tokens: int = 0
    num_dropped_messages: int = 0

    @property
    def labels(self) -> list[int]:
        """The ids where supervised, `IGNORED_LABEL` elsewhere."""
        return [i if has_loss else IGNORED_LABEL for i, has_loss in zip(self.input_ids, self.loss_mask, strict=True)]


def check_turns(conversation: Conversation, *, for_training: bool = True) -> list[str]:
    """Lists the faults in the order of turns.

    Args:
        conversation: The conversation.
        for_training: Whether it has to end with the assistant's turn (training) or must not (generation).

    Returns:
        One sentence per fault; empty if the order is valid.
    """
    roles = [message.role for message in conversation.messages]
    if not roles:
        return ["there are no messages"]
    faults = []
    previous: str | None = None
    for number, role in enumerate(roles, start=1):
        if role == "system" and number > 1:
            faults.append(f"message {number} is a system message; only the first message may be one")
        elif role == "assistant" and previous in (None, "system"):
            faults.append(f"message {number} is the assistant's, but nobody has asked anything yet")
        elif role == "observation" and previous != "assistant":
            faults.append(f"message {number} is an observation, but the assistant has not called a tool before it")
        elif role == "user" and previous in ("user", "observation"):
            faults.append(f"message {number} is the user's, but the {previous}'s before it has no answer")
        previous = role
    if for_training and roles[-1] != "assistant":
        faults.append(f"the last message is the {roles[-1]}'s; it has to be the assistant's, to be learnt")
    if not for_training and roles[-1] not in ("user", "observation"):
        faults.append(
            f"the last message is the {roles[-1]}'s; it has to be the user's or an observation, to be answered"
        )
    return faults


def check_supervision(conversation: Conversation) -> list[str]:
    """One sentence if a conversation has no supervised turn and cannot be trained on; otherwise empty."""
    if any(message.has_loss for message in conversation.messages):
        return []
    return ["there is nothing to learn from: no turn of the assistant is supervised"]
