"""From a request to the engine's: prompt ids by the one renderer, and how to go on from them."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from glmtune.errors import DataError
from glmtune.inference.engine.request import Request, Sampling
from glmtune.inference.options import DEFAULT_MAX_NEW_TOKENS
from glmtune.json_values import check_unicode
from glmtune.prompts import check_turns, render_prompt
from glmtune.prompts.messages import read_chat
from glmtune.server.errors import ApiError
from glmtune.server.models import Models, ServedModel
from glmtune.server.protocol import ChatMessage, ChatRequest, CompletionRequest, Tool

_LONG = 20_000


def chat_prompt(
    models: Models, served: ServedModel, messages: Sequence[ChatMessage], tools: Sequence[Tool] | None
) -> list[int]:
    """Renders a conversation; the run's system prompt holds unless the conversation brings its own.

    Args:
        models: The models.
        served: The one that is asked.
        messages: The conversation.
        tools: The tools that the model may call.

    Raises:
        ApiError: The conversation is not in a valid order, or the template cannot express it.
    """
    for index, message in enumerate(messages):
        if message.name is not None and message.role != "tool":
            raise ApiError(
                "there is no place for the names of participants in ChatGLM's prompts; leave it out",
                param=f"messages[{index}].name",
            )
    values: dict[str, Any] = {"messages": [message.model_dump(exclude_none=True) for message in messages]}
    for message in values["messages"]:
        message.setdefault("content", "")
    if tools:
        values["tools"] = [tool.function.model_dump(exclude_none=True) for tool in tools]
    if served.system and messages[0].role not in ("system", "developer"):
        values["system"] = served.system
    try:
        conversation, faults = read_chat(values, "messages", for_training=False)
        faults = faults or check_turns(conversation, for_training=False)
        if faults:
            raise ApiError("; ".join(faults), param="messages")
        return render_prompt(conversation, models.tokenizer, served.template)
    except DataError as error:
        raise ApiError(str(error), param="messages") from error


async def away_from_loop(length: int, work: Callable[[], Any]) -> Any:
    """Does work on a text; in a thread if it is long, so that nobody else's tokens wait for it.

    Args:
        length: The text's characters.
        work: What is to be done.
    """
    return await asyncio.to_thread(work) if length > _LONG else work()


def chat_length(messages: Sequence[ChatMessage], tools: Sequence[Tool] | None) -> int:
    """About how many characters a conversation has, with its calls and tools."""
    return sum(len(repr(part)) for part in (*messages, *(tools or ())))


def text_prompt(models: Models, prompt: str | list[int]) -> list[int]:
    """Ids of a text that is to be continued as it is; ids that are given stay as they are.

    Raises:
        ApiError: The text is not valid Unicode.
    """
    if isinstance(prompt, str):
        try:
            check_unicode(prompt, "prompt")
        except DataError as error:
            raise ApiError(str(error), param="prompt") from error
        return [*models.tokenizer.prefix_token_ids, *models.tokenizer.encode_text(prompt)]
    return prompt


def chat_sampling(models: Models, body: ChatRequest) -> Sampling:
    """How the replies of a chat are chosen."""
    sampling = _sampling(models, body, body.limit)
    return replace(sampling, num_logprobs=body.top_logprobs or 0) if body.logprobs else sampling


def text_sampling(models: Models, body: CompletionRequest) -> Sampling:
    """How continuations are chosen."""
    return replace(_sampling(models, body, body.max_tokens), num_logprobs=body.logprobs)


def _sampling(models: Models, body: ChatRequest | CompletionRequest, limit: int | None) -> Sampling:
    """As everywhere in glmtune, the likeliest token is taken unless something asks for drawing."""
    asks_for_drawing = (body.top_p, body.top_k, body.min_p, body.seed)
    is_drawn = bool(body.temperature) or (
        body.temperature is None and any(value is not None for value in asks_for_drawing)
    )
    return Sampling(
        max_new_tokens=limit or DEFAULT_MAX_NEW_TOKENS,
        do_sample=is_drawn,
        temperature=max(body.temperature or 1.0, 1e-4),
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty or 1.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        seed=body.seed if is_drawn else None,
        min_new_tokens=body.min_tokens or 0,
        stop_token_ids=tuple(models.tokenizer.stop_token_ids),
    )


def engine_requests(
    models: Models,
    served: ServedModel,
    prompt_ids: list[int],
    sampling: Sampling,
    body: ChatRequest | CompletionRequest,
    max_prompt_tokens: int | None,
) -> list[Request]:
    """The engine's requests for the choices of one prompt; with a seed, each choice has its own.

    Args:
        models: The models.
        served: The one that is asked.
        prompt_ids: The prompt.
        sampling: From `chat_sampling` or `text_sampling`.
        body: The request.
        max_prompt_tokens: The most tokens of a prompt; None for as many as the context has.

    Raises:
        ApiError: Prompt and reply do not fit into the context.
    """
    is_chat = isinstance(body, ChatRequest)
    length, context, param = len(prompt_ids), models.max_length, "messages" if is_chat else "prompt"
    limit = body.limit if isinstance(body, ChatRequest) else body.max_tokens
    most = min(max_prompt_tokens or context, context - 1)
    if length > most:
        raise ApiError(
            f"the prompt has {length} tokens; at most {most} are taken. Shorten it",
            param=param,
            code="context_length_exceeded",
        )
    if limit is not None and length + limit > context:
        raise ApiError(
            f"a prompt of {length} tokens and {limit} new ones do not fit into the model's context of {context} "
            "tokens; shorten the prompt, or ask for fewer new tokens",
            param="max_completion_tokens" if is_chat and body.max_tokens is None else "max_tokens",
            code="context_length_exceeded",
        )
    sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, context - length))
    return [Request(prompt_ids, _with_seed_of(sampling, number), served.adapter) for number in range(body.n or 1)]


def _with_seed_of(sampling: Sampling, number: int) -> Sampling:
    if sampling.seed is None:
        return sampling
    return replace(sampling, seed=(sampling.seed + number) % 2**63)  # also of a negative one
