"""A reply's ids, as they come, turned into text and tool calls."""

from collections.abc import Collection, Iterable, Sequence

from glmtune.inference.engine.stop_texts import StopSearch
from glmtune.models.incremental import IncrementalDecoder
from glmtune.models.tokenizer import Tokenizer
from glmtune.prompts import Template, turn_token_id
from glmtune.server.tools import Call, read_call

Piece = str | Call


class ReplyReader:
    """Reads one reply: first everything up to what can still change, at last the rest.

    A message of the model begins with a line of metadata, which is a tool's name or empty. One that names an offered
    tool is kept back until it is complete: either it is a call, or it is text, that line included. White space around a
    message is left out, as `prompts.parse_reply` does.

    Args:
        tokenizer: The tokenizer.
        template: The template of the prompt; None for plain text, in which every character is kept.
        offered: The names of the tools that the model may call.
        stop_texts: Texts before which the reply ends. They are looked for in text only.
        called: The tool that is called, if its name is in the prompt already.

    Attributes:
        is_stopped: Whether one of the texts has been found.
        stop_texts: As given.
        num_header_ids: The ids before the first message's text, which are no part of it.
        has_call: Whether there has been a tool call.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template | None,
        offered: Collection[str] = (),
        stop_texts: Sequence[str] = (),
        called: str | None = None,
    ) -> None:
        self.stop_texts = stop_texts
        self.num_header_ids = 0
        self.has_call = False
        self._tokenizer = tokenizer
        self._is_plain = template is None
        self._turn_id = None if template is None else turn_token_id(tokenizer, template)
        self._offered = frozenset(offered)
        self._search = StopSearch(stop_texts)
        self._silent_ids = frozenset(tokenizer.all_special_ids)
        self._num_ids = 0
        self._has_text = False
        self._start_message(called)

    @property
    def is_stopped(self) -> bool:
        """Whether the reply has ended at one of the texts."""
        return self._search.is_found

    @property
    def keeps_back(self) -> bool:
        """Whether there is text that may be the beginning of one of the texts."""
        return self._search.keeps_back

    def push(self, token_ids: Iterable[int]) -> list[Piece]:
        """Takes more ids and returns what is now certain, in order; texts are not empty."""
        pieces: list[Piece] = []
        run: list[int] = []
        for token_id in token_ids:
            if token_id == self._turn_id and self._turn_id is not None:
                self._read(run, pieces)
                run = []
                self._end_message(pieces)
                self._start_message()
                self._num_ids += 1
            elif token_id in self._silent_ids:
                self._num_ids += 1
            elif self._header is not None:
                self._read([token_id], pieces)
            else:
                run.append(token_id)
        self._read(run, pieces)
        return [piece for piece in pieces if piece]

    def flush(self) -> list[Piece]:
        """Ends the reply and returns the rest of it."""
        pieces: list[Piece] = []
        self._end_message(pieces)
        pieces.append(self._search.flush())
        return [piece for piece in pieces if piece]

    def _start_message(self, called: str | None = None) -> None:
        self._decoder = IncrementalDecoder(self._tokenizer)
        has_header = self._turn_id is not None and called is None
        self._header: str | None = "" if has_header else None  # None once the line is complete
        self._metadata = called or ""
        self._kept: str | None = None if called is None else ""  # of what may be a call
        self._is_begun = self._is_plain
        self._space = ""  # after the last visible character: part of the text only if another one follows

    def _read(self, token_ids: Sequence[int], pieces: list[Piece]) -> None:
        if not token_ids:
            return
        self._num_ids += len(token_ids)
        text = self._decoder.push(token_ids)
        if self._header is None:
            self._add(text, pieces)
            return
        self._header += text
        if "\n" not in self._header:
            return
        header, _, rest = self._header.partition("\n")
        self._header, self._metadata = None, header.strip()
        if not self._has_text and not self.has_call:
            self.num_header_ids = self._num_ids if not self._metadata else 0
        if self._metadata in self._offered:
            self._kept = rest
        else:
            self._add(f"{self._metadata}\n{rest}" if self._metadata else rest, pieces)

    def _end_message(self, pieces: list[Piece]) -> None:
        rest = self._decoder.flush()
        if self._header is not None:  # there was no line break, so all of it is text
            rest, self._header = self._header + rest, None
        if self._kept is None:
            self._add(rest, pieces)
            return
        content, self._kept = self._kept + rest, None
        if call := read_call(self._metadata, content, self._offered):
            self.has_call = True
            pieces.append(self._search.flush())
            pieces.append(call)
        else:
            self._add(f"{self._metadata}\n{content}", pieces)

    def _add(self, text: str, pieces: list[Piece]) -> None:
        if self._kept is not None:
            self._kept += text
            return
        if not self._is_begun:
            text = text.lstrip()
        if self._is_plain:
            visible = text
        else:
            visible = (self._space + text).rstrip()
            if not visible:
                self._space += text if self._is_begun else ""
                return
            self._space = (self._space + text)[len(visible) :]
        separator = "\n" if self._has_text and not self._is_begun else ""
        self._is_begun = self._has_text = True
        pieces.append(self._search.push(separator + visible))
