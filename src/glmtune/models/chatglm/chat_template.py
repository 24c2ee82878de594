"""Messages as dictionaries, in the forms that chat APIs use, turned into conversations for the renderer."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from transformers.utils import get_json_schema

from glmtune.errors import DataError
from glmtune.prompts import DEFAULT_TOOL_SYSTEM_PROMPT, ROLES, Conversation, Message, check_turns, format_tool_call


def conversations_from_dicts(
    *conversations: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any] | Callable] | None = None
) -> list[Conversation]:
    """Reads conversations from `role`/`content` dictionaries.

    Args:
        *conversations: Each a list of messages in the official form (`metadata`, `tools`) or OpenAI's (`tool_calls`,
            role `tool`).
        tools: Tools that every conversation offers: JSON schemas, OpenAI's wrapping of them, or annotated functions.

    Returns:
        The conversations. Tools stand in the system message, which is the official default one if there is none.

    Raises:
        DataError: A message is malformed or the turns are out of order.
    """
    definitions = [_tool_definition(tool) for tool in tools or ()]
    return [_conversation(messages, definitions) for messages in conversations]


def _conversation(rows: Sequence[dict[str, Any]], tools: list[Any]) -> Conversation:
    messages = [message for number, row in enumerate(rows, start=1) for message in _messages(row, number)]
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


def _messages(row: dict[str, Any], number: int) -> list[Message]:
    role = {"tool": "observation", "developer": "system"}.get(row.get("role", ""), row.get("role"))
    if role not in ROLES:
        raise DataError(f"message {number}: unknown role {row.get('role')!r}; expected one of {', '.join(ROLES)}")
    content = row.get("content")
    calls = row.get("tool_calls") or ()
    if not isinstance(content, str) and not (content is None and calls):
        raise DataError(f"message {number}: content must be text, found {type(content).__name__}")
    messages = []
    if content or not calls:
        tools = tuple(_tool_definition(tool) for tool in row.get("tools") or ())
        messages.append(Message(role, content or "", row.get("metadata", ""), tools))
    return [*messages, *(_tool_call(call, number) for call in calls)]


def _tool_call(call: Any, number: int) -> Message:
    """The assistant's message that an entry of OpenAI's `tool_calls` stands for."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or "arguments" not in function:
        raise DataError(f"message {number}: a tool call needs a function with name and arguments, found {call!r}")
    arguments = function["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise DataError(f"message {number}: the arguments of {function['name']} are not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise DataError(f"message {number}: the arguments of {function['name']} are no JSON object: {arguments!r}")
    return Message("assistant", format_tool_call(arguments), function["name"])


def _tool_definition(tool: dict[str, Any] | Callable) -> Any:
    """The bare definition that ChatGLM3 was trained on: without OpenAI's `{"type": "function", ...}` around it."""
    if callable(tool):
        tool = get_json_schema(tool)
    return tool.get("function", tool) if isinstance(tool, dict) and tool.get("type") == "function" else tool
