"""Who takes part in the next step.

A request is admitted when the blocks of its longest reply are free, and keeps them until it ends, so that memory never
runs out on the way. Requests are admitted in the order of their arrival.
"""

from collections import deque
from typing import NamedTuple

from glmtune.errors import ModelError
from glmtune.inference.engine.blocks import BlockPool, next_name
from glmtune.inference.engine.request import RunningRequest

# With no request decoding, a large prefill delays none, and larger passes are faster.
_ALONE = 8


def most_prefill_tokens(max_prefill_tokens: int) -> int:
    """The most tokens of prompts in any step: with no request decoding."""
    return max_prefill_tokens * _ALONE


class Chunk(NamedTuple):
    """The part of a prompt that is computed in one step: tokens `start` up to `stop`."""

    running: RunningRequest
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        """Whether the prompt is complete with it."""
        return self.stop == self.running.num_prompt


class Scheduler:
    """Requests that wait, whose prompts are being computed, and that decode.

    Args:
        pool: The cache's blocks.
        max_rows: The most requests that run at once.
        max_prefill_tokens: The most tokens of prompts in a step while others decode.

    Attributes:
        decoding: Those that decode at every step, each at its `row`: one that ends is replaced by the last.
    """

    def __init__(self, pool: BlockPool, max_rows: int, max_prefill_tokens: int) -> None:
        self._pool = pool
        self._max_rows = max_rows
        self._max_prefill_tokens = max_prefill_tokens
        self._waiting: deque[RunningRequest] = deque()
        self._prefilling: list[RunningRequest] = []
        self.decoding: list[RunningRequest] = []

    @property
    def num_running(self) -> int:
        """Requests that have their blocks."""
        return len(self.decoding) + len(self._prefilling)

    @property
    def num_waiting(self) -> int:
        """Requests for which there is no room yet."""
        return len(self._waiting)

    @property
    def unfinished(self) -> list[RunningRequest]:
        """All requests that have not ended."""
        return [*self.decoding, *self._prefilling, *self._waiting]

    def add(self, running: RunningRequest) -> None:
        """Lets a request wait for its turn.

        Raises:
            ModelError: It needs more blocks than there are.
        """
        num_blocks = self._pool.num_blocks - 1
        if self._num_needed(running) > num_blocks:
            raise ModelError(
                f"a prompt of {running.num_prompt} tokens and {running.sampling.max_new_tokens} new ones need "
                f"{self._num_needed(running)} blocks of the key-value cache, which has {num_blocks} in all; lower "
                "max_new_tokens or shorten the prompt"
            )
        self._waiting.append(running)

    def next_chunks(self) -> list[Chunk]:
        """The parts of prompts that the next step computes; requests are admitted while there is room.

        A chunk's whole blocks count as computed at once. Another prompt may share them in the same step, since a pass
        writes all its keys before it reads any.
        """
        budget = self._max_prefill_tokens if self.decoding else most_prefill_tokens(self._max_prefill_tokens)
        chunks = []
        for running in self._prefilling:
            if budget > 0:
                chunks.append(self._chunk(running, budget))
                budget -= chunks[-1].stop - chunks[-1].start
        while budget > 0 and self._waiting and self.num_running < self._max_rows and self._admit(self._waiting[0]):
            running = self._waiting.popleft()
            self._prefilling.append(running)
            chunks.append(self._chunk(running, budget))
            budget -= chunks[-1].stop - chunks[-1].start
        return chunks

    def start_decoding(self, running: RunningRequest) -> None:
        """Gives a request whose prompt is computed the next row."""
        self._prefilling.remove(running)
        running.row = len(self.decoding)
        self.decoding.append(running)

    def add_token(self, running: RunningRequest, token_id: int) -> None:
        """Adds a generated token; all before it are computed by now."""
        running.num_computed = len(running.token_ids)
        running.token_ids.append(token_id)
        self._publish(running)

    def remove(self, running: RunningRequest, keeps_blocks_known: bool = True) -> RunningRequest | None:
        """Takes a request out, wherever it is, and frees its blocks.

        Args:
            running: The request.
            keeps_blocks_known: Whether later prompts may share what it has computed.

        Returns:
            The request that now has its row, if it had one and was not the last.
        """
        moved = None
        if running.row >= 0:
            last = self.decoding.pop()
            if last is not running:
                self.decoding[running.row] = last
                last.row, moved = running.row, last
            running.row = -1
        elif running in self._prefilling:
            self._prefilling.remove(running)
        elif running in self._waiting:
            self._waiting.remove(running)
        if not keeps_blocks_known:
            for block in running.blocks:
                self._pool.forget(block)
        self._pool.free(running.blocks)
        running.blocks = []
        return moved

    def _num_needed(self, running: RunningRequest) -> int:
        """Blocks for the longest reply, whose last token is never computed."""
        return -(-(running.max_length - 1) // self._pool.block_size)

    def _admit(self, running: RunningRequest) -> bool:
        """Reserves a request's blocks, if they are free."""
        # The last token of the prompt is always computed: its logits are what the reply begins with.
        shared = self._pool.find(running.names[1 : 1 + (running.num_prompt - 1) // self._pool.block_size])
        num_missing = self._num_needed(running) - len(shared)
        self._pool.share(shared)
        if self._pool.num_free < num_missing:
            self._pool.free(shared)
            return False
        running.blocks = [*shared, *self._pool.take(num_missing)]
        running.num_computed = len(shared) * self._pool.block_size
        return True

    def _chunk(self, running: RunningRequest, budget: int) -> Chunk:
        start = running.num_computed
        running.num_computed = min(start + budget, running.num_prompt)
        self._publish(running, start)
        return Chunk(running, start, running.num_computed)

    def _publish(self, running: RunningRequest, start: int | None = None) -> None:
        """Makes the whole blocks known that were completed since `start`; by default, by the last token."""
        size = self._pool.block_size
        first = (running.num_computed - 1 if start is None else start) // size
        for index in range(first, running.num_computed // size):
            if len(running.names) == index + 1:
                running.names.append(next_name(running.names[-1], running.token_ids[index * size : (index + 1) * size]))
            self._pool.publish(running.blocks[index], running.names[index + 1])
