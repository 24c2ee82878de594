"""Turns lists of messages in the common formats, from data files or from callers, into conversations.

    official    {"role": "user", "content": "..."}; role `tool` has name, parameters and observation
    OpenAI      {"role": "assistant", "tool_calls": [...]}, then role `tool` with the result as content; formerly
                {"role": "assistant", "function_call": {...}}, then role `function`
    ShareGPT    {"from": "human", "value": "..."}; function_call holds {"name": ..., "arguments": ...} as JSON text

ShareGPT's names are mapped first; after that all formats are read alike, and what one of them allows is accepted in
all.

Source: the official fine-tuning demo of ChatGLM3 (finetune_demo/README.md), which turns a `tool` turn into a tool call
of the assistant and an observation, and accepts `loss: false` for turns that are not supervised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glmtune.errors import DataError, show_names, show_text
from glmtune.json_values import (
    check_unicode,
    json_type,
    parse_json,
    read_list,
    read_optional_text,
    read_text,
    shorten,
    write_json,
)
from glmtune.prompts.conversation import Conversation, Message, Role, check_turns
from glmtune.prompts.replies import format_tool_call
from glmtune.prompts.templates import DEFAULT_TOOL_SYSTEM_PROMPT

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "observation": "observation",
    "tool": "observation",
    "function": "observation",
}
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "observation",
    "tool": "observation",
}
_KEYS = {"role", "content", "metadata", "loss", "weight"}  # of every message
_ROLE_KEYS: dict[str, set[str]] = {
    "system": {"tools"},
    "developer": {"tools"},
    "assistant": {"tool_calls", "function_call"},
    "tool": {"name", "tool_call_id"},
    "function": {"name"},
    "observation": {"name", "tool_call_id"},
}


@dataclass(frozen=True)
class _Turn:
    """A message, and the id by which OpenAI's format links tool results to tool calls."""

    message: Message
    call_id: str = ""
    is_call: bool = False


def read_chat(values: Mapping[str, Any], key: str, *, for_training: bool = True) -> tuple[Conversation, list[str]]:
    """Reads a row that holds a list of messages.

    Args:
        values: The row. Besides the messages it may have `tools` and a `system` text.
        key: The name of the list: `messages` or `conversations`.
        for_training: Whether the last message must be the assistant's and no content may be empty. Otherwise the
            messages may also end where the model is to answer, and contents may be empty, as clients of chat APIs send
            them.

    Returns:
        The conversation, and one sentence for each fault in it. If only the order of turns is at fault, the
        conversation is still returned; otherwise it is empty.
    """
    turns: list[_Turn] = []
    faults: list[str] = []
    try:
        entries = read_list(values, key)
        system = read_optional_text(values, "system")
        tools = read_tools(values)
    except DataError as error:
        return Conversation(()), [str(error)]
    for number, entry in enumerate(entries, start=1):
        try:
            turns += _read_entry(entry, is_last=number == len(entries), may_be_empty=not for_training)
        except DataError as error:
            faults.append(f"message {number}: {error}")
    if faults:
        return Conversation(()), faults
    try:
        messages = _pair_calls(turns)
        is_answered = bool(messages) and messages[-1].role == "assistant"
        # Before add_system, so that message numbers are those of the file.
        faults = check_turns(Conversation(tuple(messages)), for_training=for_training or is_answered)
        return Conversation(tuple(add_system(messages, system, tools))), faults
    except DataError as error:
        return Conversation(()), [str(error)]


def unread_keys(entry: Mapping[str, Any]) -> set[str]:
    """The keys of a valid message that have a value but are not read."""
    if "role" not in entry:
        read = _KEYS - {"role", "content"} | {"from", "value"} | _ROLE_KEYS.get(_SHAREGPT_ROLES[entry["from"]], set())
    elif _is_official_tool(entry):
        read = _KEYS - {"content"} | {"name", "parameters", "observation"}
    else:
        read = _KEYS | _ROLE_KEYS.get(entry["role"], set())
    return {key for key, value in entry.items() if key not in read and value not in (None, "", [], {})}


def read_tools(values: Mapping[str, Any]) -> list[Any]:
    """Tool definitions of a row or a system message, without OpenAI's wrapper.

    Raises:
        DataError: They are not an array of JSON values.
    """
    tools = read_list(values, "tools")
    if tools:
        write_json(tools, "tools")
    return [_unwrap_tool(tool) for tool in tools]


def add_system(messages: Sequence[Message], system: str, tools: Sequence[Any]) -> list[Message]:
    """Puts a row's own system text and tools in front of its messages.

    Args:
        messages: The messages, optionally starting with a system message.
        system: The text, or empty.
        tools: Tool definitions. If there is no system message for them, the official one is added.

    Returns:
        The messages, with at most one system message added.

    Raises:
        DataError: The messages have a system text, or tools, of their own.
    """
    own = messages[0] if messages and messages[0].role == "system" else None
    if own and system.strip():
        raise DataError('there are two system prompts, in "system" and in the first message. Keep one')
    if own and own.tools and tools:
        raise DataError('there are two lists of tools, in "tools" and in the first message. Keep one')
    if own:
        return [Message("system", own.content, own.metadata, own.tools or tuple(tools)), *messages[1:]]
    if not system.strip() and not tools:
        return list(messages)
    return [Message("system", system if system.strip() else DEFAULT_TOOL_SYSTEM_PROMPT, tools=tuple(tools)), *messages]


def _unwrap_tool(tool: Any) -> Any:
    is_wrapped = isinstance(tool, dict) and tool.get("type") == "function" and isinstance(tool.get("function"), dict)
    return tool["function"] if is_wrapped else tool


def _read_entry(entry: Any, *, is_last: bool, may_be_empty: bool) -> list[_Turn]:
    """The one or more turns that an entry of the list represents."""
    if not isinstance(entry, dict):
        raise DataError(f"expected an object, found {json_type(entry)}")
    if "from" in entry and "role" not in entry:
        entry = _from_sharegpt(entry)
    name = read_text(entry, "role")
    if name not in _ROLES:
        raise DataError(f"unknown role '{show_text(name, 60)}'; expected one of {', '.join(_ROLES)}")
    role = _ROLES[name]
    if _is_official_tool(entry):
        return _read_official_tool(entry, is_last=is_last)
    if role == "assistant":
        return _read_assistant(entry, may_be_empty=may_be_empty)
    if role == "system" and (tools := read_tools(entry)):
        content = _read_content(entry) if entry.get("content") else DEFAULT_TOOL_SYSTEM_PROMPT
        return [_Turn(Message(role, content, _read_metadata(entry), tuple(tools)))]
    content = _read_content(entry, may_be_empty=may_be_empty or role == "observation")  # a tool may return nothing
    return [_Turn(Message(role, content, _read_metadata(entry)), str(entry.get("tool_call_id") or ""))]


def _is_official_tool(entry: Mapping[str, Any]) -> bool:
    """Whether a message is both a tool call and its result, as in the official format."""
    return entry["role"] == "tool" and ("parameters" in entry or "observation" in entry)


def _from_sharegpt(entry: Mapping[str, Any]) -> dict[str, Any]:
    name = read_text(entry, "from")
    if name not in _SHAREGPT_ROLES:
        raise DataError(f"unknown role '{show_text(name, 60)}'; expected one of {', '.join(_SHAREGPT_ROLES)}")
    rest = {key: value for key, value in entry.items() if key not in ("from", "value")}
    if name != "function_call":
        return {**rest, "role": _SHAREGPT_ROLES[name], "content": read_text(entry, "value", may_be_empty=True)}
    calls = parse_json(read_text(entry, "value"), "value")
    if calls == []:
        raise DataError('"value" calls no tool. Remove the message')
    return {**rest, "role": "assistant", "tool_calls": calls if isinstance(calls, list) else [calls]}


def _read_content(entry: Mapping[str, Any], *, may_be_empty: bool = False) -> str:
    """The content, which OpenAI's format may split into parts."""
    if not isinstance(entry.get("content"), list):
        return read_text(entry, "content", may_be_empty=may_be_empty)
    parts = entry["content"]
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise DataError(f'"content" may only have parts of type text, found {shorten(part)}')
    text = "".join(read_text(part, "text", may_be_empty=True) for part in parts)
    return read_text({"content": text}, "content", may_be_empty=may_be_empty)


def _read_metadata(entry: Mapping[str, Any]) -> str:
    metadata = read_optional_text(entry, "metadata")
    if "\n" in metadata:
        raise DataError(f'"metadata" has to be one line, found {shorten(metadata)}')
    return metadata


def _read_is_supervised(entry: Mapping[str, Any]) -> bool:
    """`loss` of the official format, `weight` of OpenAI's; both are optional."""
    loss, weight = entry.get("loss"), entry.get("weight")
    if loss not in (None, True, False):
        raise DataError(f'"loss" has to be true or false, found {shorten(loss)}')
    if weight not in (None, 0, 1):
        raise DataError(f'"weight" has to be 0 or 1, found {shorten(weight)}')
    return loss in (None, True) and weight in (None, 1)


def _read_assistant(entry: Mapping[str, Any], *, may_be_empty: bool) -> list[_Turn]:
    """The assistant's text, if any, followed by its tool calls."""
    is_supervised = _read_is_supervised(entry)
    calls = _read_calls(entry)
    turns = []
    if entry.get("content") or not calls:
        content = _read_content(entry, may_be_empty=may_be_empty)
        turns.append(_Turn(Message("assistant", content, _read_metadata(entry), is_supervised=is_supervised)))
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else call
        if not isinstance(function, dict):
            raise DataError(f'"tool_calls" has to hold objects with name and arguments, found {shorten(call)}')
        message = _tool_call(function, "arguments", is_supervised)
        turns.append(_Turn(message, str(call.get("id") or ""), is_call=True))
    return turns


def _read_calls(entry: Mapping[str, Any]) -> list[Any]:
    """The tool calls of a message."""
    calls = read_list(entry, "tool_calls")
    former = entry.get("function_call")
    if not former:
        return calls
    if calls:
        raise DataError('there are both "tool_calls" and "function_call". Keep one')
    return [parse_json(former, "function_call") if isinstance(former, str) else former]


def _read_official_tool(entry: Mapping[str, Any], *, is_last: bool) -> list[_Turn]:
    call = _Turn(_tool_call(entry, "parameters", _read_is_supervised(entry)), is_call=True)
    if "observation" not in entry and is_last:
        return [call]
    if "observation" not in entry:
        raise DataError(f'"observation" is missing; found: {show_names(entry)}. Add what the tool returned')
    result = entry["observation"]
    if isinstance(result, str):
        check_unicode(result, "observation")
    else:
        result = write_json(result, "observation")
    return [call, _Turn(Message("observation", result))]


def _tool_call(function: Mapping[str, Any], key: str, is_supervised: bool) -> Message:
    """The assistant's turn for a tool call; the arguments are under `key`, as an object or as JSON text."""
    name = _read_metadata({"metadata": read_text(function, "name")})
    arguments = function.get(key)
    if isinstance(arguments, str):
        arguments = parse_json(arguments, key) if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise DataError(f'"{key}" has to be an object, found {json_type(arguments)}: {shorten(arguments)}')
    write_json(arguments, key)  # a value outside JSON, such as NaN or a date, could not be parsed from a reply
    content = format_tool_call(arguments)
    return Message("assistant", content, name, is_supervised=is_supervised)


def _pair_calls(turns: Sequence[_Turn]) -> list[Message]:
    """Messages in order, each tool call followed by its own result.

    OpenAI's format allows several tool calls at once, with their results after the last call; ChatGLM3 makes one call
    at a time.
    """
    messages: list[Message] = []
    position = 0
    while position < len(turns):
        calls = _run(turns, position, is_call=True)
        if len(calls) < 2:
            messages.append(turns[position].message)
            position += 1
            continue
        results = _run(turns, position + len(calls), is_call=False)
        position += len(calls) + len(results)
        messages += _interleave(calls, results, is_end=position == len(turns))
    return messages


def _run(turns: Sequence[_Turn], start: int, *, is_call: bool) -> list[_Turn]:
    """The consecutive tool calls, or tool results, from `start` on."""
    stop = start
    while stop < len(turns) and (turns[stop].is_call if is_call else turns[stop].message.role == "observation"):
        stop += 1
    return list(turns[start:stop])


def _interleave(calls: list[_Turn], results: list[_Turn], *, is_end: bool) -> list[Message]:
    if not results and is_end:
        return [call.message for call in calls]
    if len(calls) != len(results):
        raise DataError(f"{len(calls)} tools are called at once, but {len(results)} results follow")
    ids = [call.call_id for call in calls]
    if all(ids) and len(set(ids)) == len(ids) and {result.call_id for result in results} == set(ids):
        results = sorted(results, key=lambda result: ids.index(result.call_id))
    return [turn.message for pair in zip(calls, results, strict=True) for turn in pair]
