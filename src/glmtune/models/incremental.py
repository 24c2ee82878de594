"""Text out of token ids that come one by one."""

from collections.abc import Sequence

from glmtune.models.tokenizer import Tokenizer


class IncrementalDecoder:
    """Decodes a reply as it grows, without ever showing half a character.

    Characters outside the vocabulary are spelt as several byte tokens, and sentencepiece drops the space before the
    first piece of whatever it decodes; so only the ids since the last settled text are decoded again, next to the
    ids before them.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._settled = 0  # ids whose text has been handed out
        self._context = 0  # where the decoding of the next text starts

    def push(self, token_ids: Sequence[int]) -> str:
        """Takes new ids; returns the text that they complete, "" while a character is incomplete."""
        self._ids.extend(int(token_id) for token_id in token_ids)
        text = self._new_text()
        return "" if text.endswith("\ufffd") else self._settle(text)

    def flush(self) -> str:
        """Returns what is left at the end, an incomplete character as the replacement character."""
        return self._settle(self._new_text())

    def _new_text(self) -> str:
        before = self._tokenizer.decode_text(self._ids[self._context : self._settled])
        return self._tokenizer.decode_text(self._ids[self._context :])[len(before) :]

    def _settle(self, text: str) -> str:
        if text:  # ids without text, such as a role token, are no context: the space after them would be dropped
            self._context = self._settled
        self._settled = len(self._ids)
        return text
