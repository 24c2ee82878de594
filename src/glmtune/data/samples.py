"""Tokenised samples as a map-style dataset that is quick to index: views of Arrow's own memory."""

from collections.abc import Sequence
from functools import cached_property

import numpy
import torch
from datasets import Dataset
from numpy.typing import NDArray

from glmtune.data.packing import IGNORED_LABEL

_COLUMNS = ("input_ids", "labels")


class SampleDataset(torch.utils.data.Dataset):
    """Gives `input_ids` and `labels` of a sample as numpy arrays, without copying.

    Args:
        dataset: What `tokenize_conversations` made.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    @cached_property
    def _chunks(self) -> dict[str, list[tuple[NDArray[numpy.int32], NDArray[numpy.int32]]]]:
        """Of each column the chunks that Arrow holds it in: all values, and where each sample's begin."""
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
        """How many tokens of each sample are to be predicted; the first never is."""
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
        """What a data loader's worker gets: the dataset, not the views of this process's memory."""
        return {"_dataset": self._dataset}
