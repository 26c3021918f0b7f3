"""Tasks' data: calibration, repair and evaluation examples, disjoint by image."""

import re
from functools import lru_cache
from typing import Any

from ressa.catalog import TASKS
from ressa.records import TaskData
from ressa.spec import Calibration, DataRef, DataSource

__all__ = ["examples_of", "open_data", "open_task", "picture_of"]

# COCO dealt one set of numbered pictures in 2014, 2015 and, anew, in 2017.
_COCO = re.compile(r"(?:COCO_(?:train|val|test)201[45]_|coco2017/|coco_captions/)(\d{12})")


def picture_of(image_id: str) -> str:
    """Returns one name for a picture that data sets give ids of their own: COCO's, by number."""
    found = _COCO.fullmatch(image_id)
    return image_id if found is None else f"coco/{found[1]}"


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
