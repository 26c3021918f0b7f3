"""A console for strings that may be a stranger's: a store's, a model's, a worker's."""

import re
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BUT_COLOURS = re.compile(rf"(\x1b\[[\d;:]*m)|\r\n?|{_STEERING.pattern}")


class SafeConsole(Console):
    """Prints nothing that a string holds to steer a terminal: its cursor, title or clipboard.

    rich drops some control characters, such as the bell, and takes the width of all others for
    none: dropped too, they leave tables as they were laid out. What rich itself does to the cursor
    are segments of another kind.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yields the segments of what is printed."""
        for segment in super().render(renderable, options):
            if segment.control or not _STEERING.search(segment.text):
                yield segment
            else:
                yield Segment(_STEERING.sub("", segment.text), segment.style)


def but_colours(text: str) -> str:
    """Drops what would steer a terminal, but for colours; what a line would hide is a new one."""

    def kept(found: re.Match[str]) -> str:
        return "\n" if found[0].startswith("\r") else found[1] or ""

    return _BUT_COLOURS.sub(kept, text)
