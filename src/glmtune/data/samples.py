"""Tokenised samples as a map-style dataset with fast indexing, through views of Arrow's memory."""

from collections.abc import Sequence
from functools import cached_property

import numpy
import torch
from datasets import Dataset
from numpy.typing import NDArray

from glmtune.prompts import IGNORED_LABEL

_COLUMNS = ("input_ids", "labels")


class SampleDataset(torch.utils.data.Dataset):
    """Returns `input_ids` and `labels` of a sample as numpy arrays, without copying.

    Args:
        dataset: From `tokenize_conversations`.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    @cached_property
    def _chunks(self) -> dict[str, list[tuple[NDArray[numpy.int32], NDArray[numpy.int32]]]]:
        """The Arrow chunks of each column: all values, and the offset of each sample."""
        table = self._dataset.with_format("arrow")[:]
        return {
            name: [(chunk.values.to_numpy(), chunk.offsets.to_numpy()) for chunk in table.column(name).chunks]
            for name in _COLUMNS
        }

    @cached_property
    def _chunk_starts(self) -> NDArray[numpy.int64]:
        """The index of the first sample in each chunk, and the number of samples."""
        sizes = [len(offsets) - 1 for _, offsets in self._chunks["input_ids"]]
        return numpy.concatenate(([0], numpy.cumsum(sizes)))

    @cached_property
    def lengths(self) -> Sequence[int]:
        """Tokens of each sample."""
        return list(self._dataset["length"])

    @cached_property
    def num_labels(self) -> NDArray[numpy.int64]:
        """The number of supervised tokens of each sample, without its first token, which is never predicted."""
        counts = []
        for values, offsets in self._chunks["labels"]:
            sums = numpy.concatenate(([0], numpy.cumsum(values != IGNORED_LABEL)))
            firsts = numpy.asarray(values)[numpy.minimum(offsets[:-1], len(values) - 1)] != IGNORED_LABEL
            counts.append(sums[offsets[1:]] - sums[offsets[:-1]] - firsts)
        return numpy.concatenate(counts)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, NDArray[numpy.int32]]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        chunk = int(numpy.searchsorted(self._chunk_starts, index, side="right")) - 1
        row = index - int(self._chunk_starts[chunk])
        sample = {}
        for name, chunks in self._chunks.items():
            values, offsets = chunks[chunk]
            sample[name] = values[offsets[row] : offsets[row + 1]]
        return sample

    def __getstate__(self) -> dict[str, Dataset]:
        """The state for a data loader's worker: the dataset, without the views of this process's memory."""
        return {"_dataset": self._dataset}
