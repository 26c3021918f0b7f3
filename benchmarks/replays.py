"""How many trials it takes to find the best split of each line: searches of a recorded sweep.

The sweep holds every split of its lines, each with several runs. A replay draws one run of each: in
the first replays all of one seed, as a sweep without `replicates` would have it, in the others each
by itself. What is best is told by the mean over all runs; the *true regret* of a line is how far
the split that a search would name lies below it. Counted are trials until that is at most one point
for the first time, whether or not `search.stop_when` would have ended the search before.

grid (in the order of the sweep file), random and tpe search each line by itself and name the split
with the highest score; tpe begins to learn with its seventh trial. map searches all lines at once
and names, of those that ran, the split whose expected score is highest. Proposals come from
`ressa.sweep.mapped.proposer`, as in a sweep, with one trial at a time and the default window.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.verdicts import rate
from ressa.landscape.observed import mapped_trials
from ressa.landscape.surrogate import LEAST_CELLS, Observed, fit
from ressa.search import Seen
from ressa.spec import SweepSpec
from ressa.store import SweepStore
from ressa.sweep.driver import current_spec
from ressa.sweep.mapped import Lines, proposer
from ressa.sweep.plan import SweepPlan, make_plan

Floats = NDArray[np.float64]
Place = tuple[float, float]

POINTS, SAMPLERS = 1.0, ("grid", "random", "tpe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A sweep of lines, every split with several runs."""

    plan: SweepPlan
    """Of one run a split."""
    scores: Mapping[Place, Floats]
    """[run]."""
    line: Mapping[Place, float]

    def regret(self, place: Place) -> float:
        """How far a split's mean lies below that of the best of its line."""
        best = max(self.scores[p].mean() for p, b in self.line.items() if b == self.line[place])
        return float(best - self.scores[place].mean())


def print_replays(sweep: SweepStore, draws: int) -> None:
    """Prints how many trials each search takes, line by line and over all."""
    recorded = _read(sweep)
    lines = sorted(set(recorded.line.values()))
    size = {line: sum(one == line for one in recorded.line.values()) for line in lines}
    taken: dict[str, list[list[int]]] = {name: [] for name in (*SAMPLERS, "map")}
    totals, stops, settled = list[int](), list[int](), list[bool]()
    for number in range(draws):
        drawn = _drawn(recorded, number)
        for sampler in SAMPLERS:
            taken[sampler].append([_alone(recorded, drawn, sampler, b, number) for b in lines])
        on_lines, total, stop, regrets = _mapped(recorded, drawn, number, lines)
        taken["map"].append(on_lines)
        totals.append(total)
        if stop is not None:
            stops.append(stop)
            settled += [regret <= POINTS / 100 for regret in regrets]
    print(
        f"{sweep.name}: {draws} replays; trials until the true regret is ≤ {POINTS:g} point, "
        "median (90 % of replays)\n"
    )
    print("| line | splits | grid | random | tpe | map | map in a third of the splits |")
    print("|---|---|---|---|---|---|---|")
    for at, line in enumerate(lines):
        columns = {name: [one[at] for one in found] for name, found in taken.items()}
        words = " | ".join(_told(column) for column in columns.values())
        third = sum(count <= size[line] / 3 for count in columns["map"])
        print(f"| {line:g} | {size[line]} | {words} | {rate(third, draws)} |")
    sums = {name: [sum(one) for one in found] for name, found in taken.items() if name != "map"}
    words = " | ".join(_told(column) for column in (*sums.values(), totals))
    whole = len(recorded.line)
    third = sum(count <= whole / 3 for count in totals)
    print(f"| all | {whole} | {words} | {rate(third, draws)} |")
    print(
        f"\nstop_when ended {len(stops)} of {draws} replays, after {_told(stops)} of {whole} "
        f"trials; the true regret was ≤ {POINTS:g} point on {rate(sum(settled), len(settled))} of "
        "lines"
    )


def _read(sweep: SweepStore) -> Recorded:
    rows = mapped_trials([sweep])[sweep]
    spec = current_spec(sweep)
    scores: dict[Place, list[float]] = {}
    line: dict[Place, float] = {}
    plan = make_plan(_changed(spec, stop_when={}), reads_data=False)
    for row in rows.to_dict("records"):
        place = (round(row["vision"], 4), round(row["language"], 4))
        scores.setdefault(place, []).append(row["score"])
        line[place] = float(row["budget"])
    runs = min(map(len, scores.values()))
    return Recorded(
        plan=plan, scores={p: np.array(found[:runs]) for p, found in scores.items()}, line=line
    )


def _changed(spec: SweepSpec, *, budget: Any = None, **search: Any) -> SweepSpec:
    content = spec.model_dump()
    content["replicates"] = 1
    content["budget"] = budget or content["budget"]
    content["search"] |= {"trials": 10_000, "window": 2} | search
    return SweepSpec.model_validate(content)


def _drawn(recorded: Recorded, number: int) -> Callable[[Place], float]:
    """One run of each split."""
    draw = np.random.default_rng(number)
    places = sorted(recorded.scores)
    runs = len(recorded.scores[places[0]])
    chosen = [number] * len(places) if number < runs else draw.integers(0, runs, len(places))
    found = {p: float(recorded.scores[p][run]) for p, run in zip(places, chosen, strict=True)}
    return found.__getitem__


def _search(
    plan: SweepPlan, drawn: Callable[[Place], float]
) -> Iterator[tuple[list[Place], list[Seen]]]:
    """Yields what ran after each trial, until the space is spent."""
    proposing, window = proposer(plan), plan.spec.search.window
    places, seen = list[Place](), list[Seen]()
    while True:
        number = len(seen)
        visible = [
            one if n <= number - window else replace(one, values=None) for n, one in enumerate(seen)
        ]
        proposal = proposing.propose(number, visible)
        if proposal is None:
            return
        trial = plan.trial(proposal.point)
        place = tuple(round(float(t.target.sparsity), 4) for t in (trial.vision, trial.language))
        places.append((place[0], place[1]))
        seen.append(Seen(point=proposal.point, values=(drawn(places[-1]),)))
        yield places, seen


def _alone(
    recorded: Recorded, drawn: Callable[[Place], float], sampler: str, line: float, seed: int
) -> int:
    """Trials that a sampler takes on one line; those of the whole line if it never gets there."""
    spec = recorded.plan.spec
    budget = tuple(b for b in spec.budget or () if float(b) == line)
    plan = replace(recorded.plan, spec=_changed(spec, sampler=sampler, seed=seed, budget=budget))
    places: Sequence[Place] = ()
    for places, _ in _search(plan, drawn):
        if recorded.regret(max(places, key=drawn)) <= POINTS / 100:
            break
    return len(places)


def _mapped(
    recorded: Recorded, drawn: Callable[[Place], float], seed: int, lines: Sequence[float]
) -> tuple[list[int], int, int | None, list[float]]:
    """Of each line, its trials until it is found; of all, theirs; where it stops, with regrets."""
    spec = _changed(recorded.plan.spec, sampler="map", seed=seed, stop_when={})
    plan = replace(recorded.plan, spec=spec)
    rule, stop, at_stop = Lines(plan), None, list[float]()
    taken: dict[float, int] = {}
    total = len(recorded.line)
    for places, seen in _search(plan, drawn):
        best = _named(places, drawn, recorded.line)
        regrets = {line: recorded.regret(place) for line, place in best.items()}
        good = [line for line, regret in regrets.items() if regret <= POINTS / 100]
        for line in good:
            taken.setdefault(line, sum(recorded.line[p] == line for p in places))
        if len(good) == len(lines):
            total = min(total, len(places))
        if stop is None and rule.decide(seen) is not None:
            stop, at_stop = len(places), [regrets[line] for line in lines]
        if stop is not None and len(taken) == len(lines) and total < len(recorded.line):
            break
    return _counts(recorded, taken, lines), total, stop, at_stop


def _counts(recorded: Recorded, taken: Mapping[float, int], lines: Sequence[float]) -> list[int]:
    """Those of the whole line where it was never found."""
    whole = {line: sum(one == line for one in recorded.line.values()) for line in lines}
    return [taken.get(line, whole[line]) for line in lines]


def _named(
    places: Sequence[Place], drawn: Callable[[Place], float], line: Mapping[Place, float]
) -> dict[float, Place]:
    """The best split of each line that ran, by what is expected of it."""
    vision, language = np.array(places).T
    score = np.array([drawn(place) for place in places])
    if len(places) >= LEAST_CELLS:
        score = (
            fit(Observed(vision=vision, language=language, score=score))
            .predict(vision, language)
            .mean
        )
    found: dict[float, tuple[float, Place]] = {}
    for place, value in zip(places, score, strict=True):
        here = found.get(line[place])
        if here is None or value > here[0]:
            found[line[place]] = (float(value), place)
    return {one: place for one, (_, place) in found.items()}


def _told(counts: Sequence[int]) -> str:
    if not counts:
        return ""
    return f"{np.median(counts):g} ({np.quantile(counts, 0.9, method='higher'):g})"
