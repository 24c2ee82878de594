"""Parses a model's replies into messages and tool calls."""

import ast
import keyword
from collections.abc import Mapping, Sequence
from typing import Any

from glmtune.errors import DataError
from glmtune.prompts.conversation import Message, PromptTokenizer, Template


def parse_reply(token_ids: Sequence[int], tokenizer: PromptTokenizer, template: Template = "chatglm3") -> list[Message]:
    """Parses the ids that the model generated after a prompt from `render_prompt`.

    Args:
        token_ids: The new ids, with or without the token that ended them.
        tokenizer: The tokenizer.
        template: The template of the prompt.

    Returns:
        The assistant's messages, at least one; a tool call has the tool's name as metadata.
    """
    turn_id = turn_token_id(tokenizer, template)
    if turn_id is None:
        return [Message("assistant", tokenizer.decode_text(list(token_ids)).strip())]
    turns: list[list[int]] = [[]]
    for token_id in token_ids:
        if token_id == turn_id:
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


def turn_token_id(tokenizer: PromptTokenizer, template: Template) -> int | None:
    """The id that begins another message within a reply, after which a line of metadata stands.

    Args:
        tokenizer: The tokenizer.
        template: The template of the prompt.

    Returns:
        None where a reply is one text, without metadata.
    """
    return tokenizer.get_command("<|assistant|>") if template == "chatglm3" else None


def format_tool_call(arguments: Mapping[str, Any]) -> str:
    """The content of a tool call in ChatGLM3's form: a fenced `tool_call(name=value, ...)`."""
    if all(name.isidentifier() and not keyword.iskeyword(name) for name in arguments):
        values = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    else:
        values = f"**{dict(arguments)!r}"
    return f"```python\ntool_call({values})\n```"


def parse_tool_call(content: str) -> dict[str, Any]:
    """Parses the arguments of a tool call without running it.

    Args:
        content: A fenced `tool_call(name=value, ...)`; values are Python or JSON literals.

    Returns:
        Argument names and values.

    Raises:
        DataError: The content is not such a call.
    """
    code = content.strip().removeprefix("```python").removesuffix("```").strip()
    try:
        call = ast.parse(code, mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError
        if not isinstance(call.func, ast.Name) or call.func.id != "tool_call":
            raise ValueError
        arguments: dict[str, Any] = {}
        for argument in call.keywords:
            value = ast.literal_eval(argument.value)
            arguments |= {argument.arg: value} if argument.arg else value
        if not all(isinstance(name, str) for name in arguments):
            raise TypeError
        return arguments
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:  # deep code exhausts the parser
        raise DataError(f"not a tool call with literal arguments: {content!r}") from error
