"""What llama.cpp's file format needs to know of a model: the interface between a family and the export."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# llama.cpp's numbers for kinds of tokens.
NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6


@dataclass(frozen=True)
class GGUFLayout:
    """A model as llama.cpp has it.

    Attributes:
        architecture: llama.cpp's name of the architecture.
        values: The metadata of model and tokenizer, by full key.
        names: llama.cpp's name of each weight, by its own name.
        tokens: Each token with its score and its kind, by llama.cpp's numbers, in the order of their ids.
        ollama_template: Its prompt in the language of Ollama; None where that cannot be.
        stops: The texts at which Ollama is to end a reply.
    """

    architecture: str
    values: Mapping[str, str | int | float | bool]
    names: Mapping[str, str]
    tokens: Sequence[tuple[bytes, float, int]]
    ollama_template: str | None
    stops: tuple[str, ...]
