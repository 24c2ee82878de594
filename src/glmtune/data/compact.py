"""Lists of a million conversations or rows in little memory: items are kept as bytes, and made anew when asked for.

As Python objects, a row of a hundred characters would take more than a kilobyte.
"""

import json
import os
import pickle
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from tempfile import TemporaryFile
from typing import Any, BinaryIO, TypeVar, cast, overload

import numpy
from numpy.typing import NDArray

from glmtune.data.rows import Source
from glmtune.files import storage_faults
from glmtune.prompts import Conversation, Message

Item = TypeVar("Item")
_MOST_IN_MEMORY = 1 << 25  # bytes of a list


class MadeList(Sequence[Item], ABC):
    """A sequence of items that are made when they are asked for."""

    @abstractmethod
    def make(self, index: int) -> Item:
        """The item at an index from 0 to below the length."""

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self.make(each) for each in range(*index.indices(len(self)))]
        return self.make(range(len(self))[index])

    def __iter__(self) -> Iterator[Item]:
        return map(self.make, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment] # it can grow


class CompactList(MadeList[Item]):
    """A list of items that are kept as bytes, those of a long list in a temporary file.

    Args:
        encode: Turns an item into bytes.
        decode: Turns the bytes into the item again.
        items: The first items.
    """

    _bytes: bytearray  # of the items that are not in the file, one after the other
    _ends: "array[int]"  # of each item
    _file: BinaryIO | None
    _num_in_file: int  # bytes

    def __init__(
        self, encode: Callable[[Item], bytes], decode: Callable[[bytes], Item], items: Iterable[Item] = ()
    ) -> None:
        self._encode, self._decode = encode, decode
        self._bytes = bytearray()
        self._ends = array("q")
        self._file, self._num_in_file = None, 0
        for item in items:
            self.append(item)

    def __len__(self) -> int:
        return len(self._ends)

    def make(self, index: int) -> Item:
        """The item at an index from 0 to below the length."""
        return self._decode(self.encoded(index))

    def encoded(self, index: int) -> bytes:
        """The bytes of the item at such an index."""
        start, end = self._ends[index - 1] if index else 0, self._ends[index]
        if self._file is None or start >= self._num_in_file:
            return bytes(self._bytes[start - self._num_in_file : end - self._num_in_file])
        if hasattr(os, "pread"):  # threads and forked processes share the place that they would seek
            return os.pread(self._file.fileno(), end - start, start)
        self._file.seek(start)
        return self._file.read(end - start)

    def append(self, item: Item) -> None:
        """Adds an item."""
        self._add(self._encode(item))

    def extend(self, other: "CompactList[Item]") -> None:
        """Adds the items of another list, which must not be changed any more."""
        if self._ends:
            for index in range(len(other)):
                self._add(other.encoded(index))
        else:
            self._bytes, self._ends = other._bytes, other._ends
            self._file, self._num_in_file = other._file, other._num_in_file

    def take(self, indices: Iterable[int]) -> "CompactList[Item]":
        """A list of the items at some places, of which one may be named twice."""
        taken = CompactList(self._encode, self._decode)
        for index in indices:
            taken._add(self.encoded(index))
        return taken

    def _add(self, data: bytes) -> None:
        self._bytes += data
        self._ends.append(self._num_in_file + len(self._bytes))
        if len(self._bytes) >= _MOST_IN_MEMORY:
            with storage_faults("TMPDIR"):  # which tells where temporary files go
                self._file = self._file or cast(BinaryIO, TemporaryFile())  # noqa: SIM115 - lives as long as the list
                self._file.seek(self._num_in_file)
                self._file.write(self._bytes)
                self._file.flush()
            self._num_in_file += len(self._bytes)
            self._bytes = bytearray()


def conversation_list(items: Iterable[Conversation] = ()) -> CompactList[Conversation]:
    """A list of conversations, kept as JSON text in UTF-8; the same conversation always has the same bytes."""
    return CompactList(_encode_conversation, read_encoded, items)


def _encode_conversation(item: Conversation) -> bytes:
    messages = [[each.role, each.content, each.metadata, each.tools, each.is_supervised] for each in item.messages]
    return json.dumps(messages, ensure_ascii=False).encode()


def read_encoded(data: bytes | str) -> Conversation:
    """A conversation, from the bytes that a `conversation_list` keeps or their text."""
    messages = [
        Message(role, content, metadata, tuple(tools), is_supervised)
        for role, content, metadata, tools, is_supervised in json.loads(data)
    ]
    return Conversation(tuple(messages))


def value_list(items: Iterable[dict[str, Any]] = ()) -> CompactList[dict[str, Any]]:
    """A list of rows as they are in the files, also with values that JSON does not know, such as dates."""
    # Unpickled are our own bytes only, from memory or a file that no one else can open.
    return CompactList(pickle.dumps, pickle.loads, items)


class SourceList(MadeList[Source]):
    """Where rows stand.

    Args:
        items: The first sources.
    """

    def __init__(self, items: Iterable[Source] = ()) -> None:
        self._paths: list[str] = []
        self._path_numbers: dict[str, int] = {}
        self._numbers = array("q")  # for each source that of its path, of its row, and of its line or 0
        for item in items:
            self.append(item)

    def __len__(self) -> int:
        return len(self._numbers) // 3

    def make(self, index: int) -> Source:
        """The item at an index from 0 to below the length."""
        path, row, line = self._numbers[3 * index : 3 * index + 3]
        return Source(self._paths[path], row, line or None)

    def keys(self) -> NDArray[numpy.int64]:
        """A number for each source: the same for two exactly if they are the same row of the same file."""
        path, row, _ = numpy.array(self._numbers).reshape(-1, 3).T
        return path << 40 | row

    def append(self, item: Source) -> None:
        """Adds a source."""
        number = self._path_numbers.setdefault(item.path, len(self._paths))
        if number == len(self._paths):
            self._paths.append(item.path)
        self._numbers.extend((number, item.row, item.line or 0))

    def extend(self, other: Iterable[Source]) -> None:
        """Adds the sources of another list."""
        for item in other:
            self.append(item)

    def take(self, indices: Iterable[int]) -> "SourceList":
        """A list of the sources at some places, of which one may be named twice."""
        return SourceList(map(self.make, indices))
