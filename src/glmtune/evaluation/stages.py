"""The stages of an evaluation, for displays of its progress."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

# Begins a stage of an evaluation, by its description and its size; what it yields is called with how much more is done.
Stages = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@contextmanager
def silent(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows nothing of a stage."""
    yield lambda number: None
