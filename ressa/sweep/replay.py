"""What another sampler would have cost: a search over the trials that a sweep has recorded.

Nothing runs. Every proposal is answered from the store, and sees the results of the trials before
its window, as in the sweep itself.

What counts is what the search would name, not the luckiest run it saw. After each trial it would
name, of each line, the allocation of the highest mean over the runs that it has seen. The *regret*
of the line is how far that allocation lies below the line's best, both by the mean over all
recorded runs; that of the search is the mean over lines. A budget is a line; a sweep without
budgets is one. With a single run of each allocation the runs that choose are those that judge, and
the regret is too small. It may rise again: a lucky run makes the search name a worse allocation.

docs/map.md measures `sampler: map` by the same regret, with searches that see one run of each
allocation and are judged by all five.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import pandas

from ressa.errors import NotFoundError, SpecError
from ressa.landscape.allocations import RACING, allocations, renamed
from ressa.search import Proposer, Seen
from ressa.search.cube import distance
from ressa.spec import Point, SweepSpec
from ressa.spec.check import unmapped
from ressa.store import SUCCESSFUL, is_null
from ressa.sweep import rows
from ressa.sweep.mapped import proposer as proposer_of
from ressa.sweep.plan import SweepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One trial of the search that might have been."""

    number: int
    trial: str
    """The recorded trial that answers."""
    exact: bool
    """Whether it is the point that was proposed; else it is the nearest recorded one."""
    budget: float | None
    """Its line."""
    score: float
    allocations: int
    """How many were tried so far."""
    regrets: Mapping[float | None, float]
    """Of each line that has a trial, as a fraction."""
    regret: float | None
    """Mean over the lines; None as long as one has no trial."""
    hours: float
    """Wall time of the trials so far, as they were recorded."""

    def to_row(self) -> dict[str, Any]:
        """Returns it as a row; with budgets, a column for the regret of each."""
        row = {name: getattr(self, name) for name in self.__dataclass_fields__}
        regrets = row.pop("regrets")
        return row | {
            f"regret_{line:g}": regret for line, regret in regrets.items() if line is not None
        }


@dataclass(frozen=True)
class _Recorded:
    trial: str
    point: Point
    score: float
    hours: float
    values: tuple[float, ...]
    budget: float | None
    allocation: int
    """Number of it: its runs have the same one."""


def replay(
    plan: SweepPlan,
    trials: Sequence[Mapping[str, Any]],
    *,
    sampler: str,
    count: int | None = None,
    seed: int | None = None,
    nearest: bool = False,
    moved: Callable[[int], None] = lambda done: None,
) -> list[Replayed]:
    """Lets a sampler search the recorded trials of a sweep.

    Args:
        plan: the sweep's.
        trials: rows of its table `trials`.
        sampler: grid, random, qmc, tpe, gp, nsga2 or map.
        count: how many trials it may spend; None: as many as are recorded.
        seed: of the proposals; None takes the sweep's own.
        nearest: lets the nearest recorded point that is left answer for one that is not recorded.
        moved: is told how many trials were proposed.

    Raises:
        SpecError: a point that may be proposed is not recorded, and `nearest` is not asked for; or
            the sampler cannot search this space.
        NotFoundError: no trial is recorded.
    """
    recorded = _recorded(plan, trials)
    if not recorded:
        raise NotFoundError(f"sweep {plan.spec.name!r} has no trial with a result to search in.")
    spec = _with_sampler(plan.spec, sampler, seed)
    proposer = proposer_of(replace(plan, spec=spec))
    if not nearest:
        _check_complete(plan, proposer, recorded)
    left, found, points = dict(recorded), list[_Recorded](), list[tuple[Point, str]]()
    exact: list[bool] = []
    while left and len(found) < (count or len(recorded)):
        number = len(found)
        seen = [
            Seen(
                point=point,
                values=found[n].values if n <= number - spec.search.window else None,
                system_attrs=notes,
            )
            for n, (point, notes) in enumerate(points)
        ]
        proposal = proposer.propose(number, seen)
        if proposal is None:
            break
        key = plan.key_of(proposal.point)
        exact.append(key in recorded)
        if key not in recorded:
            axes = spec.dimensions
            key = min(left, key=lambda k: distance(axes, proposal.point, left[k].point))
        left.pop(key, None)
        found.append(recorded[key])
        points.append((recorded[key].point, proposal.system_attrs))
        moved(len(found))
    return _counted(found, exact, [*recorded.values()])


def itself(plan: SweepPlan, trials: Sequence[Mapping[str, Any]]) -> list[Replayed]:
    """Returns the sweep's own search, counted in the same way."""
    recorded = [*_recorded(plan, trials).values()]
    return _counted(recorded, [True] * len(recorded), recorded)


def _recorded(plan: SweepPlan, trials: Sequence[Mapping[str, Any]]) -> dict[str, _Recorded]:
    """The trials of the search that came to a result, each key once."""
    found: dict[str, _Recorded] = {}
    numbers = allocations(renamed(pandas.DataFrame(trials, columns=RACING)))
    for row, allocation in zip(trials, numbers, strict=True):
        if row["role"] != "search" or row["state"] not in SUCCESSFUL:
            continue
        values = rows.objectives(row, plan)
        if values is None:
            continue
        point = json.loads(row["point"])
        hours = 0.0 if is_null(row["total_seconds"]) else float(row["total_seconds"]) / 3600
        budget = row.get("budget")
        one = _Recorded(
            row["trial"],
            point,
            float(row["score"]),
            hours,
            values,
            None if budget is None or is_null(budget) else float(budget),
            allocation,
        )
        found.setdefault(plan.key_of(point), one)
    return found


def _with_sampler(spec: SweepSpec, sampler: str, seed: int | None) -> SweepSpec:
    endless = [axis.name for axis in spec.dimensions if axis.size is None]
    if sampler == "grid" and endless:
        raise SpecError(f"grid needs a step or choices for {', '.join(endless)}; take another one.")
    reason = unmapped(spec) if sampler == "map" else None
    if reason is not None:
        raise SpecError(f"--sampler map: {reason}")
    search = {"sampler": sampler} | ({} if seed is None else {"seed": seed})
    return spec.model_copy(update={"search": spec.search.model_copy(update=search)})


def _check_complete(plan: SweepPlan, proposer: Proposer, recorded: Mapping[str, _Recorded]) -> None:
    name = plan.spec.name
    if proposer.trials is None:
        raise SpecError(
            f"the space of {name} is continuous: a sampler proposes points that no trial recorded. "
            "--nearest lets the nearest recorded point answer."
        )
    missing = proposer.trials - recorded.keys()
    if missing:
        raise SpecError(
            f"{len(missing)} of the {len(proposer.trials)} distinct trials of {name}'s space have "
            "no recorded result. Run them (search.sampler grid visits every point), or take "
            "--nearest, which lets the nearest recorded point answer."
        )


def _counted(
    found: Sequence[_Recorded], exact: Sequence[bool], recorded: Sequence[_Recorded]
) -> list[Replayed]:
    true = _means(recorded)
    best: dict[float | None, float] = {}
    for one in recorded:
        best[one.budget] = max(best.get(one.budget, -math.inf), true[one.allocation])
    counted: list[Replayed] = []
    seen: dict[float | None, dict[int, list[float]]] = {line: {} for line in best}
    spent, hours = set[str](), 0.0
    regrets: dict[float | None, float] = {}
    for number, (one, is_exact) in enumerate(zip(found, exact, strict=True)):
        of_line = seen[one.budget]
        if one.trial not in spent:
            spent.add(one.trial)
            hours += one.hours
            of_line.setdefault(one.allocation, []).append(one.score)
        named = max(of_line, key=lambda allocation: fmean(of_line[allocation]))
        regrets[one.budget] = best[one.budget] - true[named]
        counted.append(
            Replayed(
                number=number,
                trial=one.trial,
                exact=is_exact,
                budget=one.budget,
                score=one.score,
                allocations=sum(map(len, seen.values())),
                regrets={line: regrets[line] for line in best if line in regrets},
                regret=fmean(regrets.values()) if len(regrets) == len(best) else None,
                hours=hours,
            )
        )
    return counted


def _means(recorded: Sequence[_Recorded]) -> dict[int, float]:
    """The mean score of each allocation."""
    scores: dict[int, list[float]] = {}
    for one in recorded:
        scores.setdefault(one.allocation, []).append(one.score)
    return {allocation: fmean(found) for allocation, found in scores.items()}


def summary(
    sampler: str, found: Sequence[Replayed], own: Sequence[Replayed], *, margin: float
) -> list[dict[str, Any]]:
    """Returns a row a line: when a search and the sweep itself had found its best, for a terminal.

    That is with the trial after which the regret is at most the margin for the first time; on all
    lines, after which that of each is.

    Args:
        sampler: what searched.
        found: its search.
        own: the sweep's, from `itself`.
        margin: in points.
    """
    lines: list[float | None] = [*own[-1].regrets]
    named: list[tuple[str, list[float | None]]] = [
        (f"{line:g}", [line]) for line in sorted(one for one in lines if one is not None)
    ]
    if len(lines) != 1 or not named:
        named.append(("all", lines))
    rows_of = []
    for name, wanted in named:
        row: dict[str, Any] = {"line": name}
        for who, counted in ((sampler, found), ("the sweep", own)):
            first = next((one for one in counted if _settled(one, wanted, margin)), None)
            row[who] = "–" if first is None else f"{first.number + 1} trials"
            row[f"{who} time"] = "" if first is None else duration(first.hours)
        at_end = [found[-1].regrets[line] for line in wanted if line in found[-1].regrets]
        row["regret at the end"] = f"{100 * fmean(at_end):.1f}" if at_end else "–"
        rows_of.append(row)
    return rows_of


def _settled(one: Replayed, lines: Sequence[float | None], margin: float) -> bool:
    return all(one.regrets.get(line, math.inf) <= margin / 100 for line in lines)


def duration(hours: float) -> str:
    """Writes a time with its unit: 12 s, 3.5 min, 1.2 h."""
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.1f} min" if hours < 1 else f"{hours:.1f} h"


def told(sampler: str, found: Sequence[Replayed], own: Sequence[Replayed], margin: float) -> str:
    """Says in words what the columns of `summary` are, and what was counted."""
    guessed = sum(not one.exact for one in found)
    near = f", {guessed} of them answered by the nearest recorded point" if guessed else ""
    return (
        f"{sampler} and the sweep itself: with which trial, and after how long, the split that a "
        f"search would name lies at most {margin:g} point{'' if margin == 1 else 's'} below the "
        f"best of its line, by the mean over runs. {sampler}: {len(found)} trials{near}, "
        f"{duration(found[-1].hours)}; the sweep: {len(own)}, {duration(own[-1].hours)}. "
        "-o csv writes trial by trial."
    )
