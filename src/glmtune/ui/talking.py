"""Asks one or two models at once, by the same steps as `/v1/chat/completions`."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from pydantic import ValidationError

from glmtune.errors import DataError, GlmtuneError
from glmtune.server.errors import ApiError
from glmtune.server.generation import Choice, merged
from glmtune.server.prompting import chat_prompt, chat_sampling, engine_requests
from glmtune.server.protocol import ChatRequest
from glmtune.server.replies import ReplyReader
from glmtune.server.service import Service
from glmtune.server.validation import invalid_request

Messages = list[dict[str, str]]


async def ask(
    service: Service, histories: Sequence[tuple[str, Messages]], options: Mapping[str, Any]
) -> AsyncGenerator[list[str], None]:
    """Answers several conversations at once; closing the generator ends the replies.

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
        bodies = [ChatRequest.model_validate({"model": name, "messages": m, **options}) for name, m in histories]
        served = [service.models.get(body.model) for body in bodies]
        requests = [
            engine_requests(
                service.models,
                one,
                chat_prompt(service.models, one, body.messages, None),
                chat_sampling(service.models, body),
                body,
                service.max_prompt_tokens,
            )[0]
            for one, body in zip(served, bodies, strict=True)
        ]
        tickets = service.submit(requests, is_whole=False)
    except ValidationError as error:
        raise DataError(str(invalid_request(error.errors(), ()))) from error
    except ApiError as error:
        raise DataError(str(error)) from error
    tokenizer = service.models.tokenizer
    choices = [
        Choice(index, ticket, ReplyReader(tokenizer, one.template), service.worker, tokenizer)
        for index, (ticket, one) in enumerate(zip(tickets, served, strict=True))
    ]
    texts = [""] * len(choices)
    try:
        async with aclosing(merged(choices)) as parts:
            async for choice, part in parts:
                texts[choice.index] += part.text
                yield list(texts)
    except ApiError as error:
        raise GlmtuneError(str(error)) from error
    finally:
        service.worker.cancel(tickets)
