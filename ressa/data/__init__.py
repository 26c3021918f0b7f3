"""Tasks' data: calibration, repair and evaluation examples, disjoint by image."""

import os
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from ressa.catalog import TASKS
from ressa.records import TaskData
from ressa.spec import Calibration, DataRef, DataSource
from ressa.spec.data import HUB

__all__ = ["examples_of", "open_data", "open_task", "pictures_of"]

# COCO dealt one set of numbered pictures in 2014, 2015 and, anew, in 2017.
_COCO = re.compile(r"^(?:COCO_(?:train|val|test)201[45]_|coco2017/|coco_captions/)(\d{12})$")


def pictures_of(image_ids: Iterable[str], source: DataSource | None) -> set[str]:
    """Names pictures so that equal names are one picture, in whichever data sets they are.

    COCO's, to which data sets give ids of their own, go by their numbers. Ids of Hugging Face data
    sets hold within one: two in different places share no picture.
    """
    if source is None or source.format != "datasets":
        return {_COCO.sub(r"coco/\1", image_id) for image_id in image_ids}
    is_on_hub = source.path.startswith(HUB)
    place = source.path if is_on_hub else os.path.realpath(os.path.expanduser(source.path))
    return {f"{place}/{image_id}" for image_id in image_ids}


def open_task(name: str, data: TaskData | None = None) -> Any:
    """Returns a task: one that brings its own examples, or one over files; each is read once."""
    return _own(name) if data is None else open_data(name, data.source)


def examples_of(name: str, use: Calibration | DataRef, data: TaskData | None) -> Any:
    """Returns a task and the examples of it that a part of a spec asks for; each is drawn once."""
    task = open_task(name, data)
    if data is None:
        return task, _drawn(name, use.split, use.samples, use.seed)
    return task, task.examples(use.split, use.samples, use.seed)


def open_data(name: str, source: DataSource) -> Any:
    """Returns the task over a data set in files, under the name that the sweep gives it."""
    return _over_files(name, source.model_dump_json())


# A process that runs trial after trial reads its data once; several sweeps' do not pile up.
@lru_cache(maxsize=16)
def _own(name: str) -> Any:
    return TASKS[name]()


@lru_cache(maxsize=32)
def _drawn(name: str, split: str, samples: int | None, seed: int) -> Any:
    return _own(name).examples(split, samples, seed)


@lru_cache(maxsize=16)
def _over_files(name: str, content: str) -> Any:
    source = DataSource.model_validate_json(content)
    return TASKS[source.task](name, source)
