"""`ressa confirm`: the best allocations again, with fresh seeds, on examples no search saw.

The best of noisy scores is biased upwards, more so the more were tried. So what a sweep found best
is run again as a sweep of its own, `<sweep>-confirm`, beside what it has to be better than: the
equal split, language alone and the dense model repaired alike, all with the same seeds, on the test
split. It is a sweep like any other, its points listed: it runs, stops, resumes and is asked alike.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zlib import crc32

from ressa.data import pictures_of
from ressa.errors import ConflictError, InfeasibleAllocation, NotFoundError, SpecError
from ressa.landscape.items import check_judged
from ressa.landscape.tables import LINE_COLUMNS, asked_lines
from ressa.sparsity import Target, solve_language
from ressa.spec import SweepSpec, apply_point
from ressa.spec.check import check_spec
from ressa.spec.inventory import check_inventory
from ressa.spec.space import BUDGET, REPLICATE, SPARSITIES, SPARSITY
from ressa.spec.yaml import Problem
from ressa.store import SweepStore
from ressa.sweep.driver import current_spec
from ressa.sweep.plan import SweepPlan, make_plan

SEEDS = ("prune.calibration.seed", "repair.seed", "repair.order_seed")
"""What differs from run to run of one point."""

EQUAL, LANGUAGE_ONLY, DENSE_REPAIRED = "equal split", "language only", "dense, repaired alike"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One allocation that is confirmed, and why."""

    why: str
    """Its place on its line, or which comparison it is for."""
    line: float
    """Sparsity asked over all prunable weights, to four decimals."""
    point: Mapping[str, str]
    score: float | None
    """Mean score in the sweep, over its runs, if it ran there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """What `ressa confirm` will run."""

    spec: SweepSpec
    candidates: tuple[Candidate, ...]
    left_out: tuple[str, ...]
    """Comparisons that cannot be, each with the reason."""
    seconds: float | None
    """What a trial took in the sweep, with the evaluation as long as the test split is."""


def confirmation(sweep: SweepStore, *, top: int, per_line: bool, seeds: int) -> Confirmation:
    """Works out the sweep that confirms another's best allocations.

    Args:
        sweep: that was searched.
        top: how many of its allocations, best first.
        per_line: so many on each budget line, not in all.
        seeds: runs of each, of calibration, repair and data order that the sweep did not use.

    Raises:
        SpecError: it has no trials to confirm, no lines, no test examples, or an objective that
            no verdict can be about.
    """
    spec = current_spec(sweep)
    if spec.confirms is not None:
        raise SpecError(f"{sweep.name} confirms {spec.confirms} already: confirm that one.")
    if per_line and spec.budget is None:
        raise SpecError(
            f"--per-line: {sweep.name} has no budgets, and so no lines of equal size. Leave it out."
        )
    if not spec.confirm:
        raise SpecError(
            f"{sweep.name} has no test examples: say which in the sweep file, such as confirm: "
            "[{task: easy-vqa, split: test}], with a test split in data.splits."
        )
    plan = make_plan(spec, reads_data=False)
    best = _best(sweep, plan, top=top, per_line=per_line)
    try:
        check_judged(sweep)
    except SpecError as error:
        raise SpecError(
            f"{error} There can be no verdict: for the mean over seeds and its spread, give the "
            "sweep replicates and see ressa best."
        ) from None
    compared, left_out = _compared(best, plan)
    first = _fresh(spec)
    made = _spec(spec, [one.point for one in (*best, *compared)], first=first, seeds=seeds)
    rounds = confirmations(sweep)
    made = made.model_copy(update={"name": rounds[0].name if rounds else _first_name(spec.name)})
    _check(made, plan)
    return Confirmation(
        spec=made.model_copy(update={"store": sweep.store.location}),
        candidates=(*best, *compared),
        left_out=tuple(left_out),
        seconds=_seconds(sweep, make_plan(made)),
    )


def further(sweep: SweepStore, seeds: int) -> SweepSpec:
    """Returns the sweep that gives the allocations of an earlier confirmation more seeds.

    Args:
        sweep: that was searched.
        seeds: how many more runs of each.

    Raises:
        NotFoundError: nothing of it was confirmed yet.
        ConflictError: the last confirmation is not finished.
    """
    rounds = confirmations(sweep)
    if not rounds:
        raise NotFoundError(
            f"nothing of {sweep.name} was confirmed yet: ressa confirm {sweep.name}"
        )
    last = rounds[-1]
    if last.status().state != "finished":
        raise ConflictError(
            f"{last.name} is {last.status().state}: finish it first, ressa resume {last.name}"
        )
    spec = current_spec(last)
    content = spec.model_dump()
    content["name"] = f"{rounds[0].name}-{len(rounds) + 1}"
    content["replicates"] = seeds
    _advance(content, spec.replicates)
    content["search"]["trials"] = len(spec.points or ()) * seeds
    content["store"] = sweep.store.location
    return SweepSpec.model_validate(content)


def confirmations(sweep: SweepStore) -> list[SweepStore]:
    """Returns the sweeps of the store that confirm one, in the order in which they were made."""
    found = []
    for first in dict.fromkeys((_first_name(sweep.name), _earlier_name(sweep.name))):
        for name in (first, *(f"{first}-{number}" for number in range(2, 100))):
            if not sweep.store.has_sweep(name):
                break
            one = sweep.store.sweep(name)
            if one.spec().confirms == sweep.name:
                found.append(one)
    return found


def searched(sweep: SweepStore) -> SweepStore:
    """Returns the sweep that one confirms; itself if it confirms none."""
    origin = sweep.spec().confirms
    return sweep if origin is None else sweep.store.sweep(origin)


def _first_name(name: str) -> str:
    """Names the first sweep that confirms one: a name has up to 64 characters, a number follows."""
    if len(name) > 50:
        name = f"{name[:41]}-{crc32(name.encode()):08x}"
    return f"{name}-confirm"


def _earlier_name(name: str) -> str:
    """Names it as once was done, by which long names could be taken for each other."""
    return f"{name[:50]}-confirm"


def _best(sweep: SweepStore, plan: SweepPlan, *, top: int, per_line: bool) -> tuple[Candidate, ...]:
    """The best allocations, by their mean score over all runs."""
    columns = ["role", "state", "point", "score", "vision_target", "language_target"]
    trials = sweep.trials([*columns, *LINE_COLUMNS])
    trials = trials[(trials["role"] == "search") & (trials["state"] == "succeeded")]
    if trials.empty:
        raise SpecError(f"no trial of {sweep.name} has succeeded yet: there is nothing to confirm.")
    named = trials.assign(
        point=[
            json.dumps(_point(row, plan.spec), sort_keys=True) for row in trials.to_dict("records")
        ],
        line=asked_lines(trials),
    )
    means = named.groupby(["line", "point"], sort=False)["score"].mean().reset_index()
    ranked = means.sort_values("score", ascending=False, kind="stable")
    chosen = ranked.groupby("line").head(top) if per_line else ranked.head(top)
    places: dict[float, int] = {}
    found = []
    for row in chosen.sort_values(["line", "score"], ascending=[True, False]).to_dict("records"):
        places[row["line"]] = places.get(row["line"], 0) + 1
        found.append(
            Candidate(
                why=f"number {places[row['line']]} of its line" if per_line else "among the best",
                line=row["line"],
                point=json.loads(row["point"]),
                score=row["score"],
            )
        )
    return tuple(found)


def _point(row: Mapping[str, Any], spec: SweepSpec) -> dict[str, str]:
    """A trial's point without seeds, its towers' targets spelt out."""
    point = json.loads(row["point"])
    rest = {
        name: str(value)
        for name, value in point.items()
        if name not in (BUDGET, REPLICATE, *SPARSITIES, *SEEDS)
    }
    if SPARSITY in spec.space:
        return rest
    targets = {f"{tower}_sparsity": row[f"{tower}_target"] for tower in ("vision", "language")}
    return targets | rest


def _compared(best: Sequence[Candidate], plan: SweepPlan) -> tuple[list[Candidate], list[str]]:
    """What the best allocations have to be better than, on each of their lines."""
    spec, found, left_out = plan.spec, [], []
    known = [one.point for one in best]
    for line in sorted({one.line for one in best}):
        leader = next(one for one in best if one.line == line)
        if spec.prune.group == "all" or SPARSITY in spec.space:
            left_out.append(f"on {line:g}: both towers have one sparsity, there is no split")
            continue
        size = _size(leader, plan)
        equal = [one for one in best if one.line == line and _is_equal(one, leader)]
        for why, vision in ((EQUAL, Target(size)), (LANGUAGE_ONLY, Target(Fraction(0)))):
            if why == EQUAL and equal:
                continue  # such as 2:4 in both towers
            try:
                language = solve_language(plan.inventory, size, vision)
            except InfeasibleAllocation as error:
                left_out.append(f"{why} on {line:g}: {error}")
                continue
            split = {"vision_sparsity": str(vision), "language_sparsity": str(language)}
            point = {**leader.point, **split}
            if point not in known:
                known.append(point)
                found.append(Candidate(why=why, line=line, point=point, score=None))
    if spec.repair.method != "none":  # without repair it is the dense baseline
        nothing = {name: "0" for name in (*SPARSITIES, SPARSITY) if name in best[0].point}
        leader = max(best, key=lambda one: one.score or 0.0)
        point = {**leader.point, **nothing}
        found.append(Candidate(why=DENSE_REPAIRED, line=0.0, point=point, score=None))
    return found, left_out


def _is_equal(one: Candidate, leader: Candidate) -> bool:
    """Whether it is an equal split, and alike in all else to the one it is held against."""
    split = dict.fromkeys(("vision_sparsity", "language_sparsity"))
    alike = {**one.point, **split} == {**leader.point, **split}
    return alike and one.point["vision_sparsity"] == one.point["language_sparsity"]


def _size(one: Candidate, plan: SweepPlan) -> Fraction:
    """The exact sparsity over both towers of an allocation, as its budget said it if it had one."""
    for budget in plan.spec.budget or ():
        if round(float(budget), 4) == one.line:
            return Fraction(budget)
    zeros = sum(
        Target.parse(one.point[f"{tower}_sparsity"]).sparsity * plan.inventory.prunable(tower)
        for tower in ("vision", "language")
    )
    return Fraction(zeros) / plan.inventory.prunable()


def _fresh(spec: SweepSpec) -> int:
    """By how much seeds have to be raised so that none of the sweep's comes again."""
    most = 0
    for name in SEEDS:
        own = _seed(spec, name)
        values = spec.space.get(name)
        axis = next((axis for axis in spec.dimensions if axis.name == name), None)
        if values is not None and axis is not None:
            last = axis.values[-1] if axis.choices is None and axis.values else str(axis.high)
            highest = (
                max(map(int, axis.choices)) if axis.choices is not None else int(Decimal(last))
            )
            most = max(most, highest - own)
    return most + spec.replicates


def _seed(spec: SweepSpec, name: str) -> int:
    section: Any = spec
    for part in name.split("."):
        section = getattr(section, part)
    return int(section)


def _advance(content: dict[str, Any], by: int) -> None:
    for name in SEEDS:
        *parents, last = name.split(".")
        section = content
        for part in parents:
            section = section[part]
        section[last] += by


def _spec(
    spec: SweepSpec, points: Sequence[Mapping[str, str]], *, first: int, seeds: int
) -> SweepSpec:
    """The sweep of some points with fresh seeds, on the test split."""
    content = spec.model_dump()
    names = list(dict.fromkeys(name for point in points for name in point))
    content |= {
        "confirms": spec.name,
        "points": [dict(point) for point in points],
        "space": {
            name: {"choices": list(dict.fromkeys(point[name] for point in points))}
            for name in names
        },
        "budget": None,
        "constraints": (),
        "replicates": seeds,
        "evaluate": content["confirm"],
        "baselines": ("dense",),
        "early_stopping": None,
    }
    content["search"] |= {
        "sampler": "grid",
        "trials": len(points) * seeds,
        "asynchronous": False,
        "stop_when": None,  # it decides lines of equal size, and all points are to run
    }
    _advance(content, first)
    return SweepSpec.model_validate(content)


def _check(spec: SweepSpec, plan: SweepPlan) -> None:
    """Refuses a confirmation that cannot be; what the search had too was allowed when it began."""

    def problems_of(spec: SweepSpec) -> list[Problem]:
        return [*check_spec(spec), *check_inventory(spec, plan.inventory)]

    known = problems_of(plan.spec)
    problems = [problem for problem in problems_of(spec) if problem not in known]
    if problems:
        lines = list(map(str, problems))
        raise SpecError("\n".join(lines), lines)


def check_unseen(sweep: SweepStore, plan: SweepPlan) -> None:
    """Refuses test examples whose pictures the search was scored on.

    Raises:
        SpecError: there are some.
    """
    columns = ["purpose", "task", "image_ids"]
    used = sweep.read("data", columns=columns, where={"purpose": "evaluate"}).to_pylist()

    def shown(row: Mapping[str, Any]) -> set[str]:
        return pictures_of(row["image_ids"], plan.spec.data.get(row["task"]))

    seen = {picture for row in used for picture in shown(row)}
    for row in plan.data:
        shared = seen & shown(row)
        if shared and row["purpose"] == "evaluate":
            raise SpecError(
                f"confirm: {row['task']}/{row['split']} shares {len(shared)} images with what "
                f"{sweep.name} was scored on, such as {min(shared)}. Name other slices in "
                "data.splits."
            )


def _seconds(sweep: SweepStore, plan: SweepPlan) -> float | None:
    """How long a trial will take: as in the sweep, with as many questions as are asked now."""
    columns = ["role", "state", "total_seconds", "evaluate_seconds", "items"]
    trials = sweep.trials(columns)
    trials = trials[(trials["role"] == "search") & (trials["state"] == "succeeded")]
    means = trials[columns[2:]].astype(float).mean()
    if means.isna().any():
        return None
    task = plan.objective[0]
    asked = [
        row["samples"] for row in plan.data if (row["purpose"], row["task"]) == ("evaluate", task)
    ]
    share = sum(asked) / means["items"] if asked else 1.0
    return float(means["total_seconds"] + means["evaluate_seconds"] * (share - 1))


def rows(found: Confirmation, plan: SweepPlan) -> list[dict[str, Any]]:
    """One row for each allocation that will be confirmed."""
    made = []
    for one in found.candidates:
        point = {**one.point, **({REPLICATE: "0"} if found.spec.replicates > 1 else {})}
        asked = apply_point(found.spec, plan.inventory, point).allocation
        is_equal = asked.vision == asked.language
        made.append(
            {
                "why": f"{one.why}, {EQUAL}" if is_equal and one.score is not None else one.why,
                "line": one.line,
                "vision": str(asked.vision),
                "language": str(asked.language),
                "vision_sparsity": float(asked.vision.sparsity),
                "language_sparsity": float(asked.language.sparsity),
                "score": one.score,
                "also": " ".join(
                    f"{name}={value}"
                    for name, value in one.point.items()
                    if name not in (*SPARSITIES, SPARSITY)
                ),
            }
        )
    return made
