"""The templates: how each renders a conversation's messages."""

from collections.abc import Sequence
from dataclasses import dataclass

from glmtune.errors import DataError
from glmtune.prompts.conversation import Conversation, Encode, Message, PromptTokenizer, Template

DEFAULT_TOOL_SYSTEM_PROMPT = (
    "Answer the following questions as best as you can. You have access to the following tools:"
)


@dataclass
class Piece:
    """A run of ids that truncation may shorten (`is_content`) or must keep whole."""

    ids: list[int]
    is_supervised: bool = False
    is_content: bool = False


def _chatglm3_pieces(
    messages: Sequence[Message], tokenizer: PromptTokenizer, encode: Encode, for_training: bool
) -> list[Piece]:
    pieces = [Piece(tokenizer.prefix_token_ids)]
    is_supervised = False  # of the turn before, whose end token is the next role token
    for message in messages:
        pieces.append(Piece([tokenizer.get_command(f"<|{message.role}|>")], is_supervised))
        is_supervised = message.has_loss
        pieces.append(Piece(encode(f"{message.metadata}\n"), is_supervised))
        pieces.append(Piece(encode(message.text()), is_supervised, is_content=True))
    end = tokenizer.eos_token_id if for_training else tokenizer.get_command("<|assistant|>")
    return [*pieces, Piece([end], is_supervised)]


def _tutorial_pieces(
    messages: Sequence[Message], tokenizer: PromptTokenizer, encode: Encode, for_training: bool
) -> list[Piece]:
    """The tutorial's pieces: system prompt, user text and marker are encoded as one text, with roles as plain text."""
    pieces = [Piece(tokenizer.prefix_token_ids)]
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
            pieces += [Piece(ids[:start]), Piece(ids[start:stop], is_content=True), Piece(ids[stop:])]
            head = ""
        else:
            is_supervised = message.is_supervised
            pieces.append(Piece(encode(message.content), is_supervised, is_content=True))
            pieces.append(Piece([tokenizer.eos_token_id], is_supervised))
    return pieces


def _chatglm2_pieces(
    messages: Sequence[Message], tokenizer: PromptTokenizer, encode: Encode, for_training: bool
) -> list[Piece]:
    """ChatGLM2's pieces: as in the official code, everything before the last answer is encoded as one text."""
    _refuse_tools(messages)
    *context, last = messages if for_training else [*messages, Message("assistant", "")]
    if not last.has_loss:
        raise DataError(
            "there is nothing to learn from: the chatglm2 template teaches the last answer alone, "
            "and this one is marked as not to be learnt"
        )
    head, question, marker = _chatglm2_text(context)
    ids = encode(head + question + marker)
    start = _common_prefix(ids, encode(head))
    stop = len(ids) - _common_prefix(ids[start:][::-1], encode(marker)[::-1])
    pieces = [Piece(tokenizer.prefix_token_ids)]
    pieces += [Piece(ids[:start]), Piece(ids[start:stop], is_content=True), Piece(ids[stop:])]
    if for_training:
        pieces.append(Piece(encode(last.content), is_supervised=True, is_content=True))
        pieces.append(Piece([tokenizer.eos_token_id], is_supervised=True))
    return pieces


def _chatglm2_text(context: Sequence[Message]) -> tuple[str, str, str]:
    """The text before the last answer, in three parts: before the last question, the question, and after it."""
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


def _refuse_tools(messages: Sequence[Message]) -> None:
    """Raises a DataError for what ChatGLM2's prompt has no place for."""
    if any(message.role == "observation" or message.metadata or message.tools for message in messages):
        raise DataError("the chatglm2 template has no tools; ChatGLM3 has")


TEMPLATE_PIECES = {"chatglm3": _chatglm3_pieces, "chatglm2": _chatglm2_pieces, "tutorial": _tutorial_pieces}


def render_text(conversation: Conversation, template: Template, *, for_generation: bool) -> str:
    """Renders a conversation as text, for display and for programs that need text; special tokens are spelt out.

    Encoded with its special tokens recognised, the text gives the ids of the renderer: the space at the beginning of a
    content is the one that sentencepiece puts before every text that it encodes on its own.

    Args:
        conversation: Messages in a valid order.
        template: `chatglm3` or `chatglm2`.
        for_generation: Whether the prompt ends where the model is to answer.

    Raises:
        DataError: The template cannot express the conversation.
    """
    messages = conversation.messages
    if template == "chatglm2":
        _refuse_tools(messages)
        is_answered = messages[-1].role == "assistant"
        text = "".join(_chatglm2_text(messages[:-1] if is_answered else messages))
        return f"[gMASK]sop{text}{_spaced(messages[-1].content) + '</s>' if is_answered else ''}"
    turns = "".join(f"<|{message.role}|>{message.metadata}\n{_spaced(message.text())}" for message in messages)
    end = "</s>" if messages[-1].role == "assistant" else ""
    return f"[gMASK]sop{turns}{'<|assistant|>' if for_generation else end}"


def _spaced(content: str) -> str:
    """A content with a space in front; an empty one has no ids, so no space either."""
    return f" {content}" if content else ""


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of leading ids that two sequences share."""
    length = 0
    while length < min(len(first), len(second)) and first[length] == second[length]:
        length += 1
    return length
