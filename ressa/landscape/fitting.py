"""Tables that have to fit a terminal: which column gives way, and where its text breaks.

A word breaks after a space, an underscore, a hyphen or another mark between its parts; never inside
a part, and never inside a number.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

_PARTS = re.compile(
    r"(?<=[_=])(?=.)"
    r"|(?<=[,;/])(?![\d/])(?=.)"
    r"|(?<=\w-)(?=[^\W\d])"
    r"|(?<=[^\W\d]\.)(?=[^\W\d])"
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table as text."""

    heading: str
    cells: Sequence[str]
    is_number: bool
    """Whether its cells stay on one line."""

    @property
    def widest(self) -> int:
        """How many columns of a terminal it takes if nothing is wrapped."""
        return max(map(cell_len, (self.heading, *self.cells)))

    @property
    def cells_widest(self) -> int:
        """The same of its cells alone."""
        return max(map(cell_len, self.cells), default=0)

    @property
    def least(self) -> int:
        """How many it takes if everything is wrapped that may be."""
        cells = self.cells_widest if self.is_number else max(map(longest, self.cells), default=0)
        return max(cells, longest(self.heading))


GAP = 2
"""Columns of a terminal between two columns of a table."""


def fitting(columns: Sequence[Column], width: int) -> list[int] | None:
    """Returns the widths with which columns fit, or None if a word would have to be broken.

    Headings that are wider than what is below them give way first, then the widest text.
    """
    least = [column.least for column in columns]
    room = width - GAP * (len(columns) - 1)
    if sum(least) > room:
        return None
    found = [column.widest for column in columns]
    below = [max(column.cells_widest, low) for column, low in zip(columns, least, strict=True)]
    for floor in (below, least):
        while sum(found) > room:
            wide = [at for at, now in enumerate(found) if now > floor[at]]
            if not wide:
                break
            found[max(wide, key=found.__getitem__)] -= 1
    return found


def wrapped(text: str, width: int) -> str:
    """Returns text in lines of at most a width; a part that is longer has a line of its own.

    A word that has room on a line of its own is not broken.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        lines.append("")
        for word in re.findall(r"\S+\s*", line) or [""]:
            bare = word.rstrip()
            parts = [word] if cell_len(bare) <= width else _PARTS.split(word)
            for part in parts:
                if lines[-1] and cell_len(lines[-1]) + cell_len(part.rstrip()) > width:
                    lines.append("")
                lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def longest(text: str) -> int:
    """Returns the length of the longest part of a text that may not be broken."""
    return max((cell_len(part) for word in text.split() for part in _PARTS.split(word)), default=0)
