"""What is evaluated: rows with a reference answer, from files or from the built-in general questions."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from glmtune.data.formats import read_conversations
from glmtune.data.weights import Paths
from glmtune.prompts import Conversation, Message


@dataclass(frozen=True)
class EvaluationRow:
    """A row with a reference answer.

    Attributes:
        source: Where it stands, for messages.
        conversation: The whole conversation, of which the loss is computed.
        asked: The conversation up to the last turn that is not the assistant's.
        label: The reference: what the assistant answers there.
    """

    source: str
    conversation: Conversation
    asked: Conversation
    label: str

    @classmethod
    def of(cls, conversation: Conversation, source: str) -> "EvaluationRow":
        """The row of a conversation that ends with the assistant's turn."""
        messages = conversation.messages
        length = max(number for number, message in enumerate(messages, start=1) if message.role != "assistant")
        label = "\n".join(message.content for message in messages[length:] if message.content)
        return cls(source, conversation, Conversation(messages[:length]), label)

    @property
    def question(self) -> str:
        """The last turn before the answer."""
        return self.asked.messages[-1].content


def read_rows(
    paths: Paths, *, count: int | None, seed: int = 0, fields: Mapping[str, str] | None = None, join: str = "\n"
) -> tuple[list[EvaluationRow], int]:
    """Reads the rows to evaluate on.

    Args:
        paths: Data files of any training format.
        count: The most rows; of more, as many are drawn, in the order of the files. None for all.
        seed: Seed for drawing them.
        fields: As for `read_conversations`, as is `join`.

    Returns:
        The rows, and how many there are in the files.

    Raises:
        DataError: Anything is wrong in any file.
    """
    found = read_conversations(paths, fields, join)
    chosen = list(range(len(found)))
    if count is not None and count < len(chosen):
        chosen = sorted(random.Random(seed).sample(chosen, count))
    return [EvaluationRow.of(found.items[index], str(found.sources[index])) for index in chosen], len(found)


def general_file() -> Path:
    """The file of general questions in the package."""
    return Path(str(resources.files("glmtune"))) / "assets" / "general" / "questions.json"


def general_rows() -> list[EvaluationRow]:
    """General questions in Chinese and English with short answers: what a model must not forget."""
    rows = json.loads(general_file().read_text(encoding="utf-8"))
    return [
        EvaluationRow.of(
            Conversation((Message("user", row["question"]), Message("assistant", row["answer"]))),
            f"general question {number}",
        )
        for number, row in enumerate(rows, start=1)
    ]
