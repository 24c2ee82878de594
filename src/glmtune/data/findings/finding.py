"""A finding: what it is, in which rows, and what to do about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glmtune.data.rows import Source
from glmtune.errors import show_text

_MOST_PLACES = 8


@dataclass(frozen=True)
class Finding:
    """Something that a careful person would want to see before training.

    Attributes:
        name: What it is, for programs: `repeats_question`.
        message: What was found, with the number of rows.
        mend: What to do about it.
        places: The rows; several together where they are only wrong together, such as a question with two answers.
    """

    name: str
    message: str
    mend: str
    places: Sequence[tuple[Source, ...]] = ()

    def lines(self) -> list[str]:
        """What was found, where (the first rows, by file), and what to do about it."""
        by_file: dict[str, list[str]] = {}
        for place in self.places[:_MOST_PLACES]:
            by_file.setdefault(place[0].path, []).append(_numbers(place))
        shown = "; ".join(f"{show_text(path)} {', '.join(rows)}" for path, rows in by_file.items())
        rest = len(self.places) - _MOST_PLACES
        where = [f"rows: {shown}" if rest <= 0 else f"rows: {shown}; and in {rest:,} more places"] if shown else []
        return [self.message, *where, self.mend]

    def summary(self) -> dict[str, Any]:
        """What a run keeps of it: its name, and the lines above."""
        return {"name": self.name, "lines": self.lines()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        places = [
            [{"file": each.path, "row": each.row, "line": each.line} for each in place]  # as the reader numbers them
            for place in self.places
        ]
        return {"name": self.name, "message": self.message, "mend": self.mend, "rows": places}


def _numbers(place: Sequence[Source]) -> str:
    """The numbers of rows that belong together; rows of another file are named with it."""
    first = place[0]
    names = [str(each.row) if each.path == first.path else f"{show_text(each.path)} {each.row}" for each in place]
    return " + ".join(names if len(names) <= 4 else [*names[:3], "..."])
