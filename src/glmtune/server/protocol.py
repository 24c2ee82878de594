"""Requests as OpenAI's clients send them, validated. What is not supported is refused by name.

Source: OpenAI's API reference of chat completions, completions and models; vLLM's server for `/tokenize` and
the further sampling options.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from glmtune.server.errors import without_unset

MOST_CHOICES = 16
MOST_PROMPTS = 64
_MOST_MESSAGES = 4096
_MOST_STOPS = 16
_MOST_FIELDS = 100  # of an object; far more than any has

Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
# As a line of metadata by itself: the model writes it before a call.
ToolName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^\S+$")]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
# Lists are read up to their first fault: to list a million of them would hold up all other requests for seconds.
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, fail_fast=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _check_size(cls, values: Any) -> Any:
        if isinstance(values, dict) and len(values) > _MOST_FIELDS:
            raise ValueError(f"at most {_MOST_FIELDS} fields are expected, found {len(values):,}")
        return values


class TextPart(_Strict):
    """A part of a message's content; only text is understood."""

    type: Literal["text"]
    text: str


class CalledFunction(_Strict):
    """Name and arguments of a tool call; the arguments are JSON text."""

    name: ToolName
    arguments: str


class ToolCall(_Strict):
    """A tool call of an earlier reply."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(_Strict):
    """A message of the conversation so far.

    The last four fields are null in the messages of OpenAI's own clients, and nothing else is allowed there.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


class FunctionDefinition(_Strict):
    """A tool that the model may call."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None


class Tool(_Strict):
    """A tool in OpenAI's wrapper."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(_Strict):
    """A tool by its name."""

    name: ToolName


class NamedTool(_Strict):
    """The tool that the model has to call."""

    type: Literal["function"]
    function: NamedFunction


class ResponseFormat(_Strict):
    """The form of the reply; only text."""

    type: Literal["text"]


class StreamOptions(_Strict):
    """What a stream holds besides the reply."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class _Sampled(_Strict):
    """What both kinds of completions have in common."""

    model: Name | None = Field(None, description="A run's name, or base; the first of them if left out.")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = 1
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=_MOST_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None,
        description="Replies are drawn if it is above 0; without it, and without top_p and the like, they are not.",
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None, description="Not in OpenAI's interface; 0 is off."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="Not in OpenAI's interface.")
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = Field(
        None, description="Not in OpenAI's interface; 1 has no effect."
    )
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None, description="Not in OpenAI's interface: tokens before which the model does not end a reply."
    )
    user: str | None = Field(None, max_length=200, description="Appears in the server's log.")

    @model_validator(mode="before")
    @classmethod
    def _without_unset(cls, values: Any) -> Any:
        return without_unset(values)

    @model_validator(mode="after")
    def _check_stream(self) -> "_Sampled":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The texts before which a reply ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(_Sampled):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=_MOST_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = Field(
        None, description="With a name, or required, the reply begins as a call."
    )
    parallel_tool_calls: bool | None = Field(None, description="ChatGLM3 makes one call at a time in any case.")
    response_format: ResponseFormat | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _check_together(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.tool_choice not in (None, "auto", "none") and not self.tools:
            raise ValueError("tool_choice needs tools to choose from")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in self.tool_names:
            raise ValueError("tool_choice names none of the tools")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ValueError("max_tokens and max_completion_tokens are two names of one limit; give one of them")
        return self

    @property
    def tool_names(self) -> list[str]:
        """The names of the tools that may be called."""
        return [] if self.tool_choice == "none" else [tool.function.name for tool in self.tools or ()]

    @property
    def must_call(self) -> list[str]:
        """The names of the tools of which one has to be called; none if it is up to the model."""
        if isinstance(self.tool_choice, NamedTool):
            return [self.tool_choice.function.name]
        return self.tool_names if self.tool_choice == "required" else []

    @property
    def limit(self) -> int | None:
        """The most new tokens, by whichever name it was given."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens


class CompletionRequest(_Sampled):
    """`POST /v1/completions`: continues text as it is, without roles."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


class TokenizeRequest(_Strict):
    """`POST /tokenize`: a text, or a conversation as `/v1/chat/completions` would render it."""

    model: Name | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=_MOST_MESSAGES, fail_fast=True)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None

    @model_validator(mode="after")
    def _check_one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("expected either prompt or messages")
        if self.tools is not None and self.messages is None:
            raise ValueError("tools go with messages")
        return self


class TokenizeAnswer(BaseModel):
    """Ids, their number, and how many the model reads."""

    tokens: list[int]
    count: int
    max_model_len: int


class AdapterRequest(_Strict):
    """`POST /v1/adapters`."""

    path: Annotated[str, StringConstraints(min_length=1, max_length=4096)] = Field(
        description="A run's folder, within one of those that the server allows."
    )
    name: Name | None = Field(None, description="What requests call it; the folder's name if left out.")
