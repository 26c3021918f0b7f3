"""What another sampler would have cost: a search over the trials that a sweep has recorded.

Nothing runs. Every proposal is answered from the store, and sees the results of the trials before
its window, as in the sweep itself.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ressa.errors import NotFoundError, SpecError
from ressa.search import Proposer, Seen
from ressa.search.cube import distance
from ressa.spec import Point, SweepSpec
from ressa.spec.check import unmapped
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
    score: float
    best: float
    """The best score so far."""
    regret: float
    """What the best recorded score is above that."""
    hours: float
    """Wall time of the trials so far, as they were recorded."""


@dataclass(frozen=True)
class _Recorded:
    trial: str
    point: Point
    score: float
    hours: float
    values: tuple[float, ...]


def replay(
    plan: SweepPlan,
    trials: Sequence[Mapping[str, Any]],
    *,
    sampler: str,
    count: int | None = None,
    seed: int | None = None,
    nearest: bool = False,
) -> list[Replayed]:
    """Lets a sampler search the recorded trials of a sweep.

    Args:
        plan: the sweep's.
        trials: rows of its table `trials`.
        sampler: grid, random, qmc, tpe, gp, nsga2 or map.
        count: how many trials it may spend; None: as many as are recorded.
        seed: of the proposals; None takes the sweep's own.
        nearest: lets the nearest recorded point that is left answer for one that is not recorded.

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
    return _counted(found, exact, max(one.score for one in recorded.values()))


def _recorded(plan: SweepPlan, trials: Sequence[Mapping[str, Any]]) -> dict[str, _Recorded]:
    """The trials of the search that came to a result, each key once."""
    found: dict[str, _Recorded] = {}
    for row in trials:
        if row["role"] != "search" or row["state"] not in rows.SUCCESSFUL:
            continue
        point = json.loads(row["point"])
        hours = 0.0 if rows.is_null(row["total_seconds"]) else float(row["total_seconds"]) / 3600
        one = _Recorded(row["trial"], point, float(row["score"]), hours, rows.objectives(row, plan))
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


def _counted(found: Sequence[_Recorded], exact: Sequence[bool], best: float) -> list[Replayed]:
    counted: list[Replayed] = []
    top, hours = float("-inf"), 0.0
    spent: set[str] = set()
    for number, (one, is_exact) in enumerate(zip(found, exact, strict=True)):
        top = max(top, one.score)
        hours += 0.0 if one.trial in spent else one.hours
        spent.add(one.trial)
        counted.append(
            Replayed(
                number=number,
                trial=one.trial,
                exact=is_exact,
                score=one.score,
                best=top,
                regret=best - top,
                hours=hours,
            )
        )
    return counted


def told(sampler: str, found: Sequence[Replayed], trials: Sequence[Mapping[str, Any]]) -> str:
    """Says in words what a replayed search came to, beside the sweep's own."""
    hours = sum(
        float(row["total_seconds"]) / 3600
        for row in trials
        if row["role"] == "search" and not rows.is_null(row["total_seconds"])
    )
    last = found[-1]
    first = next((one for one in found if one.regret <= 0), None)
    guessed = sum(not one.exact for one in found)
    near = f"; {guessed} of them answered by the nearest recorded point" if guessed else ""
    if first is None:
        return (
            f"{sampler} comes to {last.best:.4f} in {len(found)} trials{near}; the best recorded "
            f"score is {last.regret:.4f} above that."
        )
    return (
        f"{sampler} comes to the best recorded score, {first.best:.4f} ({first.trial}), with trial "
        f"{first.number + 1}, after {first.hours:.2f} h{near}. The sweep spent {hours:.2f} h."
    )
