"""Means over tasks: of the scores (the paper's), and of each as a share of the dense model's."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ressa.catalog import task_facts
from ressa.spec import ALL_TASKS

Row = dict[str, Any]


def aggregates(rows: Sequence[Row], tasks: Mapping[str, str]) -> list[Row]:
    """Returns rows of `macro` and `mean_relative` for each state and image that has every task.

    Both are over the tasks' main metrics (`catalog.task_facts`), each task counting once: where it
    has several, such as retrieval, their mean. Their standard errors take the tasks' answers as
    independent and the dense scores as given. `mean_relative` is left out where the dense model
    scores 0.

    Args:
        rows: of the scores table, of one split.
        tasks: what each name in the rows' task column is in the catalog; at least two.
    """
    found = {(r["state"], r["image"], r["task"], r["metric"]): r for r in rows}
    dense = _mains(found, tasks, "dense", "real")
    if dense is None:
        return []
    made: list[Row] = []
    for state, image in dict.fromkeys((row["state"], row["image"]) for row in rows):
        mains = _mains(found, tasks, state, image)
        if mains is None:
            continue
        template = {"task": ALL_TASKS, "split": rows[0]["split"], "state": state, "image": image}
        items = sum(each[0]["items"] for each in mains.values())
        weights = {"macro": {name: [1.0] * len(each) for name, each in mains.items()}}
        if all(row["value"] > 0 for each in dense.values() for row in each):
            weights["mean_relative"] = {
                name: [1 / row["value"] for row in each] for name, each in dense.items()
            }
        for metric, weight in weights.items():
            value, error = _mean(mains, weight)
            made.append(
                template
                | {"metric": metric, "value": value, "standard_error": error, "items": items}
            )
    return made


def _mains(
    found: Mapping[tuple[str, str, str, str], Row], tasks: Mapping[str, str], state: str, image: str
) -> dict[str, list[Row]] | None:
    """Each task's rows of its main metrics in one state; None if one is not there."""
    mains = {}
    for name, task in tasks.items():
        keys = [(state, image, name, metric) for metric in task_facts(task).main]
        if not all(key in found for key in keys):
            return None
        mains[name] = [found[key] for key in keys]
    return mains


def _mean(
    mains: Mapping[str, Sequence[Row]], weights: Mapping[str, Sequence[float]]
) -> tuple[float, float | None]:
    values, squares = [], []
    for name, rows in mains.items():
        terms = list(zip(rows, weights[name], strict=True))
        values.append(math.fsum(row["value"] * weight for row, weight in terms) / len(terms))
        errors = [
            math.nan if row["standard_error"] is None else row["standard_error"] * weight
            for row, weight in terms
        ]
        # Metrics of one task hang together: their errors add up at most.
        squares.append((math.fsum(errors) / len(terms)) ** 2)
    error = math.sqrt(math.fsum(squares)) / len(squares)
    return math.fsum(values) / len(values), None if math.isnan(error) else error
