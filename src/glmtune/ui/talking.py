"""Asks one or two models at once, in the same way as `/v1/chat/completions`."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from pydantic import ValidationError

from glmtune.errors import DataError, GlmtuneError
from glmtune.server.errors import ApiError
from glmtune.server.generation import merged
from glmtune.server.limits import PAGE_PATH
from glmtune.server.pending import Pending, start_chat
from glmtune.server.protocol import ChatRequest
from glmtune.server.requests import RequestRecord, end_record
from glmtune.server.service import Service
from glmtune.server.validation import invalid_request

Messages = list[dict[str, str]]


async def ask(
    service: Service, histories: Sequence[tuple[str, Messages]], options: Mapping[str, Any]
) -> AsyncGenerator[list[str], None]:
    """Answers several conversations at once; closing the generator ends the replies. Each is logged as a request.

    Args:
        service: The server.
        histories: For each reply, the model's name and the messages.
        options: Fields of a request, such as `temperature`.

    Yields:
        All replies so far.

    Raises:
        GlmtuneError: The question cannot be answered.
    """
    try:
        bodies = [
            ChatRequest.model_validate({"model": name, "messages": messages, "stream": True, **options})
            for name, messages in histories
        ]
    except ValidationError as error:
        raise DataError(str(invalid_request(error.errors(), ()))) from error
    records = [RequestRecord(client=None, path=PAGE_PATH) for _ in bodies]
    answers: list[Pending] = []
    try:
        for record, body in zip(records, bodies, strict=True):
            answers.append(await start_chat(service, record, body))
        choices = {answer.choices[0]: number for number, answer in enumerate(answers)}
        texts = [""] * len(choices)
        async with aclosing(merged(list(choices))) as parts:
            async for choice, part in parts:
                texts[choices[choice]] += part.text
                yield list(texts)
        for answer in answers:
            answer.record.status = 200
            answer.note_finish()
    except Exception as error:
        for record in records:
            record.status = error.status if isinstance(error, ApiError) else 500
        if isinstance(error, ApiError):
            raise GlmtuneError(str(error)) from error
        raise
    finally:
        for answer in answers:
            answer.end()
        for record in records:
            record.is_cancelled = not record.status
            end_record(record, service.metrics, service.write, PAGE_PATH)
