"""What the parts of the server share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from glmtune.inference.engine.request import Request
from glmtune.server.auth import ApiKeys
from glmtune.server.errors import ApiError
from glmtune.server.metrics import Metrics
from glmtune.server.models import Models, ServedModel
from glmtune.server.prompting import sampling_of
from glmtune.server.protocol import ChatRequest, CompletionRequest
from glmtune.server.requests import Write
from glmtune.server.worker import QueueFullError, Ticket, Worker


@dataclass
class Service:
    """A running server.

    Attributes:
        models: What is served.
        worker: The thread that steps the engine.
        metrics: What `/metrics` shows.
        keys: The keys that open it.
        write: Is given the record of each request.
        max_prompt_tokens: The most tokens of a prompt; None for as many as the context has.
        is_stopping: Whether it takes no more requests, and only ends those that run.
    """

    models: Models
    worker: Worker
    metrics: Metrics
    keys: ApiKeys
    write: Write
    max_prompt_tokens: int | None = None
    is_stopping: bool = False

    @property
    def takes_requests(self) -> bool:
        """Whether requests are answered."""
        return self.worker.is_alive and not self.is_stopping

    def check_length(self, prompt_ids: Sequence[int], body: ChatRequest | CompletionRequest) -> None:
        """Checks a prompt before it is computed.

        Raises:
            ApiError: Prompt and reply do not fit into the context.
        """
        is_chat = isinstance(body, ChatRequest)
        length, context, param = len(prompt_ids), self.models.max_length, "messages" if is_chat else "prompt"
        limit = body.limit if isinstance(body, ChatRequest) else body.max_tokens
        most = min(self.max_prompt_tokens or context, context - 1)
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

    def requests(
        self, served: ServedModel, prompt_ids: Sequence[int], body: ChatRequest | CompletionRequest
    ) -> list[Request]:
        """The engine's requests for the choices of one prompt; with a seed, each choice has its own.

        Args:
            served: The model that is asked.
            prompt_ids: The prompt.
            body: The request.

        Raises:
            ApiError: As `check_length`.
        """
        self.check_length(prompt_ids, body)
        sampling = sampling_of(self.models, body)
        most = min(sampling.max_new_tokens, self.models.max_length - len(prompt_ids))
        sampling = replace(sampling, max_new_tokens=most)
        return [Request(prompt_ids, sampling.numbered(number), served.adapter) for number in range(body.n or 1)]

    def submit(self, requests: Sequence[Request], *, is_whole: bool) -> list[Ticket]:
        """Hands requests to the worker, all or none.

        Args:
            requests: The requests.
            is_whole: As for `Ticket`.

        Raises:
            ApiError: Too many are waiting, the server is about to stop, or its engine has failed.
        """
        if self.is_stopping:
            raise ApiError("the server is stopping", status=503, headers={"Retry-After": "5"})
        if not self.worker.is_alive:
            raise ApiError("the engine has failed, and the server has to be started again", status=503)
        try:
            return self.worker.submit(requests, is_whole=is_whole)
        except QueueFullError as full:
            raise ApiError(
                "too many requests are waiting; try again later",
                status=429,
                code="queue_full",
                headers={"Retry-After": str(full.retry_after_s)},
            ) from full
