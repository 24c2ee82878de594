"""What the rows of a decoding pass hold, kept on the device and changed in place.

Rows are dense: a request that joins takes the next one, and where one leaves the last takes its place. So a step costs
the host nothing for the rows that go on.

Legend of dimension suffixes: R rows, W blocks of the longest sequence.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from glmtune.inference.engine.request import RunningRequest
from glmtune.ops.reference import BLOCK_SIZE


class DecodingRows:
    """The inputs of `Decoder.decode` for all running requests.

    Args:
        max_rows: The most rows.
        max_length: The most tokens of a sequence.
        device: Where they lie.

    Attributes:
        token_ids: The last token of each row's sequence, [R] int64.
        positions: Its position, [R] int32; -1 where there is no request.
        block_tables: [R, W] int32.
        adapters: The index of each row's adapter, [R] int32.
        num_prompt: The tokens of each row's prompt, [R] int32.
        history: The tokens of prompt and reply, [R, max_length] int32, of the rows with penalties; None as long as none
            has had any.
    """

    def __init__(self, max_rows: int, max_length: int, device: torch.device | str) -> None:
        self._max_length = max_length
        self.token_ids = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.positions = torch.full((max_rows,), -1, dtype=torch.int32, device=device)
        self.block_tables = torch.zeros(max_rows, -(-max_length // BLOCK_SIZE), dtype=torch.int32, device=device)
        self.adapters = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self.num_prompt = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self.history: Tensor | None = None

    def join(self, running: RunningRequest) -> None:
        """Fills the row of a request whose prompt is computed; its first token is still to come."""
        row, num_prompt = running.row, running.num_prompt
        self.positions[row] = num_prompt - 1
        self.adapters[row] = running.adapter
        self.num_prompt[row] = num_prompt
        self._fill(self.block_tables[row], running.blocks)
        if running.sampling.has_penalty:
            if self.history is None:
                self.history = self.positions.new_zeros(len(self.positions), self._max_length)
            self._fill(self.history[row], running.request.prompt_ids)

    def move(self, source: int, target: int) -> None:
        """Copies a row."""
        for rows in self._all:
            rows[target] = rows[source]

    def clear(self, row: int) -> None:
        """Makes a row one of padding."""
        self.token_ids[row] = 0
        self.positions[row] = -1
        self.block_tables[row] = 0
        self.adapters[row] = 0

    def advance(self, token_ids_R: Tensor) -> None:
        """Adds a token to each of the first rows."""
        count = len(token_ids_R)
        self.token_ids[:count] = token_ids_R
        self.positions[:count] += 1
        if self.history is not None:
            positions = self.positions[:count].long().unsqueeze(1).clamp(max=self._max_length - 1)
            self.history[:count].scatter_(1, positions, token_ids_R.int().unsqueeze(1))

    @property
    def _all(self) -> list[Tensor]:
        rows = [self.token_ids, self.positions, self.block_tables, self.adapters, self.num_prompt]
        return rows if self.history is None else [*rows, self.history]

    def _fill(self, row: Tensor, values: Sequence[int]) -> None:
        row[: len(values)] = torch.tensor(values, dtype=row.dtype)
