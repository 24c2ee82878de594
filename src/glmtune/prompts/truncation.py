"""Truncation: drops the oldest exchanges whole, then cuts the ends of the longest contents."""

import bisect
from collections.abc import Callable, Sequence
from itertools import pairwise

from glmtune.errors import DataError
from glmtune.prompts.conversation import Message
from glmtune.prompts.templates import Piece


def without_oldest_exchanges(
    messages: tuple[Message, ...], is_short: Callable[[tuple[Message, ...]], bool]
) -> tuple[Message, ...]:
    """Drops as few of the oldest exchanges as are needed to be short enough, and never the last exchange.

    An exchange is a user turn and the turns that answer it. The number to drop is found by bisection; trying one after
    the other would render a long conversation again for each of its exchanges.
    """
    starts = [index for index, message in enumerate(messages) if message.role == "user"]
    if len(starts) < 2:
        return messages

    def rest_from(start: int) -> tuple[Message, ...]:
        return (*messages[: starts[0]], *messages[start:])

    # The last exchange need not be tried: it is kept even if it is too long.
    place = bisect.bisect_left(starts, True, lo=1, hi=len(starts) - 1, key=lambda start: is_short(rest_from(start)))
    return rest_from(starts[place])


def shorten_contents(pieces: Sequence[Piece], max_length: int) -> int:
    """Cuts contents in place to the largest common length at which all fits; returns the number of tokens cut.

    The token after an answer that was cut stays, since the format needs it, but is not supervised: the model would
    learn to stop in the middle of a sentence.
    """
    lengths = [len(piece.ids) for piece in pieces if piece.is_content]
    max_content = max_length - sum(len(piece.ids) for piece in pieces if not piece.is_content)
    if sum(lengths) <= max_content:
        return 0
    levels = range(1, max(lengths))
    level = bisect.bisect_right(levels, max_content, key=lambda each: sum(min(length, each) for length in lengths))
    if level == 0:
        raise DataError(
            f"nothing is left after truncation to {max_length} tokens: role and end tokens alone take "
            f"{max_length - max_content}; raise data.max_length"
        )
    for piece, end in pairwise(pieces):  # the last piece is never a content
        if piece.is_content and len(piece.ids) > level:
            piece.ids = piece.ids[:level]
            end.is_supervised = False
    return sum(max(length - level, 0) for length in lengths)
