"""What the parts of the server share."""

from collections.abc import Sequence
from dataclasses import dataclass

from glmtune.inference.engine.request import Request
from glmtune.server.auth import ApiKeys
from glmtune.server.errors import ApiError
from glmtune.server.metrics import Metrics
from glmtune.server.models import Models
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
