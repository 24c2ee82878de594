"""The answers of `/v1/chat/completions` and `/v1/completions`, whole or as streams of events."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from glmtune.server.answers import (
    DONE,
    AnsweredCall,
    AnsweredMessage,
    ChatAnswer,
    ChatChoice,
    ChatLogprobs,
    ChunkWriter,
    TextAnswer,
    TextChoice,
    TextLogprobs,
    TokenLogprob,
    call_delta,
    json_text,
    new_id,
)
from glmtune.server.connections import GONE, EventStream, unless_gone
from glmtune.server.errors import ApiError
from glmtune.server.generation import Choice, Part, merged
from glmtune.server.pending import Pending, start_chat, start_texts
from glmtune.server.protocol import ChatRequest, CompletionRequest
from glmtune.server.requests import RequestRecord, record_of
from glmtune.server.service import Service
from glmtune.server.tools import Call


async def answer_chat(service: Service, http: HttpRequest, body: ChatRequest) -> Response:
    """Answers a conversation.

    Raises:
        ApiError: The request cannot be answered.
    """
    record = record_of(http.scope)
    pending = await unless_gone(http.receive, start_chat(service, record, body))
    if pending is None:
        return _gone(record)
    name = pending.served.name
    answer_id = new_id("chatcmpl")
    if body.stream:
        chunks = ChunkWriter(answer_id, "chat.completion.chunk", name, body.includes_usage)
        events = _chat_events(pending, chunks, has_logprobs=bool(body.logprobs), has_usage=body.includes_usage)
        return await _stream(pending, http, events)
    parts = await _wholes(pending, http)
    if parts is None:
        return _gone(record)
    choices = [
        ChatChoice(
            index=index,
            message=_message(part),
            logprobs=ChatLogprobs(content=part.logprobs) if body.logprobs else None,
            finish_reason=part.finish_reason or "stop",
        )
        for index, part in enumerate(parts)
    ]
    answer = ChatAnswer(id=answer_id, model=name, choices=choices, usage=pending.usage)
    return JSONResponse(_without_calls(answer.model_dump()))


def _message(part: Part) -> AnsweredMessage:
    calls = [AnsweredCall.model_validate(piece.as_json()) for piece in part.pieces if isinstance(piece, Call)]
    return AnsweredMessage(content=part.text or ("" if not calls else None), tool_calls=calls or None)


def _without_calls(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer as OpenAI gives it: without the key where no tool is called."""
    for choice in answer["choices"]:
        if choice["message"]["tool_calls"] is None:
            del choice["message"]["tool_calls"]
    return answer


async def _chat_events(
    pending: Pending, chunks: ChunkWriter, *, has_logprobs: bool, has_usage: bool
) -> AsyncIterator[str]:
    begun: set[Choice] = set()
    num_calls = dict.fromkeys(pending.choices, 0)
    async with aclosing(merged(pending.choices)) as parts:
        async for choice, part in parts:
            deltas: list[dict[str, Any]] = []
            if choice not in begun:
                begun.add(choice)
                deltas.append({"role": "assistant", "content": ""})
            for piece in part.pieces:
                if isinstance(piece, Call):
                    deltas.append(call_delta(piece, num_calls[choice]))
                    num_calls[choice] += 1
                else:
                    deltas.append({"content": piece})
            if part.finish_reason is not None:
                deltas.append({})
            logprobs, events = part.logprobs, ""
            for delta in deltas:
                entry: dict[str, Any] = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
                if has_logprobs and logprobs and (delta.get("content") or not delta):
                    entry["logprobs"] = {"content": [each.model_dump() for each in logprobs], "refusal": None}
                    logprobs = []
                if not delta:
                    entry["finish_reason"] = part.finish_reason
                events += chunks.chunk(entry)
            yield events
    yield (chunks.usage(pending.usage) if has_usage else "") + DONE


async def answer_text(service: Service, http: HttpRequest, body: CompletionRequest) -> Response:
    """Continues texts.

    Raises:
        ApiError: The request cannot be answered.
    """
    record = record_of(http.scope)
    pending = await unless_gone(http.receive, start_texts(service, record, body))
    if pending is None:
        return _gone(record)
    name = pending.served.name
    answer_id = new_id("cmpl")
    if body.stream:
        chunks = ChunkWriter(answer_id, "text_completion", name, body.includes_usage)
        return await _stream(pending, http, _text_events(pending, chunks, body.logprobs, has_usage=body.includes_usage))
    parts = await _wholes(pending, http)
    if parts is None:
        return _gone(record)
    choices = [
        TextChoice(
            index=index,
            text=part.text,
            logprobs=_text_logprobs(part.logprobs, body.logprobs),
            finish_reason=part.finish_reason or "stop",
        )
        for index, part in enumerate(parts)
    ]
    answer = TextAnswer(id=answer_id, model=name, choices=choices, usage=pending.usage)
    return JSONResponse(answer.model_dump())


async def _text_events(
    pending: Pending, chunks: ChunkWriter, num_logprobs: int | None, *, has_usage: bool
) -> AsyncIterator[str]:
    offsets = dict.fromkeys(pending.choices, 0)
    async with aclosing(merged(pending.choices)) as parts:
        async for choice, part in parts:
            logprobs = _text_logprobs(part.logprobs, num_logprobs, offsets[choice])
            offsets[choice] += sum(len(each.token) for each in part.logprobs)
            yield chunks.chunk(
                {
                    "index": choice.index,
                    "text": part.text,
                    "logprobs": None if logprobs is None else logprobs.model_dump(),
                    "finish_reason": part.finish_reason,
                }
            )
    yield (chunks.usage(pending.usage) if has_usage else "") + DONE


def _text_logprobs(logprobs: Sequence[TokenLogprob], number: int | None, offset: int = 0) -> TextLogprobs | None:
    if number is None:
        return None
    offsets = []
    for each in logprobs:
        offsets.append(offset)
        offset += len(each.token)
    return TextLogprobs(
        tokens=[each.token for each in logprobs],
        token_logprobs=[each.logprob for each in logprobs],
        top_logprobs=[{top.token: top.logprob for top in each.top_logprobs} for each in logprobs] if number else None,
        text_offset=offsets,
    )


def _gone(record: RequestRecord) -> Response:
    """What is answered to a client that has gone away."""
    record.is_cancelled = True
    return Response(status_code=GONE)


async def _wholes(pending: Pending, http: HttpRequest) -> list[Part] | None:
    """All choices; None if the client has gone away."""
    try:
        parts = await unless_gone(http.receive, _gather(pending.choices))
    finally:
        pending.end()
    if parts is not None:
        pending.note_finish()
    return parts


async def _gather(choices: Sequence[Choice]) -> list[Part]:
    tasks = [asyncio.ensure_future(choice.whole()) for choice in choices]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _stream(pending: Pending, http: HttpRequest, events: AsyncIterator[str]) -> Response:
    """A stream, once its first event is there: until then, whatever goes wrong still has its own status."""
    try:
        first = await unless_gone(http.receive, _first(events))
    except BaseException:
        pending.end()
        raise
    if first is None:
        pending.end()
        return _gone(pending.record)
    return EventStream(_guarded(pending, first, events), pending.abandon, pending.end)


async def _first(events: AsyncIterator[str]) -> str:
    return await anext(events)


async def _guarded(pending: Pending, first: str, events: AsyncIterator[str]) -> AsyncIterator[str]:
    """The events; an error on the way becomes the last one."""
    try:
        yield first
        async for event in events:
            yield event
        pending.note_finish()
    except ApiError as error:
        pending.record.finish = "error"
        yield f"data: {json_text(error.body)}\n\n"
