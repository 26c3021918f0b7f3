"""The trials of one map in parts, by what they chose for a field beside the sparsities."""

import math
from typing import TYPE_CHECKING

from ressa.errors import SpecError
from ressa.landscape.allocations import is_pattern, of_search, runs_and_rest

if TYPE_CHECKING:
    import pandas

PATTERN = "pattern"
"""What `parted` calls the difference between N:M patterns and unstructured sparsity."""


def parted(frame: "pandas.DataFrame", by: str | None) -> "dict[str, pandas.DataFrame]":
    """Returns the trials of a search by what they chose for a field, values rising.

    Args:
        frame: a `results_table`.
        by: the field, such as repair.steps; or "pattern": N:M, or unstructured. None: all together.

    Raises:
        SpecError: no trial chose such a thing.
    """
    if by is None:
        return {"": frame}
    searched = of_search(frame)
    if by == PATTERN:
        values = is_pattern(searched).map({True: "N:M", False: "unstructured"})
    else:
        values = searched["options"].map(lambda text: _chosen_for(by, text))
    if values.isna().all():
        known = ", ".join((*chosen_fields(searched), PATTERN))
        raise SpecError(f"--by {by}: no trial chose such a thing. Fields: {known}.")
    return {value: searched[values == value] for value in sorted(set(values.dropna()), key=_rising)}


def chosen_fields(frame: "pandas.DataFrame") -> list[str]:
    """Returns the fields that trials chose, beside sparsities and seeds."""
    rest = {word for text in frame["options"] for word in runs_and_rest(text)[1].split()}
    return sorted({word.partition("=")[0] for word in rest})


def mixed(frame: "pandas.DataFrame") -> str | None:
    """Says in what trials of a map differ beside sparsities and seeds; None if in nothing."""
    searched = of_search(frame)
    found = {}
    for field in chosen_fields(searched):
        values = {_chosen_for(field, text) for text in searched["options"]} - {None}
        if len(values) > 1:
            found[field] = sorted(map(str, values), key=_rising)
    return "; ".join(f"{field}: {', '.join(values)}" for field, values in found.items()) or None


def _chosen_for(field: str, options: str) -> str | None:
    return next((w.partition("=")[2] for w in options.split() if w.startswith(f"{field}=")), None)


def _rising(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return math.inf, text
