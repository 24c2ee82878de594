"""Lists of a million conversations or rows in little memory: items are kept as bytes, and made anew when asked for.

As Python objects, a row of a hundred characters would take more than a kilobyte.
"""

import json
import pickle
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, TypeVar, overload

import numpy

from glmtune.data.rows import Source
from glmtune.prompts import Conversation, Message

Item = TypeVar("Item")


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
    """A list of items that are kept as bytes.

    Args:
        items: The first items.
    """

    _bytes: bytearray  # of all items, one after the other
    _ends: "array[int]"  # of each of them

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("q")
        for item in items:
            self.append(item)

    @abstractmethod
    def _encode(self, item: Item) -> bytes: ...

    @abstractmethod
    def _decode(self, data: bytes) -> Item: ...

    def __len__(self) -> int:
        return len(self._ends)

    def make(self, index: int) -> Item:
        """The item at an index from 0 to below the length."""
        return self._decode(self.encoded(index))

    def encoded(self, index: int) -> bytes:
        """The bytes of the item at such an index."""
        start = self._ends[index - 1] if index else 0
        return bytes(self._bytes[start : self._ends[index]])

    def append(self, item: Item) -> None:
        """Adds an item."""
        self._add(self._encode(item))

    def extend(self, other: Self) -> None:
        """Adds the items of another list, which must not be changed any more."""
        if self._ends:
            self._ends.frombytes((numpy.asarray(other._ends, numpy.int64) + len(self._bytes)).tobytes())
            self._bytes += other._bytes
        else:
            self._bytes, self._ends = other._bytes, other._ends

    def take(self, indices: Iterable[int]) -> Self:
        """A list of the items at some places, of which one may be named twice."""
        taken = type(self)()
        for index in indices:
            taken._add(self.encoded(index))
        return taken

    def _add(self, data: bytes) -> None:
        self._bytes += data
        self._ends.append(len(self._bytes))


class ConversationList(CompactList[Conversation]):
    """Conversations, as JSON text in UTF-8; the same conversation always has the same bytes."""

    def _encode(self, item: Conversation) -> bytes:
        messages = [[each.role, each.content, each.metadata, each.tools, each.is_supervised] for each in item.messages]
        return json.dumps(messages, ensure_ascii=False).encode()

    def _decode(self, data: bytes) -> Conversation:
        return read_encoded(data)


def read_encoded(data: bytes | str) -> Conversation:
    """A conversation, from the bytes that a `ConversationList` keeps or their text."""
    messages = [
        Message(role, content, metadata, tuple(tools), is_supervised)
        for role, content, metadata, tools, is_supervised in json.loads(data)
    ]
    return Conversation(tuple(messages))


class ValueList(CompactList[dict[str, Any]]):
    """Rows as they are in the files, also with values that JSON does not know, such as dates."""

    def _encode(self, item: dict[str, Any]) -> bytes:
        return pickle.dumps(item, pickle.HIGHEST_PROTOCOL)

    def _decode(self, data: bytes) -> dict[str, Any]:
        values: dict[str, Any] = pickle.loads(data)
        return values


class SourceList(MadeList[Source]):
    """Where rows stand.

    Args:
        items: The first sources.
    """

    def __init__(self, items: Iterable[Source] = ()) -> None:
        self._paths: list[str] = []
        self._numbers = array("q")  # for each source that of its path, of its row, and of its line or 0
        for item in items:
            self.append(item)

    def __len__(self) -> int:
        return len(self._numbers) // 3

    def make(self, index: int) -> Source:
        """The item at an index from 0 to below the length."""
        path, row, line = self._numbers[3 * index : 3 * index + 3]
        return Source(self._paths[path], row, line or None)

    def append(self, item: Source) -> None:
        """Adds a source."""
        if not self._paths or self._paths[-1] != item.path:  # sources come file by file
            self._paths.append(item.path)
        self._numbers.extend((len(self._paths) - 1, item.row, item.line or 0))

    def extend(self, other: Iterable[Source]) -> None:
        """Adds the sources of another list."""
        for item in other:
            self.append(item)

    def take(self, indices: Iterable[int]) -> "SourceList":
        """A list of the sources at some places, of which one may be named twice."""
        return SourceList(map(self.make, indices))
