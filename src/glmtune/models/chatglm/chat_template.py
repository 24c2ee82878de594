"""Messages as dictionaries, in the forms that chat APIs use, turned into conversations for the renderer."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from transformers.utils import get_json_schema

from glmtune.errors import DataError
from glmtune.prompts import (
    DEFAULT_TOOL_SYSTEM_PROMPT,
    ROLES,
    Conversation,
    Message,
    Role,
    check_turns,
    format_tool_call,
)

_ROLE_NAMES: dict[str, Role] = {**{role: role for role in ROLES}, "tool": "observation", "developer": "system"}


@dataclass(frozen=True)
class _Turn:
    """A message, and the id by which OpenAI's form ties a tool's result to its call."""

    message: Message
    call_id: str = ""
    is_call: bool = False


def conversations_from_dicts(
    *conversations: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any] | Callable] | None = None
) -> list[Conversation]:
    """Reads conversations from `role`/`content` dictionaries.

    Args:
        *conversations: Each a list of messages in the official form (`metadata`, `tools`) or OpenAI's (`tool_calls`,
            role `tool`). Content may be a list of `{"type": "text"}` parts.
        tools: Tools that every conversation offers: JSON schemas, OpenAI's wrapping of them, or annotated functions.

    Returns:
        The conversations. Tools stand in the system message, which is the official default one if there is none. Tools
        called at once are called one after the other, each with its own result behind it.

    Raises:
        DataError: A message is malformed or the turns are out of order.
    """
    definitions = [_tool_definition(tool) for tool in tools or ()]
    return [_conversation(messages, definitions) for messages in conversations]


def _conversation(rows: Sequence[dict[str, Any]], tools: list[Any]) -> Conversation:
    turns = [turn for number, row in enumerate(rows, start=1) for turn in _turns(row, number)]
    messages = list(_one_call_at_a_time(turns))
    if tools:
        if not messages or messages[0].role != "system":
            messages.insert(0, Message("system", DEFAULT_TOOL_SYSTEM_PROMPT))
        messages[0] = Message("system", messages[0].content, tools=(*messages[0].tools, *tools))
    conversation = Conversation(tuple(messages))
    is_answered = bool(messages) and messages[-1].role == "assistant"
    faults = check_turns(conversation, for_training=is_answered)
    if faults:
        raise DataError("; ".join(faults))
    return conversation


def _turns(row: Any, number: int) -> list[_Turn]:
    """The message that a dictionary holds, and those that its `tool_calls` stand for."""
    if not isinstance(row, dict):
        raise DataError(f"message {number}: expected a dictionary, found {type(row).__name__}")
    role = _ROLE_NAMES.get(str(row.get("role")))
    if role is None:
        raise DataError(f"message {number}: unknown role {row.get('role')!r}; expected one of {', '.join(_ROLE_NAMES)}")
    metadata = row.get("metadata") or ""
    if not isinstance(metadata, str):
        raise DataError(f"message {number}: metadata must be text, found {type(metadata).__name__}")
    calls = _list(row, "tool_calls", number)
    content = _content(row.get("content"), bool(calls), number)
    turns = []
    if content or not calls:
        tools = tuple(_tool_definition(tool) for tool in _list(row, "tools", number))
        turns.append(_Turn(Message(role, content, metadata, tools), str(row.get("tool_call_id"))))
    return [*turns, *(_tool_call(call, number) for call in calls)]


def _list(row: dict[str, Any], key: str, number: int) -> Sequence[Any]:
    value = row.get(key) or ()
    if not isinstance(value, list | tuple):
        raise DataError(f"message {number}: {key} must be a list, found {type(value).__name__}")
    return value


def _content(content: Any, may_be_missing: bool, number: int) -> str:
    """The text of a message, be it written as text or as a list of text parts."""
    if content is None and may_be_missing:
        return ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list | tuple):
        raise DataError(f"message {number}: content must be text, found {type(content).__name__}")
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise DataError(f'message {number}: content may only have parts {{"type": "text", ...}}, found {part!r}')
    return "".join(part["text"] for part in parts)


def _tool_call(call: Any, number: int) -> _Turn:
    """The assistant's turn that an entry of OpenAI's `tool_calls` stands for."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or "arguments" not in function:
        raise DataError(f"message {number}: a tool call needs a function with name and arguments, found {call!r}")
    arguments = function["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError as error:
            raise DataError(f"message {number}: the arguments of {function['name']} are not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise DataError(f"message {number}: the arguments of {function['name']} are no JSON object: {arguments!r}")
    return _Turn(Message("assistant", format_tool_call(arguments), function["name"]), str(call.get("id")), is_call=True)


def _one_call_at_a_time(turns: list[_Turn]) -> Iterator[Message]:
    """Messages in order, each tool call followed by its own result.

    OpenAI's form may call several tools at once and list their results after the last call; ChatGLM3 calls one at a
    time.
    """
    while turns:
        calls = list(takewhile(lambda turn: turn.is_call, turns)) or turns[:1]
        turns = turns[len(calls) :]
        results = list(takewhile(lambda turn: turn.message.role == "observation", turns)) if len(calls) > 1 else []
        turns = turns[len(results) :]
        if len(calls) == 1 or not (results or turns):  # the last calls may still wait for their results
            yield from (call.message for call in calls)
            continue
        if len(calls) != len(results):
            raise DataError(f"{len(calls)} tools are called at once, but {len(results)} results follow")
        ids = [call.call_id for call in calls]
        if sorted(ids) == sorted(result.call_id for result in results):  # else results stand in the calls' order
            results.sort(key=lambda result: ids.index(result.call_id))
        for call, result in zip(calls, results, strict=True):
            yield call.message
            yield result.message


def _tool_definition(tool: dict[str, Any] | Callable) -> Any:
    """The bare definition that ChatGLM3 was trained on: without OpenAI's `{"type": "function", ...}` around it."""
    if callable(tool):
        tool = get_json_schema(tool)
    return tool.get("function", tool) if isinstance(tool, dict) and tool.get("type") == "function" else tool
