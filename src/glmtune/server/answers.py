"""Answers as OpenAI's clients read them."""

import json
import secrets
import time
from typing import Any, Literal

from pydantic import BaseModel, Field

from glmtune.server.tools import Call

FinishReason = Literal["stop", "length", "tool_calls"]


class Usage(BaseModel):
    """Tokens of a request; those of all its choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int) -> "Usage":
        """The usage of so many tokens."""
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )


class TopLogprob(BaseModel):
    """A token that might have come, and how likely it was."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the reply, how likely it was, and the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a reply's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class AnsweredCall(BaseModel):
    """A tool call."""

    id: str
    type: Literal["function"] = "function"
    function: dict[str, str]


class AnsweredMessage(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[AnsweredCall] | None = None


class _Choice(BaseModel):
    index: int
    finish_reason: FinishReason


class _Answer(BaseModel):
    id: str
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    usage: Usage


class ChatChoice(_Choice):
    """One reply."""

    message: AnsweredMessage
    logprobs: ChatLogprobs | None


class ChatAnswer(_Answer):
    """A chat completion."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class TextLogprobs(BaseModel):
    """Log-probabilities of a continuation's tokens."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class TextChoice(_Choice):
    """One continuation."""

    text: str
    logprobs: TextLogprobs | None


class TextAnswer(_Answer):
    """A completion."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]


class ModelAnswer(BaseModel):
    """A model that requests may name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "glmtune"


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class DeletedModel(BaseModel):
    """One that is gone."""

    id: str
    object: Literal["model"] = "model"
    deleted: bool = True


class Health(BaseModel):
    """Whether the server takes requests."""

    status: Literal["ok", "stopping"]


def new_id(kind: str) -> str:
    """A random, unguessable id: `chatcmpl-...`."""
    return f"{kind}-{secrets.token_hex(12)}"


def json_text(value: Any) -> str:
    """JSON without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class ChunkWriter:
    """Writes the chunks of a stream, whose beginning is always the same.

    Args:
        answer_id: The stream's id.
        kind: `chat.completion.chunk` or `text_completion`.
        model: The model's name.
        has_usage: Whether a chunk says that its usage comes later.
    """

    def __init__(self, answer_id: str, kind: str, model: str, has_usage: bool) -> None:
        head = {"id": answer_id, "object": kind, "created": int(time.time()), "model": model}
        self._head = f"data: {json_text(head)[:-1]},"
        self._tail = ',"usage":null}\n\n' if has_usage else "}\n\n"

    def chunk(self, choice: dict[str, Any]) -> str:
        """A chunk with one choice."""
        return f'{self._head}"choices":[{json_text(choice)}]{self._tail}'

    def usage(self, usage: Usage) -> str:
        """The last chunk, with the usage alone."""
        return f'{self._head}"choices":[],"usage":{json_text(usage.model_dump())}}}\n\n'


DONE = "data: [DONE]\n\n"


def call_delta(call: Call, number: int) -> dict[str, Any]:
    """A tool call within a chunk."""
    return {"tool_calls": [{"index": number, **call.as_json()}]}
