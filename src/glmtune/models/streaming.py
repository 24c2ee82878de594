"""`generate` as an iterator of token ids."""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer


class _IdQueue(BaseStreamer):
    """Receives ids from `generate` and drops the prompt, which comes first."""

    def __init__(self) -> None:
        self.items: queue.Queue[int | BaseException | None] = queue.Queue()
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        if self._prompt_seen:
            for token_id in value.flatten().tolist():
                self.items.put(token_id)
        self._prompt_seen = True

    def end(self) -> None:
        """Does nothing: the thread itself reports its end, so that errors are not lost."""


class _StopWhenSet(StoppingCriteria):
    """Ends generation once its iterator has been closed."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self._event.is_set(), dtype=torch.bool, device=input_ids.device)


def stream_token_ids(
    model: Any, inputs: Mapping[str, Tensor], *, stopping_criteria: Sequence[StoppingCriteria] = (), **options: Any
) -> Iterator[int]:
    """Generates in a thread and yields each new id as soon as it is available.

    Closing the iterator stops the generation. An error in the thread is raised here.

    Args:
        model: A model with `generate`.
        inputs: `input_ids` and `attention_mask` of one sequence, [1, T].
        stopping_criteria: As for `generate`.
        **options: More arguments of `generate`.

    Yields:
        Token ids of the reply, the one that ends it included.
    """
    streamer = _IdQueue()
    abandoned = threading.Event()

    def run() -> None:
        try:
            stopping = StoppingCriteriaList([*stopping_criteria, _StopWhenSet(abandoned)])
            with torch.inference_mode():
                model.generate(**inputs, streamer=streamer, stopping_criteria=stopping, **options)
            streamer.items.put(None)
        except BaseException as error:  # passed to the reader, which raises it
            streamer.items.put(error)

    thread = threading.Thread(target=run, name="glmtune-stream", daemon=True)
    thread.start()
    try:
        while (item := streamer.items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        abandoned.set()
        thread.join()
