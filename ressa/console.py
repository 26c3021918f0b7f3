"""A console for strings that may be a stranger's: a store's, a model's, a worker's."""

import os
import re
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_OF_DISPLAYS = r"\x1b\[(?:[\d;:]*m|\d*[AK]|\?25[hl])|\r"
_BUT_DISPLAYS = re.compile(rf"({_OF_DISPLAYS})|{_STEERING.pattern}")
_CUT = re.compile(r"\x1b(?:\[[\d;:?]*)?\Z")
_BUT_COLOURS = re.compile(rf"(\x1b\[[\d;:]*m)|\r\n?|{_STEERING.pattern}")


class SafeConsole(Console):
    """Prints nothing that a string holds to steer a terminal: its cursor, title or clipboard.

    rich drops some control characters, such as the bell, and takes the width of all others for
    none: dropped too, they leave tables as they were laid out. What rich itself does to the cursor
    are segments of another kind. Words that nobody takes any more end nothing.
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

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:  # a full disk, a terminal that is gone
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Writes the rest to nowhere; rich would end the program, and with it a sweep."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def but_displays(text: str) -> tuple[str, str]:
    """Drops what would steer a terminal, but for what displays that change are written with.

    Returns:
        The text, and what stands at its end of a sequence that was cut.
    """
    cut = _CUT.search(text)
    end = len(text) if cut is None else cut.start()
    return _BUT_DISPLAYS.sub(lambda found: found[1] or "", text[:end]), text[end:]


def but_colours(text: str) -> str:
    """Drops what would steer a terminal, but for colours; what a line would hide is a new one."""

    def kept(found: re.Match[str]) -> str:
        return "\n" if found[0].startswith("\r") else found[1] or ""

    return _BUT_COLOURS.sub(kept, text)
