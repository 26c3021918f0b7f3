"""What `ressa data check` finds out about a data set: counts, splits, pictures, origin, licence."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ressa.catalog import FORMATS, TASKS, task_facts
from ressa.data import open_data
from ressa.data.files import BadItem, DamagedData, DataError, FileTask, RepeatedIds
from ressa.errors import SpecError, UnknownNameError
from ressa.spec import DataSource, spec_from_mapping

# Where each arrangement comes from and what its authors allow, as their pages say; where the files
# say it themselves, that is shown instead.
_ORIGINS: Mapping[str, tuple[str, str]] = {
    "vqav2": (
        "https://visualqa.org",
        "annotations CC BY 4.0; pictures under Flickr's terms (COCO)",
    ),
    "okvqa": ("https://okvqa.allenai.org", "see its page; pictures under Flickr's terms (COCO)"),
    "gqa": (
        "https://cs.stanford.edu/people/dorarad/gqa",
        "CC BY 4.0; pictures of Visual Genome, partly COCO's and Flickr's",
    ),
    "aokvqa": (
        "https://allenai.org/project/a-okvqa",
        "see its page; pictures under Flickr's terms (COCO)",
    ),
    "karpathy": (
        "https://cs.stanford.edu/people/karpathy/deepimagesent",
        "captions of COCO CC BY 4.0; pictures under Flickr's terms, Flickr30k's for research and "
        "education alone",
    ),
    "coco_captions": ("https://cocodataset.org", "CC BY 4.0; pictures under Flickr's terms"),
    "nocaps": ("https://nocaps.org", "see its page; pictures of Open Images CC BY 2.0"),
    "datasets": ("", "not stated in its card"),
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found."""

    source: DataSource
    rows: list[dict[str, Any]]
    """One for each of our splits: where it comes from, examples, pictures, bad items."""
    words: list[str]
    bad: list[BadItem] = field(default_factory=list)


def check(
    task: str,
    path: str,
    layout: str | None = None,
    fields: Mapping[str, Any] | None = None,
    *,
    decode: bool = True,
) -> Report:
    """Reads a data set through, every split and every picture.

    Args:
        task: vqa, captioning, retrieval, multiple_choice or perplexity.
        path: as in the sweep file's data section.
        layout: its format; None finds out which of the task's formats the files have.
        fields: other fields of the data section, such as columns.
        decode: False looks at the ends of pictures alone, as a sweep does before it starts.

    Raises:
        SpecError: there is no such task or folder, or a field is wrong.
        DataError: no split of it can be read, or an id stands for several things.
    """
    formats = task_facts(task).formats
    if not formats:
        known = [name for name in TASKS if task_facts(name).formats]
        raise UnknownNameError("task that reads files", task, known)
    if path.startswith((".", "/", "~")) and not Path(os.path.expanduser(path)).exists():
        raise SpecError(f"there is no folder {path}.")
    given = {"task": task, "path": path, "on_bad_item": "skip"} | dict(fields or {})
    if task == "retrieval":
        given.setdefault("model", "nobody/asks-it-here")
    if layout is None:
        layout = _detected(given, formats)
    opened = _open(given | {"format": layout})
    rows, bad = [], []
    for split, wanted in opened.source.splits.items():
        row, found = _row(opened, split, wanted, decode)
        rows.append(row)
        bad += found
    if not any(row["examples"] for row in rows):
        raise DataError("\n".join(f"{row['split']}: {row['note']}" for row in rows))
    page, terms = _ORIGINS[layout]
    said = opened.layout.origin()
    words = [
        f"format   {layout}",
        f"source   {said.get('source') or page or path}",
        f"licence  {said.get('licence') or terms}",
        "pictures were decoded, every one" if decode else "pictures were looked at, not decoded",
    ]
    repeats = opened.repeats()
    if repeats is not None:
        words.append(f"pictures {repeats}")
    return Report(source=opened.source, rows=rows, words=words, bad=bad)


def _open(entry: Mapping[str, Any]) -> FileTask:
    stub = {"ressa": 1, "model": "pocket-blip2", "space": {"sparsity": 0.5}}
    spec = spec_from_mapping(stub | {"data": {"data": dict(entry)}}, name="check").spec
    opened = open_data("data", spec.data["data"])
    assert isinstance(opened, FileTask)
    return opened


def _detected(given: Mapping[str, Any], formats: tuple[str, ...]) -> str:
    """Finds the first format of which some split is there."""
    for layout in formats:
        opened = _open(dict(given) | {"format": layout})
        own = {text.partition("[")[0] for text in opened.source.splits.values()}
        for split in sorted(own):
            try:
                next(iter(opened.layout.records(split)), None)
            except (DataError, KeyError, TypeError):
                continue
            return layout
    wanted = ", ".join(f"{layout} ({', '.join(FORMATS[layout].values())})" for layout in formats)
    raise SpecError(
        f"{given['path']} has the files of none of these formats: {wanted}. Give --format to see "
        "which file is missed."
    )


def _row(
    opened: FileTask, split: str, wanted: str, decode: bool
) -> tuple[dict[str, Any], list[BadItem]]:
    row: dict[str, Any] = {"split": split, "from": wanted, "examples": 0, "pictures": 0}
    try:
        examples, left_out = opened.draw(split)
    except RepeatedIds:
        raise
    except DataError as error:
        return row | {"bad": 0, "note": str(error)}, []
    bad = list(left_out)
    images = dict.fromkeys(example.image_id for example in examples)
    if decode:
        broken = set(_undecodable(opened, images))
        bad += [BadItem(e.id, "damaged picture") for e in examples if e.image_id in broken]
    reasons = Counter(item.reason for item in bad)
    note = ", ".join(f"{count} × {reason}" for reason, count in reasons.items())
    counts = {"examples": len(examples), "pictures": len(images), "bad": len(bad)}
    return row | counts | {"note": note}, bad


def _undecodable(opened: FileTask, images: Mapping[str, None]) -> Iterator[str]:
    for image_id in images:
        try:
            opened.image(image_id)
        except DamagedData:
            yield image_id
