"""Replies on their way: from the worker's events to parts of text, tool calls and log-probabilities."""

import asyncio
import re
from bisect import bisect_left
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from glmtune.errors import GlmtuneError
from glmtune.inference.engine.engine import Event
from glmtune.inference.engine.sampling import Logprobs
from glmtune.models.tokenizer import Tokenizer
from glmtune.server.answers import FinishReason, TokenLogprob, TopLogprob
from glmtune.server.errors import ApiError
from glmtune.server.replies import Piece, ReplyReader
from glmtune.server.worker import RefusedError, Ticket, Worker

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"  # sentencepiece's
# A chunk costs a tenth of a millisecond of Python, which the engine's thread needs too; so with many streams, each of
# them gets its tokens in groups. From 64 on, that is every tenth of a second.
_PAUSE_PER_STREAM_S = 0.0016
_LONGEST_PAUSE_S = 0.1


@dataclass
class Part:
    """What has been added to a reply.

    Attributes:
        pieces: Text and tool calls, in order.
        logprobs: Those of the new tokens, if they are asked for.
        finish_reason: Why the reply has ended; None if it goes on.
    """

    pieces: list[Piece] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """All text in it."""
        return "".join(piece for piece in self.pieces if isinstance(piece, str))


async def take(ticket: Ticket) -> list[Event]:
    """What has come for a ticket.

    Raises:
        ApiError: The engine refused the request, or could not go on.
    """
    try:
        return await ticket.take()
    except RefusedError as error:
        raise ApiError(str(error)) from error
    except GlmtuneError as error:
        raise ApiError(str(error), status=500, code="generation_failed") from error


class Choice:
    """One reply to a request.

    Args:
        index: Its number among the request's.
        ticket: The worker's.
        reader: What reads its ids.
        worker: The worker.
        tokenizer: The tokenizer.

    Attributes:
        num_tokens: The tokens that it has so far.
        finish_reason: Why it has ended; None if it goes on.
    """

    def __init__(self, index: int, ticket: Ticket, reader: ReplyReader, worker: Worker, tokenizer: Tokenizer) -> None:
        self.index = index
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._ticket = ticket
        self._reader = reader
        self._worker = worker
        self._tokenizer = tokenizer
        self._untold: list[tuple[int, Logprobs]] = []
        self._is_header_left_out = False

    async def parts(self, pause_between: bool = False) -> AsyncGenerator[Part, None]:
        """The parts of the reply as they come; the last one has a `finish_reason`.

        Args:
            pause_between: Whether to wait between parts, the longer the more requests there are.

        Raises:
            ApiError: The engine refused the request, or could not go on.
        """
        while True:
            part = await self._next()
            if not (part.pieces or part.logprobs or part.finish_reason):
                continue
            yield part
            if part.finish_reason is not None:
                return
            if pause_between:
                await self._ticket.pause(min(_LONGEST_PAUSE_S, _PAUSE_PER_STREAM_S * self._worker.num_active))

    async def whole(self) -> Part:
        """The whole reply.

        Raises:
            ApiError: As `parts`.
        """
        whole = Part()
        async for part in self.parts():
            whole.pieces += part.pieces
            whole.logprobs += part.logprobs
            whole.finish_reason = part.finish_reason
        return whole

    async def _next(self) -> Part:
        events = await take(self._ticket)
        new_ids = [token_id for event in events for token_id in event.new_ids]
        self.num_tokens += len(new_ids)
        self._untold += zip(new_ids, (each for event in events for each in event.logprobs), strict=False)
        reason = events[-1].finish_reason
        pieces = self._reader.push(new_ids)
        if self._reader.is_stopped and reason is None:
            self._worker.cancel([self._ticket])
            reason = "stop"
        elif reason == "stop":
            self._untold = self._untold[:-1]  # the token that ended the reply is no part of it
        if reason is not None:
            pieces += self._reader.flush()
            reason = "stop" if self._reader.is_stopped else reason
        finish: FinishReason | None = None
        if reason is not None:
            finish = "length" if reason == "length" else "tool_calls" if self._reader.has_call else "stop"
        self.finish_reason = finish
        is_certain = finish is not None or (bool(pieces) and not self._reader.keeps_back)
        return Part(pieces, self._told() if is_certain else [], finish)

    def _told(self) -> list[TokenLogprob]:
        """The log-probabilities of the tokens since the last part, without those of an empty metadata line."""
        told, self._untold = self._untold, []
        if not self._is_header_left_out:
            self._is_header_left_out = True
            told = told[self._reader.num_header_ids :]
        if self._reader.is_stopped:
            told = told[: self._num_before_stop([token_id for token_id, _ in told])]
        return [
            TokenLogprob(
                **_token(self._tokenizer, token_id, logprobs.chosen),
                top_logprobs=[
                    TopLogprob(**_token(self._tokenizer, top_id, value))
                    for top_id, value in zip(logprobs.top_ids, logprobs.top, strict=True)
                ],
            )
            for token_id, logprobs in told
        ]

    def _num_before_stop(self, token_ids: list[int]) -> int:
        """How many of the last tokens begin before the text that ended the reply."""

        def length(count: int) -> int:
            return len(self._tokenizer.decode_text(token_ids[:count]).rstrip("\ufffd"))  # half a character

        text = self._tokenizer.decode_text(token_ids)
        starts = [start for stop in self._reader.stop_texts if (start := text.find(stop)) >= 0]
        return bisect_left(range(len(token_ids)), min(starts, default=len(text)), key=length)


def _token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    """Text and bytes of a token by itself, as the vocabulary has it; a special token has no bytes."""
    text = tokenizer.convert_ids_to_tokens([token_id])[0]
    # JSON has no infinity.
    values: dict[str, Any] = {"logprob": max(logprob, -9999.0)}
    if token_id in tokenizer.all_special_ids:
        return {**values, "token": text, "bytes": None}
    if byte := _BYTE.fullmatch(text):
        number = int(byte[1], 16)
        return {**values, "token": chr(number) if number < 128 else f"bytes:\\x{number:02x}", "bytes": [number]}
    text = text.replace(_SPACE, " ")
    return {**values, "token": text, "bytes": list(text.encode())}


async def merged(choices: Sequence[Choice]) -> AsyncGenerator[tuple[Choice, Part], None]:
    """The parts of several replies, as they come.

    Raises:
        ApiError: As `Choice.parts`.
    """
    if len(choices) == 1:
        async with aclosing(choices[0].parts(pause_between=True)) as parts:
            async for part in parts:
                yield choices[0], part
        return
    iterators = {choice: choice.parts(pause_between=True) for choice in choices}
    waiting: dict[asyncio.Task[Part], Choice] = {}

    def wait_for(choice: Choice) -> None:
        waiting[asyncio.ensure_future(anext(iterators[choice]))] = choice  # type: ignore[arg-type]

    try:
        for choice in choices:
            wait_for(choice)
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                choice, part = waiting.pop(task), task.result()
                if part.finish_reason is None:
                    wait_for(choice)
                yield choice, part
    finally:
        for task in waiting:
            task.cancel()
