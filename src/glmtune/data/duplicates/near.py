"""Near-duplicates among many texts: candidates by MinHash, each of which is then compared exactly.

Similarity is the Jaccard index of the sets of characters and character bigrams of the normal forms: the number of them
that two texts share, over the number that either has. That suits Chinese, where a word is mostly one or two characters
and is not set apart from the next; single characters keep two short texts similar when one has a slip of the pen.

Candidates are looked for by the rarer characters and bigrams alone. Questions from a template share most of it, so that
each would be a candidate with every other one, billions of pairs in a million rows; what tells them apart is rare.

Source: Broder, "On the resemblance and containment of documents" (1997); the bands are those of Leskovec, Rajaraman and
Ullman, "Mining of Massive Datasets", chapter 3.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy
from numpy.typing import NDArray

from glmtune.errors import GlmtuneError

DEFAULT_THRESHOLD = 0.8
_ROWS_A_BAND = 4
_NUM_BANDS = 24
_NUM_HASHES = _ROWS_A_BAND * _NUM_BANDS
_SEED = 42
_CHUNK = 20_000  # texts whose hashes are in memory at a time
_COMMON_SHARE = 0.01  # what more of the texts have does not make two of them candidates
_LEAST_COMMON = 50  # texts; in a small set, nothing is common
_LEAST_GRAMS = 12  # of a text are looked at, the rarest, be they common
_NUM_COUNTERS = 1 << 22
_MOST_COMPARED = 32  # of the texts of a bucket, each with each; of more, each with the first and the one before it


def near_pairs(texts: Sequence[str], threshold: float = DEFAULT_THRESHOLD) -> Iterator[tuple[int, int]]:
    """Finds the pairs of texts that are similar.

    Args:
        texts: Texts in normal form.
        threshold: The least similarity, above 0 and at most 1.

    Yields:
        Indices of two texts, the smaller first, sorted; each pair once. Of more than `_MOST_COMPARED` texts that are
        all alike, not every pair, but enough that they are connected. A pair is missed with a probability below
        0.001 % where the similarity of their rarer grams is 0.8; at 0.7 it is 0.2 %, at 0.6 4 %.
    """
    grams = _Grams(texts)
    for first, second in _candidates(texts):
        if grams.similarity(first, second) >= threshold:
            yield first, second


def similarity(first: str, second: str) -> float:
    """The similarity of two texts in normal form, from 0 to 1."""
    return _jaccard(grams(first), grams(second))


def grouped(pairs: Iterable[tuple[int, int]], num_items: int) -> list[int]:
    """Connects items that are paired, directly or through others.

    Args:
        pairs: Pairs of indices.
        num_items: How many items there are.

    Returns:
        For each item, the smallest index of its group; its own if it is in no pair.
    """
    root = list(range(num_items))

    def find(item: int) -> int:
        while root[item] != item:
            root[item] = root[root[item]]
            item = root[item]
        return item

    for first, second in pairs:
        low, high = sorted((find(first), find(second)))
        root[high] = low
    return [find(item) for item in range(num_items)]


class _Grams:
    """Compares texts exactly. Keeps the grams of the last text, since candidates come sorted by their first one."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._last = -1
        self._grams: frozenset[str] = frozenset()

    def similarity(self, first: int, second: int) -> float:
        one, other = self._texts[first], self._texts[second]
        if one == other:
            return 1.0
        if first != self._last:
            self._last, self._grams = first, grams(one)
        return _jaccard(self._grams, grams(other))


def grams(text: str) -> frozenset[str]:
    """The characters and bigrams of a text."""
    return frozenset(text).union(map("".join, pairwise(text)))


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def _candidates(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs that agree in all rows of at least one band, sorted, each once."""
    bands = _band_hashes(texts)
    found = [_pairs_in_buckets(bands[:, band]) for band in range(_NUM_BANDS)]
    keys = numpy.unique(numpy.concatenate(found))
    for start in range(0, len(keys), _CHUNK):
        part = keys[start : start + _CHUNK]
        yield from zip((part >> 32).tolist(), (part & 0xFFFFFFFF).tolist(), strict=True)


def _pairs_in_buckets(hashes: NDArray[numpy.uint64]) -> NDArray[numpy.int64]:
    """Pairs of texts with the same hash, as one number each: the smaller index, shifted by 32 bits, and the larger."""
    order = numpy.argsort(hashes, kind="stable")
    starts = numpy.flatnonzero(numpy.diff(hashes[order], prepend=hashes[order[0]] ^ numpy.uint64(1)))
    sizes = numpy.diff(starts, append=len(order))
    keys = [numpy.empty(0, numpy.int64)]
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        members = order[start : start + size]  # ascending, since the sort is stable
        if size <= _MOST_COMPARED:
            first, second = numpy.triu_indices(size, 1)
            keys.append((members[first] << 32) | members[second])
        else:
            keys += [(members[0] << 32) | members[1:], (members[1:-1] << 32) | members[2:]]
    return numpy.concatenate(keys)


def _band_hashes(texts: Sequence[str]) -> NDArray[numpy.uint64]:
    """A hash for each text and band."""
    hashes = numpy.empty((len(texts), _NUM_BANDS), numpy.uint64)
    frequencies = _frequencies(texts)
    for start in range(0, len(texts), _CHUNK):
        part = texts[start : start + _CHUNK]
        hashes[start : start + len(part)] = _band_hashes_of(part, frequencies, len(texts))
    return hashes


def _frequencies(texts: Sequence[str]) -> NDArray[numpy.int64]:
    """How often each gram occurs, counted by some bits of its hash."""
    counts = numpy.zeros(_NUM_COUNTERS, numpy.int64)
    for start in range(0, len(texts), _CHUNK):
        tokens, _ = gram_hashes(texts[start : start + _CHUNK])
        counts += numpy.bincount((tokens % _NUM_COUNTERS).astype(numpy.int64), minlength=_NUM_COUNTERS)
    return counts


def _rare(
    tokens: NDArray[numpy.uint64], offsets: NDArray[numpy.uint64], frequencies: NDArray[numpy.int64], num_texts: int
) -> tuple[NDArray[numpy.uint64], NDArray[numpy.uint64]]:
    """The hashes of each text that are rare, or its rarest ones, each once, and where those of each text start."""
    counts = frequencies[(tokens % _NUM_COUNTERS).astype(numpy.int64)]
    starts = offsets.astype(numpy.int64)
    text = numpy.repeat(numpy.arange(len(starts) - 1), numpy.diff(starts))
    order = numpy.lexsort((tokens, counts, text))  # by text, the rarest first; the same in every text
    tokens, counts, text = tokens[order], counts[order], text[order]
    is_first = numpy.ones(len(tokens), bool)
    is_first[1:] = (tokens[1:] != tokens[:-1]) | (text[1:] != text[:-1])
    numbers = numpy.cumsum(is_first)
    rank = numbers - numbers[starts[text]]  # among the different ones of its text
    is_kept = is_first & ((rank < _LEAST_GRAMS) | (counts <= max(_COMMON_SHARE * num_texts, _LEAST_COMMON)))
    kept = numpy.bincount(text[is_kept], minlength=len(starts) - 1)
    return tokens[is_kept], numpy.concatenate([[0], numpy.cumsum(kept)]).astype(numpy.uint64)


def _band_hashes_of(texts: Sequence[str], frequencies: NDArray[numpy.int64], num_texts: int) -> NDArray[numpy.uint64]:
    try:
        from rensa import RMinHash
    except ImportError as error:
        raise GlmtuneError("near-duplicates need the package rensa: pip install 'glmtune[dedupe]'") from error
    tokens, offsets = _rare(*gram_hashes(texts), frequencies, num_texts)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(tokens, offsets, num_perm=_NUM_HASHES, seed=_SEED)
    digests = numpy.asarray(matrix.to_rows(), numpy.uint64).reshape(len(texts), _NUM_BANDS, _ROWS_A_BAND)
    combined = numpy.zeros((len(texts), _NUM_BANDS), numpy.uint64)
    for row in range(_ROWS_A_BAND):
        combined = _mixed(combined ^ digests[:, :, row])
    return combined


def gram_hashes(texts: Sequence[str]) -> tuple[NDArray[numpy.uint64], NDArray[numpy.uint64]]:
    """The hashes of all characters and bigrams of texts, text by text.

    Args:
        texts: Texts in normal form, none of them empty.

    Returns:
        The hashes, and where those of each text start, with the total at the end.
    """
    lengths = numpy.fromiter(map(len, texts), numpy.int64, len(texts))
    code_points = numpy.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), numpy.uint32)
    grams = numpy.empty((len(code_points), 2), numpy.uint64)
    grams[:, 0] = code_points
    grams[:-1, 1] = (grams[:-1, 0] << numpy.uint64(32)) | (grams[1:, 0] + numpy.uint64(1))
    is_inside = numpy.ones(grams.shape, bool)
    is_inside[numpy.cumsum(lengths) - 1, 1] = False  # what would begin in one text and end in the next
    offsets = numpy.concatenate([[0], numpy.cumsum(2 * lengths - 1)]).astype(numpy.uint64)
    return _mixed(grams[is_inside]), offsets


def _mixed(values: NDArray[numpy.uint64]) -> NDArray[numpy.uint64]:
    """Spreads numbers over 64 bits (the finaliser of SplitMix64)."""
    values = (values ^ (values >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return values ^ (values >> numpy.uint64(31))
