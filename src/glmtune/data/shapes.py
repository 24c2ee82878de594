"""Conversations as rows of the common formats: what `prompts.messages` and `row_formats` read, the other way round."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from glmtune.errors import DataError
from glmtune.prompts import Conversation, Message
from glmtune.prompts.replies import format_tool_call, parse_tool_call

Shape = Literal["messages", "conversations", "sharegpt", "alpaca"]

_NOT_LEARNT = "turns that are not learnt are marked with weight, which other tools may not know"
_OWN_ROLE = "results without a tool call keep glmtune's own role, observation"


def to_shape(conversation: Conversation, shape: Shape) -> tuple[dict[str, Any], set[str]]:
    """Writes a conversation as a row.

    Args:
        conversation: A valid conversation.
        shape: The format: OpenAI's `messages` with ChatGLM3's roles, `conversations` of the official demo, ShareGPT, or
            Alpaca (instruction, output, history).

    Returns:
        The row, which reads as the same conversation again, and what other tools may not understand in it.

    Raises:
        DataError: The format cannot express it; the message says what it has no place for.
    """
    return _WRITERS[shape](conversation.messages)


def _to_messages(messages: Sequence[Message]) -> tuple[dict[str, Any], set[str]]:
    return {"messages": [_message(message) for message in messages]}, set()


def _message(message: Message) -> dict[str, Any]:
    entry: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.metadata:
        entry["metadata"] = message.metadata
    if message.tools:
        entry["tools"] = list(message.tools)
    if not message.is_supervised:
        entry["weight"] = 0
    return entry


def _to_conversations(messages: Sequence[Message]) -> tuple[dict[str, Any], set[str]]:
    """The official demo: a call and its result are one entry of the role `tool`."""
    entries: list[dict[str, Any]] = []
    notes: set[str] = set()
    tools: list[Any] = []
    position = 0
    while position < len(messages):
        message = messages[position]
        position += 1
        tools += message.tools
        arguments = _call_arguments(message)
        following = messages[position] if position < len(messages) else None
        is_answered = following is not None and following.role == "observation"
        if arguments is not None and (is_answered or following is None):
            entry: dict[str, Any] = {"role": "tool", "name": message.metadata, "parameters": arguments}
            if is_answered and following is not None:
                entry["observation"] = following.content
                position += 1
        else:
            entry = {"role": message.role, "content": message.content}
            if message.metadata:
                entry["metadata"] = message.metadata
            if message.role == "observation":
                notes.add(_OWN_ROLE)
        if not message.is_supervised:
            entry["loss"] = False
        entries.append(entry)
    return {**({"tools": tools} if tools else {}), "conversations": entries}, notes


def _to_sharegpt(messages: Sequence[Message]) -> tuple[dict[str, Any], set[str]]:
    row: dict[str, Any] = {"conversations": []}
    notes: set[str] = set()
    for message in messages:
        arguments = _call_arguments(message)
        if message.metadata and arguments is None:
            raise DataError("a turn has metadata that is no call of a tool")
        if message.role == "system":
            row["system"] = message.content
            if message.tools:
                row["tools"] = json.dumps(list(message.tools), ensure_ascii=False)
            continue
        if arguments is not None:
            called = {"name": message.metadata, "arguments": arguments}
            entry: dict[str, Any] = {"from": "function_call", "value": json.dumps(called, ensure_ascii=False)}
        else:
            names = {"user": "human", "assistant": "gpt", "observation": "observation"}
            entry = {"from": names[message.role], "value": message.content}
        if not message.is_supervised:
            entry["weight"] = 0
            notes.add(_NOT_LEARNT)
        row["conversations"].append(entry)
    return row, notes


def _to_alpaca(messages: Sequence[Message]) -> tuple[dict[str, Any], set[str]]:
    system = messages[0] if messages[0].role == "system" else None
    turns = messages[1:] if system else messages
    if any(message.role == "observation" or message.metadata for message in messages):
        raise DataError("a tool is called")
    if any(not message.is_supervised for message in turns):
        raise DataError("a turn is not to be learnt")
    pairs = list(zip(turns[::2], turns[1::2], strict=False))
    if len(turns) % 2 or any((one.role, other.role) != ("user", "assistant") for one, other in pairs):
        raise DataError("questions and answers do not alternate")
    question, answer = pairs[-1]
    row: dict[str, Any] = {"instruction": question.content, "input": "", "output": answer.content}
    if len(pairs) > 1:
        row["history"] = [[one.content, other.content] for one, other in pairs[:-1]]
    if system:
        row["system"] = system.content
        if system.tools:
            row["tools"] = json.dumps(list(system.tools), ensure_ascii=False)
    return row, set()


def _call_arguments(message: Message) -> dict[str, Any] | None:
    """The arguments of a tool call, if they say all that its content says."""
    if message.role != "assistant" or not message.metadata:
        return None
    try:
        arguments = parse_tool_call(message.content)
        json.dumps(arguments, allow_nan=False)
    except (DataError, ValueError, TypeError):
        return None
    return arguments if format_tool_call(arguments) == message.content else None


_WRITERS: Mapping[Shape, Callable[[Sequence[Message]], tuple[dict[str, Any], set[str]]]] = {
    "messages": _to_messages,
    "conversations": _to_conversations,
    "sharegpt": _to_sharegpt,
    "alpaca": _to_alpaca,
}
