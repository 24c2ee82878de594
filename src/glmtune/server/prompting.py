"""From a request to the engine's: prompt ids by the one renderer, and how to go on from them."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from glmtune.errors import DataError
from glmtune.inference.engine.request import Sampling
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
    """Does work on a text; in a thread if it is long, so that the tokens of other requests do not wait for it.

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


def sampling_of(models: Models, body: ChatRequest | CompletionRequest) -> Sampling:
    """How the replies to a request are chosen."""
    if isinstance(body, ChatRequest):
        num_logprobs = (body.top_logprobs or 0) if body.logprobs else None
        return replace(_sampling(models, body, body.limit), num_logprobs=num_logprobs)
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
