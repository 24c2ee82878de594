"""What llama.cpp's file format needs to know of a model: the interface between a family and the export."""

from collections.abc import Mapping
from dataclasses import dataclass

# llama.cpp's numbers for kinds of tokens.
NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model, each with its score and kind, and how text is tokenised.

    Attributes:
        pieces: The tokens, in the order of their ids.
        scores: Their scores.
        kinds: Their kinds, by llama.cpp's numbers.
        values: Further metadata under `tokenizer.`, by full key.
    """

    pieces: list[bytes]
    scores: list[float]
    kinds: list[int]
    values: Mapping[str, str | int | bool]


@dataclass(frozen=True)
class GGUFLayout:
    """A model as llama.cpp has it.

    Attributes:
        architecture: llama.cpp's name of the architecture.
        values: Its metadata, by keys without the architecture's name.
        names: llama.cpp's name of each weight, by its own name.
        vocabulary: The tokens.
        ollama_template: Its prompt in the language of Ollama; None where that cannot be.
        stops: The texts at which Ollama is to end a reply.
    """

    architecture: str
    values: Mapping[str, int | float]
    names: Mapping[str, str]
    vocabulary: Vocabulary
    ollama_template: str | None
    stops: tuple[str, ...]
