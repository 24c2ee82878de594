"""Incremental decoding of token ids into text."""

from collections.abc import Sequence

from glmtune.models.tokenizer import Tokenizer


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
        self._ids: list[int] = []
        self._settled = 0  # ids whose text has been returned
        self._context = 0  # where decoding of the next text starts

    def push(self, token_ids: Sequence[int]) -> str:
        """Adds new ids; returns the text that they complete, "" while a character is incomplete."""
        self._ids.extend(int(token_id) for token_id in token_ids)
        text = self._new_text()
        return "" if text.endswith("\ufffd") else self._settle(text)

    def flush(self) -> str:
        """Returns the remaining text; an incomplete character becomes the replacement character."""
        return self._settle(self._new_text())

    def _new_text(self) -> str:
        before = self._tokenizer.decode_text(self._ids[self._context : self._settled])
        return self._tokenizer.decode_text(self._ids[self._context :])[len(before) :]

    def _settle(self, text: str) -> str:
        if text:  # ids without text, such as role tokens, give no context: the next space would be dropped
            self._context = self._settled
        self._settled = len(self._ids)
        return text
