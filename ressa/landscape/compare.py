"""Two trials, or two sweeps allocation by allocation, paired by the questions both answered."""

from collections.abc import Collection, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ressa.errors import NotFoundError, SpecError, did_you_mean
from ressa.landscape.allocations import of_search, runs_and_rest
from ressa.landscape.items import Items, read_items
from ressa.landscape.significance import LEAST_SEEDS, allocations, holm, same_checkpoints
from ressa.landscape.tables import results_table
from ressa.store import SUCCESSFUL, Store, SweepStore

if TYPE_CHECKING:
    import pandas

_READ = ["trial", "role", "state", "reused_trial", "metric", "score_repaired"]
_NEAR = 0.0005
"""How far apart two sweeps may ask for one allocation, in each tower: what is 19661/49152 in one,
to lie on its line, is 0.4 in the other."""

_Target: TypeAlias = Fraction | str | None
"""A share, a pattern, or nothing where both towers have one sparsity."""
_Asked: TypeAlias = tuple[_Target, _Target, float | None, str]
"""An allocation: vision, language, the sparsity of both, and what else was chosen."""


def compare(store: Store, one: str, other: str, *, confidence: float) -> list[dict[str, Any]]:
    """Compares two trials, or each allocation that two sweeps share; one row each.

    Two trials are compared as the checkpoints that they are: paired bootstrap over pictures, or
    McNemar's test where it applies. Allocations with three or more runs of the same number in both
    sweeps are compared over seeds and pictures. p is also given adjusted for all rows, by Holm.

    Args:
        store: where they are.
        one: a sweep, or a trial as SWEEP/TRIAL.
        other: likewise.
        confidence: of the two-sided intervals.

    Raises:
        NotFoundError: there is no such sweep or trial, or none in common.
        SpecError: a sweep and a trial, or twice the same; or scores cannot be paired by items.
    """
    (sweep, trial), (other_sweep, other_trial) = _named(store, one), _named(store, other)
    if (trial is None) != (other_trial is None):
        raise SpecError("compare two sweeps or two trials, such as quickstart/t000.")
    if one == other:
        raise SpecError(f"{one} is compared with itself: name two sweeps, or two trials.")
    if trial is not None and other_trial is not None:
        pairs: list[Any] = [([(sweep.name, trial)], [(other_sweep.name, other_trial)], {})]
        chosen = {sweep: [trial]}
        chosen.setdefault(other_sweep, []).append(other_trial)
    else:
        pairs = _pairs(sweep, other_sweep)
        chosen = {}
        for at, where in enumerate((sweep, other_sweep)):
            named = [name for pair in pairs for _, name in pair[at]]
            chosen.setdefault(where, []).extend(named)
    trials = {where: _rows(where, set(names)) for where, names in chosen.items()}
    items = read_items(trials)
    rows = [
        {"one": _names(ours), "other": _names(theirs), **about}
        | _compared(items, ours, theirs, confidence)
        for ours, theirs, about in pairs
    ]
    adjusted = holm([row["p_value"] for row in rows])
    return [row | {"p_holm": p} for row, p in zip(rows, adjusted, strict=True)]


def _compared(items: Items, ours: Any, theirs: Any, confidence: float) -> dict[str, Any]:
    """Compares runs of two allocations, or two runs; in points."""
    said = items.of([*ours, *theirs]).said
    first, second = said[: len(ours)], said[len(ours) :]
    if len(ours) >= LEAST_SEEDS:
        spread = allocations(first, second)
        level = (1 + confidence) / 2
        return {
            "score_one": first.mean(),
            "score_other": second.mean(),
            "difference_points": 100 * spread.value,
            "low_points": 100 * spread.low(level),
            "high_points": 100 * spread.high(level),
            "p_value": min(1.0, 2 * min(spread.p_above(0.0), spread.p_below(0.0))),
            "test": "seeds and pictures",
            "pictures": spread.pictures,
            "runs": len(ours),
        }
    found = same_checkpoints(items, ours[0], theirs[0], confidence=confidence)
    return {
        "score_one": first[0].mean(),
        "score_other": second[0].mean(),
        "difference_points": 100 * found.value,
        "low_points": 100 * found.low,
        "high_points": 100 * found.high,
        "p_value": found.p_value,
        "test": found.test,
        "pictures": found.pictures,
        "runs": 1,
    }


def _named(store: Store, text: str) -> tuple[SweepStore, str | None]:
    name, slash, trial = text.partition("/")
    if not slash and ":" in name and not store.has_sweep(name):
        raise NotFoundError(f"{text}: a trial is SWEEP/TRIAL, {name.replace(':', '/', 1)}.")
    return store.sweep(name), trial if slash else None


def _names(runs: "list[tuple[str, str]]") -> str:
    rest = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
    return f"{runs[0][0]}/{runs[0][1]}{rest}"


def _rows(sweep: SweepStore, names: set[str]) -> "pandas.DataFrame":
    trials = sweep.trials(_READ)
    known = trials["trial"].tolist()
    for name in sorted(names - set(known)):
        hint = did_you_mean(name, known)
        raise NotFoundError(f"sweep {sweep.name!r} has no trial {name!r} that ended.{hint}")
    found = trials[trials["trial"].isin(names)]
    for row in found[~found["state"].isin(SUCCESSFUL)].to_dict("records"):
        raise NotFoundError(f"{sweep.name}/{row['trial']} came to no result: it is {row['state']}.")
    return found


def _pairs(one: SweepStore, other: SweepStore) -> list[Any]:
    """The allocations that two sweeps share, with the runs of each that have the same number."""
    ours, theirs = _allocations(one), _allocations(other)
    same = matched(ours, theirs)
    pairs = []
    for key in filter(same.__contains__, ours):
        runs, others = ours[key], theirs[same[key]]
        common = [number for number in runs if number in others]
        if common:
            vision, language, shared, options = key
            about: dict[str, Any] = {"vision": _said(vision), "language": _said(language)}
            about["options"] = options
            if shared is not None:
                about["sparsity"] = shared
            mine = [(one.name, runs[number]) for number in common]
            pairs.append((mine, [(other.name, others[number]) for number in common], about))
    if not pairs:
        raise NotFoundError(f"{one.name} and {other.name} have no allocation in common.")
    return pairs


def matched(ours: Collection[_Asked], theirs: Collection[_Asked]) -> dict[_Asked, _Asked]:
    """Says which allocation of one sweep is which of another's.

    The very same one, if there is; else the nearest that asks for almost the same. None is taken
    twice.
    """
    found = {asked: asked for asked in ours if asked in theirs}
    alike: dict[Any, list[_Asked]] = {}
    for asked in theirs:
        if asked not in found:
            alike.setdefault(_kind(asked), []).append(asked)
    shares = {kind: np.array([_shares(one) for one in some]) for kind, some in alike.items()}
    near = []
    for asked in ours:
        kind = _kind(asked)
        if asked in found or kind not in alike:
            continue
        apart = np.abs(shares[kind] - _shares(asked)).max(axis=1)
        near += [(apart[at], asked, alike[kind][at]) for at in np.flatnonzero(apart <= _NEAR)]
    taken = set[_Asked]()
    for _, asked, other in sorted(near, key=lambda pair: pair[0]):
        if asked not in found and other not in taken:
            found[asked] = other
            taken.add(other)
    return found


def _kind(asked: _Asked) -> Any:
    """What has to be the same: an allocation without its shares."""
    return tuple("share" if isinstance(part, Fraction) else part for part in asked)


def _shares(asked: _Asked) -> list[float]:
    return [float(part) if isinstance(part, Fraction) else 0.0 for part in asked[:2]]


def _allocations(sweep: SweepStore) -> Mapping[_Asked, dict[str, str]]:
    """Trials that came to a result, by allocation and number of the run."""
    searched = of_search(results_table(sweep))
    found: dict[_Asked, dict[str, str]] = {}
    for row in searched[searched["state"].isin(SUCCESSFUL)].to_dict("records"):
        number, options = runs_and_rest(row["options"])
        shared = None if isinstance(row["vision"], str) else row["budget"]  # by both towers
        key = (asked(row["vision"]), asked(row["language"]), shared, options)
        found.setdefault(key, {})[number] = row["trial"]
    return found


def asked(target: Any) -> _Target:
    """Reads a target of a table's row."""
    if not isinstance(target, str):
        return None
    return target if ":" in target else Fraction(target)


def _said(target: _Target) -> str | None:
    return f"{float(target):.3f}" if isinstance(target, Fraction) else target
