"""Incremental decoding of token ids into text."""

from collections.abc import Sequence

from glmtune.models.tokenizer import Tokenizer

# More ids than any character has; what is decoded again and again should be short.
_MOST_CONTEXT = 8


class IncrementalDecoder:
    """Decodes a reply as it is generated, without ever returning an incomplete character.

    Characters outside the vocabulary are encoded as several byte tokens, and sentencepiece drops the space before the
    first piece that it decodes. So new ids are decoded together with the ids of the previously returned text, as
    context.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # the context, and ids whose text has not been returned
        self._num_context = 0
        self._context = ""  # the context's text

    def push(self, token_ids: Sequence[int]) -> str:
        """Adds new ids; returns the text that they complete, "" while a character is incomplete."""
        self._ids.extend(token_ids)
        text = self._new_text()
        return "" if text.endswith("\ufffd") else self._settle(text)

    def flush(self) -> str:
        """Returns the remaining text; an incomplete character becomes the replacement character."""
        return self._settle(self._new_text())

    def _new_text(self) -> str:
        return self._tokenizer.decode_text(self._ids)[len(self._context) :]

    def _settle(self, text: str) -> str:
        if text:  # ids without text, such as role tokens, give no context: the next space would be dropped
            new = self._ids[self._num_context :]
            self._ids = new[-_MOST_CONTEXT:]
            self._context = self._tokenizer.decode_text(self._ids)
            if not self._context:
                self._ids, self._context = new, self._tokenizer.decode_text(new)
        self._num_context = len(self._ids)
        return text
