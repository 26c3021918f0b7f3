"""How far the map can be trusted: `python -m benchmarks.map STORE [STORE…]`.

Each STORE holds sweeps of sweeps/map or of sweeps/studies. Of each model and state, before and
after repair, all trials make one map. Its allocations are dealt into ten parts; each part is
predicted by a map of the other nine, run by run. Prints the first table of docs/map.md: how many
runs lie in the 90 % intervals, with Wilson's 95 % interval. Runs of one allocation share its
prediction, so that this interval is somewhat too narrow. Allocations count as near the best by
their mean over runs: within three points of the highest on the map, or on their line of equal size.

With `--few --sweeps NAME…` the maps are of a few allocations drawn from all, each with one run, and
all runs of one seed, as a sweep without `replicates` has them; they predict the other allocations'
runs of other seeds. With `--replay SWEEP` prints how many trials searches take: see `replays.py`.
"""

import argparse
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks import replays
from benchmarks.verdicts import rate
from ressa.errors import NotFoundError
from ressa.landscape.observed import mapped_trials
from ressa.landscape.surrogate import Observed, fit
from ressa.store import SweepStore, open_store

if TYPE_CHECKING:
    import pandas

Floats = NDArray[np.float64]

PARTS, NEAR, DRAWS = 10, 0.03, 20
FEW, MAPS = (8, 12, 20, 33), 20


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Runs that a map without their allocation predicted."""

    inside: NDArray[np.bool_]
    near_best: NDArray[np.bool_]
    near_best_of_line: NDArray[np.bool_]


def main() -> None:
    """Prints the table that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.map", description=__doc__)
    parser.add_argument("stores", nargs="+", type=Path, metavar="STORE")
    parser.add_argument("--few", action="store_true", help="maps of few allocations, one seed")
    parser.add_argument("--replay", metavar="SWEEP", help="search a recorded sweep of lines again")
    parser.add_argument("--sweeps", nargs="+", default=[], help="of the first store, for --few")
    parser.add_argument("--draws", type=int, default=DRAWS, help="replays, each with other runs")
    given = parser.parse_args()
    if given.replay is not None:
        replays.print_replays(open_store(given.stores[0]).sweep(given.replay), given.draws)
        return
    if given.few:
        _print_few([open_store(given.stores[0]).sweep(name) for name in given.sweeps])
        return
    print("| trials | in the 90 % interval | near the best | near the best of its line |")
    print("|---|---|---|---|")
    for store in given.stores:
        for name, sweeps in _together(store):
            for state in ("pruned", "repaired"):
                try:
                    found = held_out(sweeps, state)
                except NotFoundError:
                    continue
                cells = [
                    _share(found.inside),
                    _share(found.inside[found.near_best]),
                    _share(found.inside[found.near_best_of_line]),
                ]
                print(f"| {name}, {state} | {' | '.join(cells)} |", flush=True)


def _together(store: Path) -> list[tuple[str, list[SweepStore]]]:
    """The sweeps of a store that lie on one map: those whose names end in one model's."""
    opened = open_store(store)
    names = sorted(opened.sweeps(), key=lambda name: (name.rpartition("-")[2], name))
    parts = groupby(names, key=lambda name: name.rpartition("-")[2])
    found = [(model, list(group)) for model, group in parts]
    return [(f"{' '.join(group)}", [opened.sweep(one) for one in group]) for _, group in found]


def held_out(sweeps: list[SweepStore], state: str) -> HeldOut:
    """Predicts every run of some sweeps by maps that did not see its allocation."""
    import pandas as pd

    trials = pd.concat(mapped_trials(sweeps, state=state).values())
    observed = _observed(trials)
    places = np.column_stack([observed.vision, observed.language]).round(6)
    cells, at = np.unique(places, axis=0, return_inverse=True)
    at = at.ravel()
    part = np.random.default_rng(0).permutation(len(cells)) % PARTS
    low, high = np.empty(len(at)), np.empty(len(at))
    for number in range(PARTS):
        away = part[at] == number
        predicted = fit(_take(observed, ~away)).predict(
            observed.vision[away], observed.language[away]
        )
        low[away], high[away] = predicted.low, predicted.high
    of_cell = (np.bincount(at, observed.score) / np.bincount(at))[at]
    size = trials["sparsity"].astype(float).round(4).to_numpy()
    on_line = pd.Series(of_cell).groupby(size).transform("max").to_numpy()
    several = pd.Series(at).groupby(size).transform("nunique").to_numpy() > 2
    score = observed.score.clip(0.02, 0.998)
    return HeldOut(
        inside=(low <= score) & (score <= high),
        near_best=of_cell >= of_cell.max() - NEAR,
        near_best_of_line=several & (of_cell >= on_line - NEAR),
    )


def _print_few(sweeps: list[SweepStore]) -> None:
    """Prints how well maps of few trials, all of one seed, predict runs of other seeds."""
    observed, at, near = _runs(sweeps)
    seed = np.array([np.sum(at[:place] == cell) for place, cell in enumerate(at)])
    print("| allocations on the map | in the 90 % interval | near the best of its line |")
    print("|---|---|---|")
    for count in FEW:
        inside, close = list[NDArray[np.bool_]](), list[NDArray[np.bool_]]()
        for number in range(MAPS):
            draw = np.random.default_rng((count, number))
            on_map = np.isin(at, draw.permutation(at.max() + 1)[:count])
            own = seed == number % (seed.max() + 1)
            away = ~on_map & ~own
            predicted = fit(_take(observed, on_map & own)).predict(
                observed.vision[away], observed.language[away]
            )
            score = observed.score[away].clip(0.02, 0.998)
            inside.append((predicted.low <= score) & (score <= predicted.high))
            close.append(near[away])
        found, best = np.concatenate(inside), np.concatenate(close)
        print(f"| {count} | {found.mean():.1%} | {found[best].mean():.1%} |", flush=True)


def _runs(sweeps: list[SweepStore]) -> tuple[Observed, NDArray[np.int64], NDArray[np.bool_]]:
    """All runs, the number of each one's allocation, and which are near the best of their line."""
    import pandas as pd

    trials = pd.concat(mapped_trials(sweeps).values())
    observed = _observed(trials)
    places = np.column_stack([observed.vision, observed.language]).round(6)
    at = np.unique(places, axis=0, return_inverse=True)[1].ravel()
    of_cell = (np.bincount(at, observed.score) / np.bincount(at))[at]
    size = trials["sparsity"].astype(float).round(4).to_numpy()
    on_line = pd.Series(of_cell).groupby(size).transform("max").to_numpy()
    return observed, at, of_cell >= on_line - NEAR


def _observed(trials: "pandas.DataFrame") -> Observed:
    """What trials scored, whichever pictures they were asked about."""
    columns = ("vision", "language", "score")
    return Observed(**{column: trials[column].to_numpy(float) for column in columns})


def _take(observed: Observed, which: NDArray[np.bool_]) -> Observed:
    return Observed(
        vision=observed.vision[which],
        language=observed.language[which],
        score=observed.score[which],
    )


def _share(inside: NDArray[np.bool_]) -> str:
    return f"{rate(int(inside.sum()), len(inside))} of {len(inside)}" if len(inside) else ""


if __name__ == "__main__":
    main()
