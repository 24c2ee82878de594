"""Truncation: the oldest exchanges go whole, then the longest contents lose their ends."""

import bisect
from collections.abc import Callable, Sequence

from glmtune.errors import DataError
from glmtune.prompts.conversation import Message
from glmtune.prompts.templates import Piece


def without_oldest_exchanges(
    messages: tuple[Message, ...], is_short: Callable[[tuple[Message, ...]], bool]
) -> tuple[Message, ...]:
    """The messages without as many of the oldest exchanges as it takes to be short; the last exchange always stays.

    An exchange is a user turn and what answers it. How many have to go is found by bisection: one by one, a long
    conversation would be rendered again for each of its exchanges.
    """
    starts = [index for index, message in enumerate(messages) if message.role == "user"]
    if len(starts) < 2:
        return messages

    def rest_from(start: int) -> tuple[Message, ...]:
        return (*messages[: starts[0]], *messages[start:])

    # The last one need not be tried: whether it is short or not, there is nothing after it.
    place = bisect.bisect_left(starts, True, lo=1, hi=len(starts) - 1, key=lambda start: is_short(rest_from(start)))
    return rest_from(starts[place])


def shorten_contents(pieces: Sequence[Piece], max_length: int) -> int:
    """Cuts contents in place down to the largest common length with which all fits; returns the tokens cut."""
    lengths = [len(piece.ids) for piece in pieces if piece.is_content]
    room = max_length - sum(len(piece.ids) for piece in pieces if not piece.is_content)
    if sum(lengths) <= room:
        return 0
    levels = range(1, max(lengths))
    level = bisect.bisect_right(levels, room, key=lambda each: sum(min(length, each) for length in lengths))
    if level == 0:
        raise DataError(
            f"nothing is left after truncation to {max_length} tokens: role and end tokens alone take "
            f"{max_length - room}; raise data.max_length"
        )
    for piece in pieces:
        if piece.is_content:
            piece.ids = piece.ids[:level]
    return sum(max(length - level, 0) for length in lengths)
