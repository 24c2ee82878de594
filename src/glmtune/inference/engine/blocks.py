"""Which blocks of the key-value cache are whose.

A whole block is known by a name that stands for the tokens in it and all before them, so that a later prompt with the
same beginning shares it. Nothing here knows what the blocks hold.
"""

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b


def next_name(before: bytes, token_ids: Sequence[int]) -> bytes:
    """The name of the block that holds these tokens, after the block of the name `before`."""
    return blake2b(before + array("q", token_ids).tobytes(), digest_size=16).digest()


def block_names(namespace: str, token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """What the name of a sequence's first block goes on from, and the names of its whole blocks.

    Args:
        namespace: Sequences of different namespaces share nothing: an adapter's keys and values are its own.
        token_ids: The sequence.
        block_size: Tokens in a block.
    """
    names = [blake2b(namespace.encode(), digest_size=16).digest()]
    for stop in range(block_size, len(token_ids) + 1, block_size):
        names.append(next_name(names[-1], token_ids[stop - block_size : stop]))
    return names


class BlockPool:
    """The blocks of a cache: free ones, and how many sequences share each of the others.

    Free blocks that are known stay so until they are taken, the longest freed first. Block 0 is never given out.

    Args:
        num_blocks: Blocks, block 0 included.
        block_size: Tokens in a block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._num_users = [0] * num_blocks
        self._blank = list(range(num_blocks - 1, 0, -1))  # free, with nothing in them to share
        self._kept: dict[int, None] = {}  # free but known, the longest freed first
        self._known: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be taken."""
        return len(self._blank) + len(self._kept)

    def num_users(self, block: int) -> int:
        """How many sequences have a block."""
        return self._num_users[block]

    def find(self, names: Iterable[bytes]) -> list[int]:
        """The blocks of a sequence's beginning, as far as they are known.

        Args:
            names: The names of its blocks, in order.
        """
        blocks = []
        for name in names:
            if name not in self._known:
                break
            blocks.append(self._known[name])
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Adds a user to blocks that were found."""
        for block in blocks:
            self._kept.pop(block, None)
            self._num_users[block] += 1

    def take(self, count: int) -> list[int]:
        """Gives out free blocks, of which there must be enough; what was known of them is forgotten."""
        blocks = []
        for _ in range(count):
            if not self._blank:
                self.forget(next(iter(self._kept)))
            block = self._blank.pop()
            self._num_users[block] = 1
            blocks.append(block)
        return blocks

    def publish(self, block: int, name: bytes) -> None:
        """Makes a block known, unless another block of the same contents is."""
        if name not in self._known:
            self._known[name] = block
            self._names[block] = name

    def forget(self, block: int) -> None:
        """Makes a block unknown."""
        name = self._names.pop(block, None)
        if name is not None:
            del self._known[name]
        if block in self._kept:
            del self._kept[block]
            self._blank.append(block)

    def free(self, blocks: Sequence[int]) -> None:
        """Takes a user away from a sequence's blocks.

        Args:
            blocks: In the sequence's order. Its last ones are the first to be taken again, since those before them are
                of use to more sequences.
        """
        for block in reversed(blocks):
            self._num_users[block] -= 1
            if self._num_users[block] == 0:
                if block in self._names:
                    self._kept[block] = None
                else:
                    self._blank.append(block)
