"""What the parts of the server share."""

from dataclasses import dataclass

from glmtune.server.auth import ApiKeys
from glmtune.server.metrics import Metrics
from glmtune.server.models import Models
from glmtune.server.worker import Worker


@dataclass
class Service:
    """A running server.

    Attributes:
        models: What is served.
        worker: The thread that steps the engine.
        metrics: What `/metrics` shows.
        keys: The keys that open it.
        max_prompt_tokens: The most tokens of a prompt; None for as many as the context has.
        is_stopping: Whether it takes no more requests, and only ends those that run.
    """

    models: Models
    worker: Worker
    metrics: Metrics
    keys: ApiKeys
    max_prompt_tokens: int | None = None
    is_stopping: bool = False

    @property
    def takes_requests(self) -> bool:
        """Whether requests are answered."""
        return self.worker.is_alive and not self.is_stopping
