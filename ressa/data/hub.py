"""Any Hugging Face data set: saved to disk, as files that `datasets` can load, or on the hub.

Pictures are kept as their files' bytes and decoded when they are shown.
"""

import csv
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ressa.data.files import DataError, Picture, Record, RepeatedIds
from ressa.errors import MissingExtraError
from ressa.spec import DataSource
from ressa.spec.data import HUB

_READERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_COMPARED = 8  # pictures of a split whose ids another one has too
_WORDS = {"validation": ("validation", "valid", "val", "dev")}
"""Words in a file's name by which it is a split's, where they are more than the split's own."""


class HuggingFace:
    """A data set with columns that the sweep file maps.

    Args:
        source: says where it is: what `save_to_disk` wrote, a folder of Parquet, JSON, CSV or
            picture files, or `hf://datasets/org/name` with its commit.
    """

    def __init__(self, source: DataSource) -> None:
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "format datasets needs the package 'datasets', which is not installed. "
                "Install it, in a checkout of ressa: pip install '.[run,tasks]' -c constraints.txt"
            ) from error
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        self.source, self._library = source, datasets
        self._loaded: dict[str, Any] = {}
        self._rows: dict[str, tuple[str, int]] = {}  # image id → split and row
        self._compared: Counter[str] = Counter()  # pictures of a split with those of others
        if not source.path.startswith(HUB) and not self._folder.is_dir():
            raise DataError(f"there is no folder {source.path!r} for {source.format} data.")

    @property
    def _folder(self) -> Path:
        return Path(os.path.expanduser(self.source.path))

    def records(self, split: str) -> Iterator[Record]:
        """Yields a split's rows."""
        rows, columns = self._split(split), self.source.columns
        names = set(rows.column_names)
        for field in ("image", "image_id", "id", "kind"):
            column = getattr(columns, field)
            if column not in (None, *names):
                raise DataError(self._lacks(field, column, names))
        wanted = {
            "vqa": ("question", "answers"),
            "multiple_choice": ("question", "choices", "correct"),
        }.get(self.source.task, ("captions",))
        for field in wanted:
            if getattr(columns, field) not in names:
                raise DataError(self._lacks(field, getattr(columns, field), names))
        has_bytes = columns.image and not self._are_paths(rows)
        texts = rows.remove_columns([columns.image]) if has_bytes else rows
        for number, row in enumerate(texts):
            yield self._record(split, number, row)

    def picture(self, image_id: str) -> Picture:
        """Returns a picture's bytes, or its file."""
        if self.source.columns.image is None:
            return None
        return self._at(*self._rows[image_id])

    def _at(self, split: str, number: int) -> Picture:
        """Returns the picture of a row."""
        value = self._split(split)[number][self.source.columns.image]
        if isinstance(value, str):  # a column of paths
            images = self.source.images
            return (Path(os.path.expanduser(images)) if images else self._folder) / value
        if value is None:
            return b""
        content: bytes | None = value["bytes"]
        return content if content is not None else Path(value["path"])

    def origin(self) -> dict[str, str]:
        """Says what the data set's card says of its source and licence."""
        told: dict[str, str] = {}
        for rows in self._loaded.values():
            told |= {"source": rows.info.homepage, "licence": rows.info.license}
        return {key: text for key, text in told.items() if text}

    def _record(self, split: str, number: int, row: dict[str, Any]) -> Record:
        columns = self.source.columns

        def value(column: str | None, default: Any) -> Any:
            return default if column is None or row[column] is None else row[column]

        own = f"{split}/{number}"
        shown = value(columns.image, own) if columns.image in row else own  # a picture's path
        image_id = str(value(columns.image_id, shown))
        first = self._rows.setdefault(image_id, (split, number))
        is_known = columns.image is not None and first[0] != split
        if is_known and self._compared[split] < _COMPARED:
            self._compared[split] += 1
            if _differ(self._at(*first), self._at(split, number)):
                raise RepeatedIds(
                    f"{self.source.path}: the id of a picture, {image_id}, stands for one in split "
                    f"{first[0]} and for another in {split}. Ids must hold over all splits: name "
                    "another column in columns.image_id, or leave it out."
                )
        choices: tuple[str, ...] = ()
        answers: Any
        if self.source.task == "multiple_choice":
            given = value(columns.choices, ())
            if isinstance(given, str):
                raise DataError(
                    f"{self.source.path}, {own}: column {columns.choices!r} holds a text, no list "
                    "of choices. JSON lines and Parquet have lists, CSV has none."
                )
            choices = tuple(map(str, given))
            right = value(columns.correct, None)
            if isinstance(right, int):
                answers = choices[right : right + 1] if right >= 0 else ()
            else:
                answers = right
        else:
            said = columns.answers if self.source.task == "vqa" else columns.captions
            answers = self._unclassed(split, said, row[said])
        return Record(
            id=str(value(columns.id, own)),
            image_id=image_id,
            text=str(value(columns.question, "")) if columns.question in row else "",
            answers=_texts(answers),
            kind=str(value(columns.kind, "")),
            choices=choices,
        )

    def _unclassed(self, split: str, column: str, value: Any) -> Any:
        """Returns what a row has in a column; of classes, the names of those it has."""
        feature = self._split(split).features[column]
        feature = getattr(feature, "feature", feature)  # of a list, its entries'
        if not isinstance(feature, self._library.ClassLabel):
            return value
        numbers = value if isinstance(value, list) else [value]
        return [feature.names[at] for at in numbers if at is not None and at >= 0]

    def _split(self, split: str) -> Any:
        if split not in self._loaded:
            rows, column = self._load(split), self.source.columns.image
            if column in rows.column_names:
                feature = rows.features[column]
                if isinstance(feature, self._library.Image):
                    rows = rows.cast_column(column, self._library.Image(decode=False))
            self._loaded[split] = rows
        return self._loaded[split]

    def _are_paths(self, rows: Any) -> bool:
        """Whether the column of pictures names files."""
        feature = rows.features[self.source.columns.image]
        return getattr(feature, "dtype", "") in ("string", "large_string")

    def _tables(self, split: str) -> list[str]:
        """Finds a split's own tables beside folders of pictures.

        `datasets` would read such a folder as pictures alone, unless metadata.* or a data set's
        card says what they are.
        """
        card = self._folder / "README.md"
        is_told = card.is_file() and card.read_bytes().startswith(b"---")
        if is_told or self.source.subset is not None or any(self._folder.glob("metadata.*")):
            return []
        wanted = _WORDS.get(split, (split,))
        return sorted(
            str(file)
            for file in self._folder.iterdir()
            if file.suffix in _READERS
            and set(re.split(r"[^a-z0-9]+", file.stem.lower())) & set(wanted)
        )

    def _as_text(self, table: str) -> dict[str, Any]:
        """Has a CSV read as it is written: 007 is no 7, and None may be an answer."""
        with open(table, newline="", encoding="utf-8-sig") as file:
            names = next(csv.reader(file), [])
        text = self._library.Value("string")
        features = self._library.Features(dict.fromkeys(names, text))
        return {"features": features, "keep_default_na": False}

    def _load(self, split: str) -> Any:
        source, library = self.source, self._library
        place = str(self._folder)
        if source.path.startswith(HUB):
            place = source.path.removeprefix(HUB)
        try:
            if (self._folder / "dataset_dict.json").is_file():
                splits = library.load_from_disk(str(self._folder))
                return splits[split]
            if (self._folder / "state.json").is_file():
                return library.load_from_disk(str(self._folder))
            if not source.path.startswith(HUB) and (tables := self._tables(split)):
                reader = _READERS[Path(tables[0]).suffix]
                as_text = self._as_text(tables[0]) if reader == "csv" else {}
                return library.load_dataset(
                    reader, data_files={split: tables}, split=split, **as_text
                )
            return library.load_dataset(place, source.subset, split=split, revision=source.revision)
        except KeyError as error:
            known = ", ".join(splits)
            raise DataError(f"{place} has no split {split!r}; it has {known}.") from error
        except Exception as error:  # of many kinds, each package's own
            raise DataError(
                f"{place}, split {split!r}, cannot be loaded: {type(error).__name__}: {error}"
            ) from error

    def _lacks(self, field: str, column: str, names: set[str]) -> str:
        return (
            f"{self.source.path} has no column {column!r}; it has {', '.join(sorted(names))}. Say "
            f"which holds what in data.columns.{field}."
        )


def _differ(one: Picture, other: Picture) -> bool:
    """Whether two pictures are others, as far as their files can be read."""

    def content(picture: Picture) -> bytes | None:
        return picture.read_bytes() if isinstance(picture, Path) else picture

    try:
        return one != other and content(one) != content(other)
    except OSError:
        return False  # that a file is away is found where it is drawn


def _texts(value: Any) -> tuple[str, ...]:
    """Reads a text or number, a list of them, or VQA's list of {answer: text}; no nulls."""
    if isinstance(value, dict):  # a struct of lists, as older data sets have it
        value = value.get("answer") or value.get("text") or ()
    entries = value if isinstance(value, list | tuple) else (value,)
    told = (
        entry.get("answer", entry.get("raw", "")) if isinstance(entry, dict) else entry
        for entry in entries
    )
    return tuple(str(text) for text in told if text is not None)
