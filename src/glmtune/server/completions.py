"""`/v1/chat/completions` and `/v1/completions`: from a valid request to its answer."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from glmtune.inference.engine.request import Request
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
    Usage,
    call_delta,
    json_text,
    new_id,
)
from glmtune.server.connections import GONE, EventStream, unless_gone
from glmtune.server.errors import ApiError
from glmtune.server.generation import Choice, Part, merged
from glmtune.server.prompting import (
    away_from_loop,
    chat_length,
    chat_prompt,
    chat_sampling,
    engine_requests,
    text_prompt,
    text_sampling,
)
from glmtune.server.protocol import ChatRequest, CompletionRequest
from glmtune.server.replies import ReplyReader
from glmtune.server.requests import RequestRecord, record_of
from glmtune.server.service import Service
from glmtune.server.tool_choice import begin_call
from glmtune.server.tools import Call
from glmtune.server.worker import Ticket


@dataclass
class _Job:
    """A request that the worker has taken.

    Attributes:
        service: The server.
        record: What the log says of the request.
        tickets: The worker's, one for each choice.
        choices: The choices.
        num_prompt: Tokens of all prompts.
    """

    service: Service
    record: RequestRecord
    tickets: list[Ticket] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    num_prompt: int = 0

    def start(self, requests: Sequence[Request], is_whole: bool, reader: Callable[[], ReplyReader]) -> None:
        """Hands the requests to the worker.

        Raises:
            ApiError: Too many are waiting, or the server is about to stop.
        """
        self.tickets = self.service.submit(requests, is_whole=is_whole)
        worker = self.service.worker
        tokenizer = self.service.models.tokenizer
        self.choices = [Choice(index, ticket, reader(), worker, tokenizer) for index, ticket in enumerate(self.tickets)]

    def end(self) -> None:
        """Gives up what has not ended, and counts what has been generated."""
        self.service.worker.cancel(self.tickets)
        self.record.prompt_tokens, self.record.completion_tokens = self.num_prompt, self.usage.completion_tokens
        times = [ticket.first_token_at for ticket in self.tickets if ticket.first_token_at is not None]
        self.record.first_token_at = min(times, default=None)

    def note_finish(self) -> None:
        """Notes why the replies have ended."""
        self.record.finish = ",".join(sorted({choice.finish_reason or "" for choice in self.choices}))

    def abandon(self) -> None:
        """Notes that the client has gone away."""
        self.record.is_cancelled = True

    @property
    def usage(self) -> Usage:
        """The tokens so far."""
        return Usage.of(self.num_prompt, sum(choice.num_tokens for choice in self.choices))


async def answer_chat(service: Service, http: HttpRequest, body: ChatRequest) -> Response:
    """Answers a conversation.

    Raises:
        ApiError: The request cannot be answered.
    """
    job = _Job(service, record_of(http.scope))
    served = service.models.get(body.model)
    job.record.model, job.record.user = served.name, body.user
    tools = None if body.tool_choice == "none" else body.tools
    length = chat_length(body.messages, tools)
    prompt_ids = await away_from_loop(length, lambda: chat_prompt(service.models, served, body.messages, tools))
    sampling = chat_sampling(service.models, body)
    requests = engine_requests(service.models, served, prompt_ids, sampling, body, service.max_prompt_tokens)
    called = None
    if body.must_call:
        begun = await unless_gone(http.receive, begin_call(service, served, prompt_ids, body.must_call))
        if begun is None:
            job.abandon()
            return Response(status_code=GONE)
        called, prompt_ids = begun[0], prompt_ids + begun[1]
        requests = engine_requests(service.models, served, prompt_ids, sampling, body, service.max_prompt_tokens)
    job.num_prompt = len(prompt_ids)

    def reader() -> ReplyReader:
        return ReplyReader(service.models.tokenizer, served.template, body.tool_names, body.stop_texts, called)

    job.start(requests, not body.stream and not body.stop_texts, reader)
    answer_id = new_id("chatcmpl")
    if body.stream:
        chunks = ChunkWriter(answer_id, "chat.completion.chunk", served.name, body.includes_usage)
        events = _chat_events(job, chunks, has_logprobs=bool(body.logprobs), has_usage=body.includes_usage)
        return await _stream(job, http, events)
    parts = await _wholes(job, http)
    if parts is None:
        return Response(status_code=GONE)
    choices = [
        ChatChoice(
            index=index,
            message=_message(part),
            logprobs=ChatLogprobs(content=part.logprobs) if body.logprobs else None,
            finish_reason=part.finish_reason or "stop",
        )
        for index, part in enumerate(parts)
    ]
    answer = ChatAnswer(id=answer_id, model=served.name, choices=choices, usage=job.usage)
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


async def _chat_events(job: _Job, chunks: ChunkWriter, *, has_logprobs: bool, has_usage: bool) -> AsyncIterator[str]:
    begun: set[Choice] = set()
    num_calls = dict.fromkeys(job.choices, 0)
    async with aclosing(merged(job.choices)) as parts:
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
    yield (chunks.usage(job.usage) if has_usage else "") + DONE


async def answer_text(service: Service, http: HttpRequest, body: CompletionRequest) -> Response:
    """Continues texts.

    Raises:
        ApiError: The request cannot be answered.
    """
    job = _Job(service, record_of(http.scope))
    served = service.models.get(body.model)
    job.record.model, job.record.user = served.name, body.user
    length = sum(map(len, body.prompts))
    prompts = await away_from_loop(length, lambda: [text_prompt(service.models, prompt) for prompt in body.prompts])
    job.num_prompt = sum(map(len, prompts))
    sampling = text_sampling(service.models, body)
    requests = [
        request
        for prompt_ids in prompts
        for request in engine_requests(service.models, served, prompt_ids, sampling, body, service.max_prompt_tokens)
    ]

    def reader() -> ReplyReader:
        return ReplyReader(service.models.tokenizer, None, stop_texts=body.stop_texts)

    job.start(requests, not body.stream and not body.stop_texts, reader)
    answer_id = new_id("cmpl")
    if body.stream:
        chunks = ChunkWriter(answer_id, "text_completion", served.name, body.includes_usage)
        return await _stream(job, http, _text_events(job, chunks, body.logprobs, has_usage=body.includes_usage))
    parts = await _wholes(job, http)
    if parts is None:
        return Response(status_code=GONE)
    choices = [
        TextChoice(
            index=index,
            text=part.text,
            logprobs=_text_logprobs(part.logprobs, body.logprobs),
            finish_reason=part.finish_reason or "stop",
        )
        for index, part in enumerate(parts)
    ]
    answer = TextAnswer(id=answer_id, model=served.name, choices=choices, usage=job.usage)
    return JSONResponse(answer.model_dump())


async def _text_events(
    job: _Job, chunks: ChunkWriter, num_logprobs: int | None, *, has_usage: bool
) -> AsyncIterator[str]:
    offsets = dict.fromkeys(job.choices, 0)
    async with aclosing(merged(job.choices)) as parts:
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
    yield (chunks.usage(job.usage) if has_usage else "") + DONE


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


async def _wholes(job: _Job, http: HttpRequest) -> list[Part] | None:
    """All choices; None if the client has gone away."""
    try:
        parts = await unless_gone(http.receive, _gather(job.choices))
        if parts is None:
            job.abandon()
    finally:
        job.end()
    if parts is not None:
        job.note_finish()
    return parts


async def _gather(choices: Sequence[Choice]) -> list[Part]:
    tasks = [asyncio.ensure_future(choice.whole()) for choice in choices]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _stream(job: _Job, http: HttpRequest, events: AsyncIterator[str]) -> Response:
    """A stream, once its first event is there: until then, whatever goes wrong still has its own status."""
    try:
        first = await unless_gone(http.receive, _first(events))
    except BaseException:
        job.end()
        raise
    if first is None:
        job.abandon()
        job.end()
        return Response(status_code=GONE)
    return EventStream(_guarded(job, first, events), job.abandon, job.end)


async def _first(events: AsyncIterator[str]) -> str:
    return await anext(events)


async def _guarded(job: _Job, first: str, events: AsyncIterator[str]) -> AsyncIterator[str]:
    """The events; an error on the way becomes the last one."""
    try:
        yield first
        async for event in events:
            yield event
        job.note_finish()
    except ApiError as error:
        job.record.finish = "error"
        yield f"data: {json_text(error.body)}\n\n"
