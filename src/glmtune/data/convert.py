"""Writes conversations of any readable form as one: JSON lines of `messages`."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from glmtune.data.readers import expand_path
from glmtune.errors import DataError
from glmtune.prompts import Conversation, Message


def write_messages(conversations: Iterable[Conversation], output: str | Path) -> None:
    """Writes conversations to a file; reading it with `read_conversations` gives the same ones.

    A line is `{"messages": [{"role": ..., "content": ...}, ...]}` with ChatGLM3's own roles: system (with `tools` where
    there are any), user, assistant (`metadata` is the name of the tool it calls; `weight` 0 if it is not learnt) and
    observation.

    Args:
        conversations: What to write.
        output: The `.jsonl` file to write; its folder is made. It appears only once it is complete.

    Raises:
        DataError: `output` exists, has another suffix or cannot be written.
    """
    target = expand_path(output)
    if target.suffix.lower() != ".jsonl":
        raise DataError(f"{output}: expected a file named .jsonl to write to, found {target.suffix or 'no suffix'!r}")
    unfinished = target.with_name(f"{target.name}.part")
    try:
        if target.exists():
            raise DataError(f"{output}: the file exists already and is not replaced. Remove it or name another one")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("w", encoding="utf-8", newline="\n") as file:
                for conversation in conversations:
                    file.write(json.dumps(to_row(conversation), ensure_ascii=False) + "\n")
            unfinished.rename(target)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{output}: cannot be written: {error.strerror or error}") from error


def to_row(conversation: Conversation) -> dict[str, Any]:
    """A conversation as a row of JSON values."""
    return {"messages": [_to_entry(message) for message in conversation.messages]}


def _to_entry(message: Message) -> dict[str, Any]:
    entry: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.metadata:
        entry["metadata"] = message.metadata
    if message.tools:
        entry["tools"] = list(message.tools)
    if not message.is_supervised:
        entry["weight"] = 0
    return entry
