"""Converts conversations of any supported format into one: JSON lines of `messages`."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from glmtune.data.readers import expand_path
from glmtune.errors import DataError, show_text
from glmtune.files import check_writable_folder, storage_faults, written_aside
from glmtune.prompts import Conversation, Message


def write_messages(conversations: Iterable[Conversation], output: str | Path) -> None:
    """Writes conversations to a file; reading it with `read_conversations` gives the same ones.

    Each line is `{"messages": [{"role": ..., "content": ...}, ...]}` with ChatGLM3's own roles: system (with `tools` if
    there are any), user, assistant (`metadata` is the name of the tool it calls; `weight` is 0 if the turn is excluded
    from the loss) and observation.

    Args:
        conversations: What to write.
        output: The `.jsonl` file to write; its folder is created. It appears only once it is complete.

    Raises:
        DataError: `output` exists or has another suffix.
        StorageError: It cannot be written.
    """
    target = expand_path(output)
    name = show_text(str(output))
    if target.suffix.lower() != ".jsonl":
        found = show_text(target.suffix) or "no suffix"
        raise DataError(f"{name}: expected a file named .jsonl to write to, found {found!r}")
    with storage_faults(name):
        if os.path.lexists(target):  # also true of a broken link
            raise DataError(f"{name}: the file exists already and is not replaced. Remove it or name another one")
        check_writable_folder(target.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(target) as unfinished, unfinished.open("w", encoding="utf-8", newline="\n") as file:
            for conversation in conversations:
                file.write(json.dumps(to_row(conversation), ensure_ascii=False) + "\n")


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
