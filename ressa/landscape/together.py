"""Several sweeps as one: whether their trials belong on one map, and their results in one table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

from ressa.errors import SpecError
from ressa.landscape.allocations import is_best, of_search
from ressa.landscape.tables import About, results_table
from ressa.spec import SweepSpec
from ressa.spec.space import SPARSITIES, SPARSITY, exact_decimal, scalar_text
from ressa.store import SweepStore

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")

_METHOD = "repair.method"
_PLACES = (*SPARSITIES, SPARSITY, "budget", "replicate")
_NAMED, _LONGEST = 3, 120  # fields that an error names, and characters of a value


def check_alike(trials: "Mapping[SweepStore, pandas.DataFrame]", *, by: str | None = None) -> None:
    """Refuses trials that differ in more than where they lie on the map and in seeds.

    Args:
        trials: of each sweep, rows of its table `trials` with model, metric and point.
        by: a field in which they may differ, such as prune.method.

    Raises:
        SpecError: they do. It names the fields, their values, and a sweep of each.
    """
    ways: dict[tuple[tuple[str, str], ...], str] = {}
    for sweep, rows in trials.items():
        fixed = recipe(sweep.spec()) if len(trials) > 1 else {}
        for row in rows[["model", "metric", "point"]].drop_duplicates().itertuples():
            own = {"model": str(row.model), "objective": str(row.metric)}
            own |= fixed | _chosen(row.point)
            ways.setdefault(tuple(sorted(own.items())), sweep.name)
    differing = _differing(ways)
    differing.pop(by or "", None)
    if not differing:
        return
    said = "; ".join(
        f"{field} is {_values(found, several=len(trials) > 1)}"
        for field, found in [*differing.items()][:_NAMED]
    )
    more = len(differing) - _NAMED
    rest = f"; and {more} more field{'s' if more > 1 else ''}" if more > 0 else ""
    only = next(iter(differing))
    can_part = len(differing) == 1 and only.startswith(("prune.", "repair."))
    hint = f", or a map for each value: --by {only}" if can_part else ""
    raise SpecError(
        "one map is of one model, evaluation and recipe; these trials differ in more than sparsity "
        f"and seeds: {said}{rest}. Draw them one by one{hint}."
    )


def _differing(ways: Mapping[tuple[tuple[str, str], ...], str]) -> dict[str, dict[str, str]]:
    """By field, its values and a sweep of each, where there are several."""
    fields = dict.fromkeys(field for way in ways for field, _ in way)
    found: dict[str, dict[str, str]] = {field: {} for field in fields}
    for way, sweep in ways.items():
        values = dict(way)
        for field in fields:
            found[field].setdefault(values.get(field, "not chosen"), sweep)
    found = {field: values for field, values in found.items() if len(values) > 1}
    return _unrepaired(found) if "none" in found.get(_METHOD, {}) else found


def _unrepaired(found: dict[str, T]) -> dict[str, T]:
    """Leaves out what only a repair has."""
    return {k: v for k, v in found.items() if k == _METHOD or not k.startswith("repair.")}


def _values(found: Mapping[str, str], *, several: bool) -> str:
    if not several:
        return " or ".join(value[:_LONGEST] for value in found)
    one, *others = (f"{value[:_LONGEST]} in {sweep}" for value, sweep in found.items())
    return f"{one}, but {', '.join(others)}"


def recipe(spec: SweepSpec) -> dict[str, str]:
    """Returns what all trials of a sweep have in common but for seeds: a text for each field.

    Fields of the model, of prune and repair under their dotted names, and what was asked.
    """
    content = spec.model_dump(include={"model": True, "prune": True, "repair": True})
    found = {
        field: text
        for field, text in _flat(content, "")
        if field != "model.id" and not field.endswith("seed")
    }
    found["evaluate"] = " and ".join(
        f"{one.samples or 'all'} questions of {one.task}/{one.split} (seed {one.seed})"
        for one in spec.evaluate
    )
    for name, source in spec.data.items():
        found[f"data.{name}"] = json.dumps(source.identity, sort_keys=True, default=str)
    return _unrepaired(found) if spec.repair.method == "none" else found


def _flat(content: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    found = []
    for name, value in content.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", _text(value)))
    return found


def _text(value: Any) -> str:
    """A value as points write it, so that a field is the same whether it was an axis or fixed."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, float):
        return scalar_text(exact_decimal(value))
    return scalar_text(value) if isinstance(value, int | Decimal) else str(value)


def _chosen(point: Any) -> dict[str, str]:
    fields = json.loads(point) if isinstance(point, str) else {}
    return {
        name: str(value)
        for name, value in fields.items()
        if name not in _PLACES and not name.endswith("seed")
    }


def results_of(sweeps: Sequence[SweepStore], *, by: str | None = None) -> "pandas.DataFrame":
    """Returns a `results_table` of one or several sweeps.

    Of several, trials are named SWEEP/TRIAL, one that two of them share counts once, baselines are
    those of the first that has them, and the best are those of all together; of several objectives
    each sweep keeps its own.

    Args:
        sweeps: of one model, evaluation and recipe.
        by: a field in which they may differ; a sweep that does not vary it says its own value.

    Raises:
        SpecError: they differ in another field.
    """
    import pandas as pd

    if len(sweeps) == 1:
        return results_table(sweeps[0])
    columns = ["trial", "key", "role", "model", "metric", "point"]
    trials = {sweep: sweep.trials(columns) for sweep in sweeps}
    check_alike({sweep: of_search(rows) for sweep, rows in trials.items()}, by=by)
    frames, abouts, seen = [], [], set[str]()
    for sweep, rows in trials.items():
        frame = results_table(sweep)
        abouts.append(frame.attrs["about"])
        searched = frame["role"] != "baseline"
        key = frame["trial"].map(dict(zip(rows["trial"], rows["key"], strict=True)))
        key = key.where(searched, frame["trial"])
        own = recipe(sweep.spec()).get(by or "")
        if own is not None:
            options = frame["options"].astype(str)
            varies = options.str.contains(f"{by}=", regex=False)
            fixed = (f"{by}={own} " + options).str.strip()
            frame["options"] = options.where(varies | ~searched, fixed)
        frame["trial"] = frame["trial"].where(
            ~searched, f"{sweep.name}/" + frame["trial"].astype(str)
        )
        frames.append(frame[~key.isin(seen)])
        seen.update(key.dropna())
    joined = pd.concat(frames)
    order = (joined["role"] != "baseline").to_numpy().argsort(kind="stable")
    joined = joined.iloc[order].reset_index(drop=True)
    about = _about(abouts)
    if not about.several_objectives:
        joined["best"] = is_best(joined)
    joined.attrs["about"] = about
    return joined


def _about(all_of_them: Sequence[About]) -> About:
    def known(field: str) -> Any:
        return next((v for one in all_of_them if (v := getattr(one, field)) is not None), None)

    methods = dict.fromkeys(one.methods for one in all_of_them if one.methods)
    return replace(
        all_of_them[0],
        sweep=" + ".join(one.sweep for one in all_of_them),
        methods=" or ".join(methods) or None,
        **{
            field: known(field)
            for field in About.__dataclass_fields__
            if field not in ("sweep", "methods", "dense_standard_error")
        },
    )


def owner(sweeps: Sequence[SweepStore], trial: str) -> tuple[SweepStore, str]:
    """Returns which sweep a trial of `results_of` is of, and its name there."""
    name, slash, own = trial.partition("/")
    found = {sweep.name: sweep for sweep in sweeps}
    return (found[name], own) if slash else (sweeps[0], trial)
