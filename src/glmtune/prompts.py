"""The one renderer: a conversation in, token ids and a loss mask out.

Training, chat, batch generation and `apply_chat_template` all come through here, so what a model is trained on is what
it is asked with. The module is pure: it touches no files, no tensors and no model.

    chatglm3   [gMASK] sop <|system|> "\n" content <|user|> "\n" content <|assistant|> "\n" content </s>
                                                                                       '-- supervised --'

The generation prompt ends with `<|assistant|>`; everything that the model must produce after it is supervised,
including the token that ends its turn: `</s>` at the very end, the next role token elsewhere. Role tokens and `</s>`
exist only as ids; the same letters in a user's text stay text.

    chatglm2   [gMASK] sop "[Round 1]\\n\\n问：" question "\\n\\n答：" answer </s>
                                                                      '-supervised-'

ChatGLM2 knows no roles: its prompt is one text, in which earlier answers stand without an end of their own, so that the
last answer alone is learnt. It has no place for a system prompt either; that stands before the first round.

Source: the official ChatGLM3 prompt specification (PROMPT.md of the ChatGLM3 repository); `build_prompt` of ChatGLM2's
tokenizer and its P-tuning code; the widely used ChatGLM3 LoRA tutorial for the `tutorial` template.
"""

import ast
import bisect
import functools
import json
import keyword
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from glmtune.errors import DataError

Role = Literal["system", "user", "assistant", "observation"]
ROLES: tuple[Role, ...] = get_args(Role)
Template = Literal["chatglm3", "chatglm2", "tutorial"]
TEMPLATES: tuple[Template, ...] = get_args(Template)

Encode = Callable[[str], list[int]]

DEFAULT_TOOL_SYSTEM_PROMPT = (
    "Answer the following questions as best as you can. You have access to the following tools:"
)


class PromptTokenizer(Protocol):
    """What the renderer needs of a tokenizer; `ChatGLMTokenizer` has it."""

    @property
    def eos_token_id(self) -> int:
        """The id of `</s>`."""

    @property
    def prefix_token_ids(self) -> list[int]:
        """The ids of `[gMASK] sop`."""

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text: no prefix, and no special token is ever recognised in it."""

    def get_command(self, token: str) -> int:
        """The id of a special token such as `<|user|>`."""

    def decode_text(self, token_ids: list[int]) -> str:
        """The text of ids, special tokens left out."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: Who speaks.
        content: The text of the turn.
        metadata: What stands on the role token's own line: a tool's name in a tool call, otherwise nothing.
        tools: Tool definitions that a system message offers, as JSON values.
        is_supervised: Whether an assistant turn is learnt from; other turns never are.
    """

    role: Role
    content: str
    metadata: str = ""
    tools: Sequence[Any] = ()
    is_supervised: bool = True

    @property
    def is_learnt(self) -> bool:
        """Whether the model is to learn to say this."""
        return self.role == "assistant" and self.is_supervised

    def text(self) -> str:
        """The content as the model sees it: a system message's tools follow it as indented JSON."""
        if not self.tools:
            return self.content
        return f"{self.content}\n{json.dumps(list(self.tools), indent=4, ensure_ascii=False)}"


@dataclass(frozen=True)
class Conversation:
    """Messages in order. `check_turns` says whether the order makes sense."""

    messages: tuple[Message, ...]

    def with_system(self, system: str | None) -> "Conversation":
        """The same conversation behind a system prompt, unless it brings its own or `system` is None or empty."""
        if not system or (self.messages and self.messages[0].role == "system"):
            return self
        return Conversation((Message("system", system), *self.messages))


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation.

    Attributes:
        input_ids: Token ids.
        loss_mask: For each id, whether the model must learn to produce it.
        num_cut_tokens: Tokens that truncation took from within messages.
        num_dropped_messages: Whole messages that truncation dropped.
    """

    input_ids: list[int]
    loss_mask: list[bool]
    num_cut_tokens: int = 0
    num_dropped_messages: int = 0

    @property
    def labels(self) -> list[int]:
        """The ids where supervised, -100 elsewhere."""
        return [i if learnt else -100 for i, learnt in zip(self.input_ids, self.loss_mask, strict=True)]


@dataclass
class _Piece:
    """A run of ids that truncation may shorten (`is_content`) or must keep whole."""

    ids: list[int]
    is_supervised: bool = False
    is_content: bool = False


def check_turns(conversation: Conversation, *, for_training: bool = True) -> list[str]:
    """Lists what is wrong with the order of turns.

    Args:
        conversation: The conversation.
        for_training: Whether it has to end with the assistant's turn (training) or must not (generation).

    Returns:
        One sentence a fault; empty if the order is sound.
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
            faults.append(f"message {number} is an observation, but no tool call of the assistant stands before it")
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
    """One sentence if no turn of a conversation is learnt from, so that it cannot be trained on; else nothing."""
    if any(message.is_learnt for message in conversation.messages):
        return []
    return ["there is nothing to learn from: no turn of the assistant is supervised"]


def render(
    conversation: Conversation,
    tokenizer: PromptTokenizer,
    template: Template = "chatglm3",
    max_length: int | None = None,
) -> Rendered:
    """Renders a conversation for training.

    Truncation, where `max_length` asks for it: first the oldest exchanges are dropped whole (never the system message,
    never the last exchange); then the longest contents lose their ends, all down to one common length, so that short
    contents stay whole. Role tokens, metadata lines, the generation marker and end tokens are never cut.

    Args:
        conversation: Messages in a sound order whose last is the assistant's.
        tokenizer: The tokenizer.
        template: `chatglm3` or `chatglm2` (each official), or `tutorial` (the tutorial's plain-text roles).
        max_length: Most tokens to return; None for no limit.

    Returns:
        Ids and loss mask.

    Raises:
        DataError: The template cannot express the conversation, or there is nothing to learn from, be it for lack of a
            supervised turn or because truncation would leave nothing of it.
    """
    if faults := check_supervision(conversation):
        raise DataError(faults[0])
    pieces, num_dropped, num_cut = _fit(conversation, tokenizer, template, max_length, for_training=True)
    rendered = Rendered(
        input_ids=[i for piece in pieces for i in piece.ids],
        loss_mask=[piece.is_supervised for piece in pieces for _ in piece.ids],
        num_cut_tokens=num_cut,
        num_dropped_messages=num_dropped,
    )
    if not any(rendered.loss_mask):
        raise DataError(
            f"nothing to learn from is left after truncation to {max_length} tokens: only exchanges that were dropped "
            "are supervised; raise data.max_length"
        )
    return rendered


def render_prompt(
    conversation: Conversation,
    tokenizer: PromptTokenizer,
    template: Template = "chatglm3",
    max_length: int | None = None,
) -> list[int]:
    """Renders a conversation up to the point where the model is to answer.

    For a conversation without its last answer this is an exact prefix of what `render` returns with it.

    Args:
        conversation: Messages whose last is the user's or an observation.
        tokenizer: The tokenizer.
        template: As for `render`.
        max_length: Most tokens to return, shortened as `render` does; None for no limit.

    Returns:
        Token ids that end with the generation marker.

    Raises:
        DataError: The template cannot express the conversation, or `max_length` cannot hold its role tokens.
    """
    pieces, _, _ = _fit(conversation, tokenizer, template, max_length, for_training=False)
    return [i for piece in pieces for i in piece.ids]


def _fit(
    conversation: Conversation,
    tokenizer: PromptTokenizer,
    template: Template,
    max_length: int | None,
    *,
    for_training: bool,
) -> tuple[list[_Piece], int, int]:
    """Pieces that fit into `max_length`, the messages dropped and the tokens cut for it."""
    split = _SPLITS[template]
    messages = conversation.messages
    encode = functools.cache(tokenizer.encode_text)  # no text is encoded again for each exchange that is dropped
    pieces = split(messages, tokenizer, encode, for_training)
    if max_length is None:
        return pieces, 0, 0
    if _length(pieces) > max_length:
        messages = _without_oldest_exchanges(
            messages, lambda rest: _length(split(rest, tokenizer, encode, for_training)) <= max_length
        )
        pieces = split(messages, tokenizer, encode, for_training)
    return pieces, len(conversation.messages) - len(messages), _shorten_contents(pieces, max_length)


def _length(pieces: Sequence[_Piece]) -> int:
    return sum(len(piece.ids) for piece in pieces)


def _chatglm3_pieces(
    messages: Sequence[Message], tokenizer: PromptTokenizer, encode: Encode, for_training: bool
) -> list[_Piece]:
    pieces = [_Piece(tokenizer.prefix_token_ids)]
    is_learnt = False  # whether the turn before is; its end is the next role token
    for message in messages:
        pieces.append(_Piece([tokenizer.get_command(f"<|{message.role}|>")], is_learnt))
        is_learnt = message.is_learnt
        pieces.append(_Piece(encode(f"{message.metadata}\n"), is_learnt))
        pieces.append(_Piece(encode(message.text()), is_learnt, is_content=True))
    end = tokenizer.eos_token_id if for_training else tokenizer.get_command("<|assistant|>")
    return [*pieces, _Piece([end], is_learnt)]


def _tutorial_pieces(
    messages: Sequence[Message], tokenizer: PromptTokenizer, encode: Encode, for_training: bool
) -> list[_Piece]:
    """The tutorial encodes system prompt, user text and marker as one text; roles are plain letters in it."""
    pieces = [_Piece(tokenizer.prefix_token_ids)]
    head = ""
    marker = "<|assistant|>\n"
    for message in messages:
        if message.role == "observation" or message.metadata or message.tools:
            raise DataError("the tutorial template has no tools; use prompt.template=chatglm3")
        if message.role == "system":
            head = f"<|system|>\n{message.content}\n"
        elif message.role == "user":
            head += "<|user|>\n"
            ids = encode(head + message.content + marker)
            start = _common_prefix(ids, encode(head))
            stop = len(ids) - _common_prefix(ids[start:][::-1], encode(marker)[::-1])
            pieces += [_Piece(ids[:start]), _Piece(ids[start:stop], is_content=True), _Piece(ids[stop:])]
            head = ""
        else:
            is_learnt = message.is_supervised
            pieces.append(_Piece(encode(message.content), is_learnt, is_content=True))
            pieces.append(_Piece([tokenizer.eos_token_id], is_learnt))
    return pieces


def _chatglm2_pieces(
    messages: Sequence[Message], tokenizer: PromptTokenizer, encode: Encode, for_training: bool
) -> list[_Piece]:
    """All up to the last answer is encoded as one text, as officially; the answer on its own."""
    *context, last = messages if for_training else [*messages, Message("assistant", "")]
    head, question, marker = _chatglm2_text(context)
    ids = encode(head + question + marker)
    start = _common_prefix(ids, encode(head))
    stop = len(ids) - _common_prefix(ids[start:][::-1], encode(marker)[::-1])
    pieces = [_Piece(tokenizer.prefix_token_ids)]
    pieces += [_Piece(ids[:start]), _Piece(ids[start:stop], is_content=True), _Piece(ids[stop:])]
    if for_training:
        pieces.append(_Piece(encode(last.content), last.is_learnt, is_content=True))
        pieces.append(_Piece([tokenizer.eos_token_id], last.is_learnt))
    return pieces


def _chatglm2_text(context: Sequence[Message]) -> tuple[str, str, str]:
    """The text before the last answer: what stands before the last question, the question, and what stands after it."""
    if any(message.role == "observation" or message.metadata or message.tools for message in context):
        raise DataError("the chatglm2 template has no tools; ChatGLM3 has")
    head = question = ""
    number = 0
    for message in context:
        if message.role == "system":
            head = f"{message.content}\n\n"
        elif message.role == "user":
            number += 1
            head, question = f"{head}[Round {number}]\n\n问：", message.content
        else:
            head = f"{head}{question}\n\n答：{message.content}\n\n"
    return head, question, "\n\n答："


_SPLITS = {"chatglm3": _chatglm3_pieces, "chatglm2": _chatglm2_pieces, "tutorial": _tutorial_pieces}


def render_text(conversation: Conversation, template: Template, *, for_generation: bool) -> str:
    """A prompt as text, for people and for programs that want it so. Its special tokens are letters there.

    Args:
        conversation: Messages in a sound order.
        template: `chatglm3` or `chatglm2`.
        for_generation: Whether it ends where the model is to answer.

    Raises:
        DataError: The template cannot express the conversation.
    """
    messages = conversation.messages
    if template == "chatglm2":
        is_answered = messages[-1].role == "assistant"
        text = "".join(_chatglm2_text(messages[:-1] if is_answered else messages))
        return f"[gMASK]sop{text}{messages[-1].content if is_answered else ''}"
    turns = "".join(f"<|{message.role}|>{message.metadata}\n {message.text()}" for message in messages)
    return f"[gMASK]sop{turns}{'<|assistant|>' if for_generation else ''}"


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading ids two sequences share."""
    length = 0
    while length < min(len(first), len(second)) and first[length] == second[length]:
        length += 1
    return length


def _without_oldest_exchanges(
    messages: tuple[Message, ...], is_short: Callable[[tuple[Message, ...]], bool]
) -> tuple[Message, ...]:
    """The messages without as many of the oldest exchanges as it takes to be short; the last exchange always stays.

    An exchange is a user turn and what answers it. How many have to go is found by bisection: one by one, a long
    conversation would be rendered again for each of its exchanges.
    """
    starts = [index for index, message in enumerate(messages) if message.role == "user"]
    if len(starts) < 2:
        return messages

    def rest_from(start: int) -> tuple[Message, ...]:
        return (*messages[: starts[0]], *messages[start:])

    # The last one need not be tried: whether it is short or not, there is nothing after it.
    place = bisect.bisect_left(starts, True, lo=1, hi=len(starts) - 1, key=lambda start: is_short(rest_from(start)))
    return rest_from(starts[place])


def _shorten_contents(pieces: Sequence[_Piece], max_length: int) -> int:
    """Cuts contents in place down to the largest common length with which all fits; returns the tokens cut."""
    lengths = [len(piece.ids) for piece in pieces if piece.is_content]
    room = max_length - sum(len(piece.ids) for piece in pieces if not piece.is_content)
    if sum(lengths) <= room:
        return 0
    levels = range(1, max(lengths))
    level = bisect.bisect_right(levels, room, key=lambda each: sum(min(length, each) for length in lengths))
    if level == 0:
        raise DataError(
            f"nothing is left after truncation to {max_length} tokens: role and end tokens alone take "
            f"{max_length - room}; raise data.max_length"
        )
    for piece in pieces:
        if piece.is_content:
            piece.ids = piece.ids[:level]
    return sum(max(length - level, 0) for length in lengths)


def parse_reply(token_ids: Sequence[int], tokenizer: PromptTokenizer, template: Template = "chatglm3") -> list[Message]:
    """Reads what the model generated after a prompt of `render_prompt`.

    Args:
        token_ids: The new ids, with or without the token that ended them.
        tokenizer: The tokenizer.
        template: The template of the prompt.

    Returns:
        The assistant's messages, at least one; a tool call has the tool's name as metadata.
    """
    if template != "chatglm3":
        return [Message("assistant", tokenizer.decode_text(list(token_ids)).strip())]
    turns: list[list[int]] = [[]]
    for token_id in token_ids:
        if token_id == tokenizer.get_command("<|assistant|>"):
            turns.append([])
        else:
            turns[-1].append(token_id)
    messages = []
    for turn in turns:
        metadata, newline, content = tokenizer.decode_text(turn).partition("\n")
        if not newline:
            metadata, content = "", metadata
        messages.append(Message("assistant", content.strip(), metadata.strip()))
    return messages


def format_tool_call(arguments: Mapping[str, Any]) -> str:
    """The content of a tool call in ChatGLM3's form: a fenced `tool_call(name=value, ...)`."""
    if all(name.isidentifier() and not keyword.iskeyword(name) for name in arguments):
        values = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    else:
        values = f"**{dict(arguments)!r}"
    return f"```python\ntool_call({values})\n```"


def parse_tool_call(content: str) -> dict[str, Any]:
    """Reads the arguments of a tool call without running it.

    Args:
        content: A fenced `tool_call(name=value, ...)`; values are Python or JSON literals.

    Returns:
        Argument names and values.

    Raises:
        DataError: The content is no such call.
    """
    code = content.strip().removeprefix("```python").removesuffix("```").strip()
    try:
        call = ast.parse(code, mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError
        arguments: dict[str, Any] = {}
        for argument in call.keywords:
            value = ast.literal_eval(argument.value)
            arguments |= {argument.arg: value} if argument.arg else value
        return arguments
    except (SyntaxError, ValueError, TypeError) as error:
        raise DataError(f"not a tool call with literal arguments: {content!r}") from error
