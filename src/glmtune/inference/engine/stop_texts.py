"""Ends a reply before a text."""

from collections.abc import Sequence

from glmtune.models.incremental import IncrementalDecoder
from glmtune.models.tokenizer import Tokenizer


class StopSearch:
    """Passes a text on as it comes, up to the first of some texts.

    What may be the beginning of such a text is kept back until it is known.

    Args:
        texts: The texts that end it; an empty one ends nothing.

    Attributes:
        is_found: Whether one of them has been found.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.is_found = False
        self._texts = [text for text in texts if text]
        self._kept = ""

    @property
    def keeps_back(self) -> bool:
        """Whether there is text that may be the beginning of one of them."""
        return bool(self._kept)

    def push(self, text: str) -> str:
        """Takes more text and returns what is now known to come before any of the texts."""
        if self.is_found:
            return ""
        self._kept += text
        self._look()
        possible = range(min(len(self._kept), max(map(len, self._texts), default=1) - 1), 0, -1)
        length = next((n for n in possible if any(text.startswith(self._kept[-n:]) for text in self._texts)), 0)
        return self._release(len(self._kept) - (0 if self.is_found else length))

    def flush(self) -> str:
        """Returns what was kept back."""
        return self._release(len(self._kept))

    def _look(self) -> None:
        starts = [start for text in self._texts if (start := self._kept.find(text)) >= 0]
        if starts:
            self.is_found = True
            self._kept = self._kept[: min(starts)]

    def _release(self, length: int) -> str:
        text, self._kept = self._kept[:length], self._kept[length:]
        return text


class StopTexts:
    """Decodes a reply as it is generated, up to the first of some texts.

    Args:
        tokenizer: The tokenizer.
        texts: As for `StopSearch`.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        self._decoder = IncrementalDecoder(tokenizer)
        self._search = StopSearch(texts)

    @property
    def is_found(self) -> bool:
        """Whether one of the texts has been found."""
        return self._search.is_found

    def push(self, token_id: int) -> str:
        """Takes the next id and returns the text that now belongs to the reply for sure."""
        return self._search.push(self._decoder.push([token_id]))

    def flush(self) -> str:
        """Ends the reply and returns the rest of its text."""
        return self._search.push(self._decoder.flush()) + self._search.flush()
