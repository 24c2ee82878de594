"""The interface that the rest of glmtune needs of a tokenizer."""

from typing import Any, Protocol

from glmtune.prompts import Template
from glmtune.prompts.conversation import PromptTokenizer


class Tokenizer(PromptTokenizer, Protocol):
    """A family's tokenizer: what the renderer needs, and how a reply ends.

    Attributes:
        init_kwargs: The arguments it was created with, including a stored prompt; saved with it.
    """

    init_kwargs: dict[str, Any]

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""

    def convert_ids_to_tokens(self, ids: list[int], skip_special_tokens: bool = False) -> list[str]:
        """The tokens as the vocabulary spells them."""

    @property
    def template(self) -> Template:
        """The prompt template of the model that this tokenizer belongs to."""

    @property
    def stop_token_ids(self) -> list[int]:
        """The ids that end a reply."""

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of special tokens, which have no text."""

    @property
    def pad_token_id(self) -> int:
        """The padding id of batches."""
