"""What `/metrics` shows, in a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from glmtune.inference.engine.engine import Engine

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counts of requests and tokens, times, and how full the engine is.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "glmtune_requests", "Requests by path and HTTP status.", ("path", "status"), registry=self._registry
        )
        self.prompt_tokens = Counter("glmtune_prompt_tokens", "Tokens of prompts.", ("model",), registry=self._registry)
        self.completion_tokens = Counter(
            "glmtune_completion_tokens", "Tokens of replies.", ("model",), registry=self._registry
        )
        self.cancelled = Counter("glmtune_cancelled", "Requests whose client went away.", registry=self._registry)
        self.request_seconds = Histogram(
            "glmtune_request_seconds",
            "From request to the end of its answer.",
            ("path",),
            registry=self._registry,
            buckets=_SECONDS,
        )
        self.first_token_seconds = Histogram(
            "glmtune_first_token_seconds", "From request to the first token.", registry=self._registry, buckets=_SECONDS
        )
        self._gauge("glmtune_running", "Requests that run.").set_function(lambda: engine.num_running)
        self._gauge("glmtune_waiting", "Requests that wait for a place.").set_function(lambda: engine.num_waiting)
        self._gauge("glmtune_places", "Requests that can run at once.").set(engine.max_rows)
        self._gauge("glmtune_cache_blocks", "Blocks of the key-value cache.").set(engine.num_blocks)
        self._gauge("glmtune_cache_blocks_free", "Blocks that no request has.").set_function(
            lambda: engine.num_free_blocks
        )

    def _gauge(self, name: str, description: str) -> Gauge:
        return Gauge(name, description, registry=self._registry)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
