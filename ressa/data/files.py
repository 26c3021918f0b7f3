"""Examples that lie in files: read once, checked, dealt to splits by image, drawn by seed.

A `Layout` knows one arrangement of files (`layouts.py`, `hub.py`) and yields `Record`s. A
`FileTask` turns them into examples of its task, and is what the rest of `ressa` sees.
"""

import hashlib
import io
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import ClassVar, Protocol, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from ressa.errors import SpecError, TrialError
from ressa.records import Example
from ressa.spec import DataSource
from ressa.spec.data import slice_of

MEAN_COLOUR = (124, 116, 104)
"""ImageNet's mean, which image processors map to about 0: the blank picture of every file task."""
_NAMED = 5  # bad items that a message lists
_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND\xaeB`\x82"}  # of JPEG and PNG files
_TAIL = 64  # bytes in which a file's end mark is looked for: some writers pad


class DataError(SpecError):
    """The sweep file asks a task for examples that it does not have."""


class RepeatedIds(DataError):
    """An id stands for several things, so that nothing of the data set can be relied on."""


class DamagedData(TrialError):
    """A picture cannot be read though it was there when the sweep was planned."""

    stage = "data"


_FAULTS = {
    -1: "damaged picture",
    -2: "no picture",
    -3: "picture of 32-bit numbers, whose range is not known: save it with 8 or 16 bits",
}
"""What is wrong with a picture, by what stands for its size."""

Picture: TypeAlias = "Path | bytes | None"
"""A file, or its contents; None where there is no picture at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One entry of a data set as its files have it."""

    id: str
    image_id: str
    """Equal for equal pictures of a data set; of two, `ressa.data.pictures_of` it."""
    text: str = ""
    """The question, if there is one."""
    answers: tuple[str, ...] = ()
    """Answers or captions."""
    kind: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BadItem:
    """An entry that cannot be used, and why."""

    id: str
    reason: str


Drawn: TypeAlias = tuple[tuple[Example, ...], tuple[BadItem, ...]]


class Layout(Protocol):
    """One arrangement of files."""

    def records(self, split: str) -> Iterator[Record]:
        """Yields the entries of one of the data's own splits, in the order of its files."""

    def picture(self, image_id: str) -> Picture:
        """Returns a picture of a record that was yielded; its file need not exist."""

    def origin(self) -> dict[str, str]:
        """Says what the files say of themselves: their source and licence."""


class FileTask(ABC):
    """A task over files.

    Args:
        name: what the sweep file calls this data set.
        source: where its files lie, and how models are asked about them.
    """

    measure: ClassVar[str]
    """How it is scored: a name of `evaluate.measures`."""
    splits = ("train", "calibration", "validation", "test")

    def __init__(self, name: str, source: DataSource) -> None:
        self.name, self.source = name, source
        self._splits: dict[str, Drawn] = {}
        self._draws: dict[tuple[str, int | None, int], Drawn] = {}
        self._prints: dict[tuple[str, int | None, int], str] = {}
        self._sizes: dict[str, int] = {}  # bytes of each picture that was checked; −1: damaged

    @abstractmethod
    def make(self, record: Record, split: str) -> Iterable[Example | BadItem]:
        """Turns an entry into examples of one of our splits, or says what is wrong with it."""

    def examples(
        self, split: str, samples: int | None = None, seed: int = 0
    ) -> tuple[Example, ...]:
        """Returns examples of one split, those of one picture next to each other.

        Args:
            split: one of `splits` that the source names.
            samples: how many; None means all, in their fixed order.
            seed: of the draw. Pictures are drawn without replacement, with all their examples; the
                last picture's are cut so that exactly `samples` come out.

        Raises:
            DataError: there is no such split, too few examples, or bad items and `on_bad_item`
                is fail.
        """
        return self.draw(split, samples, seed)[0]

    def draw(self, split: str, samples: int | None = None, seed: int = 0) -> Drawn:
        """Returns what `examples` does, and what had to be left out on the way; see there."""
        key = (split, samples, seed)
        if key not in self._draws:
            self._draws[key] = self._draw(*key)
        return self._draws[key]

    def _draw(self, split: str, samples: int | None, seed: int) -> Drawn:
        everything, bad = self._read(split)
        groups = [list(group) for _, group in groupby(everything, key=lambda e: e.image_id)]
        if samples is not None:
            # Seeded by a text, which Python hashes by SHA-512: the same order in every process.
            random.Random(f"draw {split} {seed}").shuffle(groups)
        drawn: list[Example] = []
        left_out = list(bad)
        for group in groups:
            if samples is not None and len(drawn) >= samples:
                break
            reason = self._fault(group[0].image_id)
            if reason is None:
                drawn += group
            else:
                left_out += [BadItem(example.id, reason) for example in group]
        if left_out and self.source.on_bad_item == "fail":
            raise DataError(
                f"{self.name}, {split}: {named(left_out)}. Mend the files, or set "
                f"data.{self.name}.on_bad_item to skip, which leaves them out."
            )
        if samples is not None and len(drawn) < samples:
            raise DataError(
                f"{self._split_of(split)} has {len(drawn)} examples; {samples} were asked for. "
                f"{self._remedy(split, len(drawn))}"
            )
        if not drawn:
            raise DataError(f"{self._split_of(split)} has no examples. {self._remedy(split, 0)}")
        return tuple(drawn[:samples]), tuple(left_out)

    def _split_of(self, split: str) -> str:
        own = self.source.splits[split]
        return f"{self.name}'s {split} split" + ("" if own == split else f", {own},")

    def _remedy(self, split: str, count: int) -> str:
        """Says what to do where a split has too few examples."""
        _, low, high = slice_of(self.source.splits[split])
        fewer = f"Ask for {count} samples or fewer, or give" if count else "Give"
        if high - low == 100:
            return f"{fewer} it another split of the files in data.{self.name}.splits."
        return (
            f"{fewer} it a larger slice in data.{self.name}.splits: pictures are dealt by a hash "
            "of their ids, so that of few pictures a small slice may get none."
        )

    def image(self, image_id: str) -> Image.Image:
        """Opens a picture as RGB, turned as its EXIF data say.

        Raises:
            DamagedData: it cannot be read.
        """
        picture = self.layout.picture(image_id)
        if picture is None:
            return self.blank_image()
        file = io.BytesIO(picture) if isinstance(picture, bytes) else picture
        try:
            with Image.open(file) as image:
                return _as_8_bits(ImageOps.exif_transpose(image)).convert("RGB")
        except Exception as error:  # of many kinds, each decoder's own; huge ones are refused
            raise DamagedData(
                f"picture {image_id} of {self.name} cannot be read ({error}). `ressa data check` "
                "finds all such pictures; take them out of the annotations.",
                "data",
            ) from error

    def blank_image(self) -> Image.Image:
        """Returns a picture of ImageNet's mean colour, which leaves the question alone."""
        return Image.new("RGB", (224, 224), MEAN_COLOUR)

    def fingerprint(self, split: str, samples: int | None = None, seed: int = 0) -> str:
        """Hashes what a draw comes to: its examples, and the names and sizes of its pictures."""
        key = (split, samples, seed)
        if key not in self._prints:
            digest = hashlib.sha256()
            for example in self.examples(*key):
                digest.update(repr((example, self._sizes[example.image_id])).encode())
            self._prints[key] = digest.hexdigest()[:32]
        return self._prints[key]

    def repeats(self) -> str | None:
        """Says how many rows drawn so far show another row's picture under an id of their own.

        That may be where the rows of a data set have no ids of pictures: each counts as its own.
        """
        if self.source.format != "datasets" or self.source.columns.image_id is not None:
            return None
        by_size: dict[int, list[str]] = {}
        for image_id, size in self._sizes.items():
            by_size.setdefault(size, []).append(image_id)
        alike = (ids for size, ids in by_size.items() if size > 0 and len(ids) > 1)
        files = Counter(_digest(self.layout.picture(one)) for ids in alike for one in ids)
        count = sum(rows for rows in files.values() if rows > 1)
        if not count:
            return None
        return (
            f"{count:,} of {len(self._sizes):,} rows show a picture that another row shows too, "
            "and it counts as two: purposes may share it, and errors and tests take its questions "
            "as independent. Name the column of pictures' ids in columns.image_id"
        )

    @cached_property
    def layout(self) -> Layout:
        """The arrangement of the files; raises DataError if they are not there."""
        from ressa.data.layouts import layout_of

        return layout_of(self.source)

    def prompt(self, question: str) -> str:
        """Puts a question into the words in which it is asked."""
        text = clean_question(question) if self.source.clean_text else question
        return self.source.prompt.replace("{}", text, 1)

    def captions(self, record: Record) -> tuple[str, ...]:
        """Returns a record's captions as they are read, without those that have no word."""
        clean = clean_caption if self.source.clean_text else str.strip
        return tuple(caption for caption in map(clean, record.answers) if caption)

    def _read(self, split: str) -> Drawn:
        """Reads a split: its examples by image, and the entries that are no examples."""
        if split not in self.source.splits:
            known = ", ".join(self.source.splits) or "none"
            raise DataError(f"{self.name} has no split {split!r}; data.{self.name} names {known}.")
        if split not in self._splits:
            own, low, high = slice_of(self.source.splits[split])
            good: list[Example] = []
            bad: list[BadItem] = []
            for record in self.layout.records(own):
                if not low <= 100 * _place(record.image_id) < high:
                    continue
                for made in self.make(record, split):
                    if isinstance(made, BadItem):
                        bad.append(made)
                    else:
                        good.append(made)
            repeated = [name for name, count in Counter(e.id for e in good).items() if count > 1]
            if repeated:
                raise RepeatedIds(
                    f"{self.name}, {split}: {len(repeated)} ids stand for several examples, such "
                    f"as {repeated[0]}. Trials are paired by them: each example needs its own."
                )
            first: dict[str, int] = {}
            for example in good:
                first.setdefault(example.image_id, len(first))
            good.sort(key=lambda example: first[example.image_id])  # stable
            self._splits[split] = tuple(good), tuple(bad)
        return self._splits[split]

    def _fault(self, image_id: str) -> str | None:
        """Says what is wrong with a picture as far as its first and last bytes show it."""
        if image_id not in self._sizes:
            self._sizes[image_id] = _size(self.layout.picture(image_id))
        size = self._sizes[image_id]
        return _FAULTS.get(size)


def clean_question(text: str) -> str:
    """Writes a question as the paper's code reads it: LAVIS's `blip_question`."""
    return _first_words(text.lower().translate(_NOTHING).rstrip(" "))


def clean_caption(text: str) -> str:
    """Writes a caption as the paper's code reads it: LAVIS's `blip_caption`."""
    return _first_words(" ".join(text.lower().translate(_SPACES).split()))


_MARKS = '.!"()*#:;~'
_NOTHING = str.maketrans("", "", _MARKS)
_SPACES = str.maketrans(dict.fromkeys(_MARKS, " "))


def _first_words(text: str) -> str:
    return " ".join(text.split(" ")[:50])


def most_frequent(answers: Sequence[str]) -> str:
    """Returns the answer that most gave; of several, the one that was given first."""
    return Counter(answers).most_common(1)[0][0]


def named(bad: Sequence[BadItem]) -> str:
    """Counts bad items by what is wrong with them, and names the first few."""
    parts = []
    for reason, count in Counter(item.reason for item in bad).items():
        ids = [item.id for item in bad if item.reason == reason][:_NAMED]
        more = ", …" if count > len(ids) else ""
        parts.append(f"{count} × {reason} ({', '.join(ids)}{more})")
    return "; ".join(parts)


def _place(image_id: str) -> float:
    """Where an image stands among all, in [0, 1): by its id alone, so that splits are for ever."""
    return int(hashlib.sha256(image_id.encode()).hexdigest()[:12], 16) / 16**12


def _digest(picture: Picture) -> bytes:
    assert picture is not None, "its bytes were counted"
    content = picture if isinstance(picture, bytes) else picture.read_bytes()
    return hashlib.sha256(content).digest()


def _size(picture: Picture) -> int:
    """Counts a picture's bytes; or says by a negative number what is wrong with it: `_FAULTS`.

    Looks at both ends alone: broken downloads are cut short, empty or no pictures at all. Where
    something else follows the end, as a phone's video does, the end is looked for in all that
    stands behind the header, which may hold a small picture's, and the picture is decoded.
    """
    if picture is None:
        return 0
    try:
        with io.BytesIO(picture) if isinstance(picture, bytes) else picture.open("rb") as file:
            head = file.read(2)
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - _TAIL))
            tail = file.read()
            file.seek(0)
            with Image.open(file) as image:
                if image.mode in ("I", "F"):
                    return -3
                if head in _ENDS and _ENDS[head] not in tail:
                    behind_header = file.tell()
                    if _ENDS[head] not in file.read():
                        return -1
                    file.seek(behind_header)
                    image.load()
    except FileNotFoundError:
        return -2
    except Exception:  # of many kinds, each decoder's own
        return -1
    return size


def _as_8_bits(image: Image.Image) -> Image.Image:
    """Turns grey of 16 bits, of which Pillow would cut off all above 255, into such of 8."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
