"""How often tests and verdicts claim what is not so: `python -m benchmarks.verdicts [STORE]`.

Simulated: questions are right with probability sigmoid(θ + effects of picture, of allocation and
picture, of seed, of seed and picture), all normal; five questions a picture, both the pictures and
the seeds new in every pair. Allocations of one kind are exchangeable, so that on average no one is
better; two of different spread are brought to one mean by integration over their effects.

Recorded, with STORE: it holds sweeps/verdicts; runs of one allocation are dealt to two sides at
random, again and again, so that pairs share runs.

Prints the tables of docs/verdicts.md. Rates come with Wilson's 95 % interval.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import t as student

from ressa.landscape import Allocated, judge
from ressa.landscape.items import Items, read_items
from ressa.landscape.significance import Spread, allocations, same_checkpoints
from ressa.landscape.verdicts import EQUAL_QUESTION, LANGUAGE_QUESTION
from ressa.store import open_store

Floats = NDArray[np.float64]

PAIRS, SWEEPS, QUESTIONS, LEVEL, MARGIN = 1000, 100, 5, 0.05, 1.0


@dataclass(frozen=True, slots=True)
class World:
    """How much scores vary, as standard deviations of the log-odds."""

    name: str
    seeds: tuple[float, float] = (0.15, 0.15)
    """Of the two allocations."""
    pictures: float = 1.0
    allocation_and_picture: float = 0.5
    seed_and_picture: float = 0.5
    mean: float = 0.9


WORLDS = (
    World("A/A: one allocation, other seeds", allocation_and_picture=0.0),
    World("two allocations, equally good"),
    World("seeds hardly matter", seeds=(0.02, 0.02)),
    World("seeds matter much", seeds=(0.6, 0.6)),
    World("one allocation near the cliff", seeds=(0.1, 0.8)),
    World("the same, at 97 %", seeds=(0.1, 1.2), mean=0.97),
    World("the same, at 60 %", seeds=(0.1, 1.0), mean=0.6),
    World("near the ceiling", mean=0.985),
    World("pictures differ much", allocation_and_picture=1.5),
)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdicts", description=__doc__)
    parser.add_argument(
        "store", nargs="?", type=Path, help="where the sweeps of sweeps/verdicts are"
    )
    parser.add_argument("--pairs", type=int, default=PAIRS, help="simulated pairs of each kind")
    given = parser.parse_args()
    if given.store is not None:
        _print_recorded(given.store)
        return
    _print_simulated(given.pairs)
    _print_beats(given.pairs)
    _print_verdicts()


def _print_simulated(pairs: int) -> None:
    print(f"\nFalse positives of two-sided tests at 5 %, {pairs:,} simulated pairs a row\n")
    print("| world | seeds | pictures | ours | t-interval | t over seeds | pictures alone |")
    print("|---|---|---|---|---|---|---|")
    for world in WORLDS:
        for runs, pictures in ((3, 100), (5, 400)):
            draw = np.random.default_rng((runs, pictures, WORLDS.index(world)))
            wrong = np.zeros(4)
            for one, other in _pairs(world, draw, pairs, runs, pictures):
                wrong += _claims(one, other)
            cells = " | ".join(rate(int(count), pairs) for count in wrong)
            print(f"| {world.name} | {runs} | {pictures:,} | {cells} |", flush=True)


def _claims(one: Floats, other: Floats) -> Floats:
    """Which of four tests claim that two allocations differ.

    The t-interval is Cochran and Cox's, of scores: Student's quantiles for seeds and for pictures,
    weighted by their variances.
    """
    spread = allocations(one, other)
    ours = _claims_any(spread)
    differences = one - other
    by_seed = differences.mean(axis=1)
    error = by_seed.std(ddof=1) / len(by_seed) ** 0.5
    seeds = abs(by_seed.mean()) > error * student.ppf(1 - LEVEL / 2, len(by_seed) - 1)
    runs, pictures = differences.shape
    levels = student.ppf(1 - LEVEL / 2, np.array([runs, pictures]) - 1)
    parts = np.array([spread.of_seeds, spread.of_pictures])
    both = abs(spread.value) > levels @ parts / spread.standard_error
    first = differences[0]
    reach = 1.96 * first.std(ddof=1) / pictures**0.5
    return np.array([ours, both, seeds, abs(first.mean()) > reach], float)


def _claims_any(spread: Spread) -> bool:
    return spread.low(1 - LEVEL / 2) > 0 or spread.high(1 - LEVEL / 2) < 0


def _pairs(
    world: World, draw: np.random.Generator, pairs: int, runs: int, pictures: int
) -> Iterator[tuple[Floats, Floats]]:
    """Yields what each picture says of each run of two allocations, equal on average."""
    middles = [_middle(world, seeds) for seeds in world.seeds]
    for _ in range(pairs):
        shared = draw.normal(0, world.pictures, pictures)
        one, other = (
            _said(world, draw, runs, shared, middle, seeds)
            for middle, seeds in zip(middles, world.seeds, strict=True)
        )
        yield one, other


def _said(
    world: World,
    draw: np.random.Generator,
    runs: int,
    shared: Floats,
    middle: float,
    seeds: float,
) -> Floats:
    pictures = len(shared)
    odds = (
        middle
        + shared
        + draw.normal(0, seeds, (runs, 1))
        + draw.normal(0, world.allocation_and_picture, pictures)
        + draw.normal(0, world.seed_and_picture, (runs, pictures))
    )
    return np.asarray(draw.binomial(QUESTIONS, expit(odds)) / QUESTIONS)


@cache
def _middle(world: World, seeds: float, mean: float | None = None) -> float:
    """The log-odds at which an allocation's mean score, over all effects, is the world's."""
    places, weights = np.polynomial.hermite_e.hermegauss(101)
    spread = np.sqrt(
        seeds**2 + world.pictures**2 + world.allocation_and_picture**2 + world.seed_and_picture**2
    )

    def off(middle: float) -> float:
        average = (weights * expit(middle + spread * places)).sum() / weights.sum()
        return float(average - (world.mean if mean is None else mean))

    return float(brentq(off, -20, 20))


def _print_beats(sweeps: int) -> None:
    print(
        f'\n"{LANGUAGE_QUESTION}" at 95 %, {sweeps:,} simulated sweeps a row: one line, 5 seeds, '
        "400 pictures, all equally good\n"
    )
    print("| world | that prune both | says yes or no |")
    print("|---|---|---|")
    for world in WORLDS:
        for others in (1, 2):
            draw = np.random.default_rng((others, WORLDS.index(world)))
            wrong = 0
            for _ in range(sweeps):
                (verdict,) = judge(_level_line(world, draw, others), margin=MARGIN, confidence=0.95)
                wrong += verdict.answer != "not decided"
            print(f"| {world.name} | {others} | {rate(wrong, sweeps)} |", flush=True)


def _level_line(world: World, draw: np.random.Generator, others: int) -> list[Allocated]:
    """Language alone and allocations that prune both, of one mean."""
    alone, both = world.seeds
    shared = draw.normal(0, world.pictures, 400)
    found = []
    for at, seeds in enumerate([alone] + [both] * others):
        said = _said(world, draw, 5, shared, _middle(world, seeds), seeds)
        found.append(_allocation(0.5, at / 10, 0.9 - at / 10, said))
    return found


def _print_verdicts() -> None:
    print(f"\nVerdicts at 95 %, margin {MARGIN:g} point, {SWEEPS} simulated sweeps a row\n")
    print("| what is so | seeds | pictures | wrong verdicts in a sweep | decided rightly |")
    print("|---|---|---|---|---|")
    edge = MARGIN / 100
    truths = {
        "three lines, four equally good allocations each: near-optimal": (0.0, 0.0, 0.0),
        "three lines, the best just the margin above the equal split": (edge * 1.0001, 0.0, 0.0),
        "three lines, three of four just the margin above it": (edge * 1.0001,) * 3,
        "three lines, one of four 3 points above it": (0.03, 0.0, 0.0),
    }
    for name, gains in truths.items():
        right = "yes" if max(gains) <= edge else "no"
        for runs, pictures in ((3, 1000), (5, 1000)):
            draw = np.random.default_rng((runs, pictures, len(gains), int(1e6 * sum(gains))))
            wrong, decided = 0, 0.0
            for _ in range(SWEEPS):
                verdicts = judge(
                    _sweep(draw, runs, pictures, gains), margin=MARGIN, confidence=0.95
                )
                answers = [v.answer for v in verdicts if v.question == EQUAL_QUESTION]
                wrong += any(answer not in (right, "not decided") for answer in answers)
                decided += sum(answer == right for answer in answers) / len(answers)
            count = SWEEPS
            print(
                f"| {name} | {runs} | {pictures:,} | {rate(wrong, count)} | "
                f"{100 * decided / count:.0f} % |",
                flush=True,
            )


def _sweep(
    draw: np.random.Generator, runs: int, pictures: int, gains: tuple[float, ...]
) -> list[Allocated]:
    """Three lines; on each an equal split and others that are better by so much."""
    world = World("", mean=0.95)
    shared = draw.normal(0, world.pictures, pictures)
    found = []
    for line in (0.4, 0.5, 0.6):
        for at, gain in enumerate((0.0, *gains)):
            middle = _middle(world, world.seeds[0], round(world.mean + gain, 7))
            said = _said(world, draw, runs, shared, middle, world.seeds[0])
            found.append(_allocation(line, line - at / 20, line, said))
    return found


def _allocation(line: float, vision: float, language: float, said: Floats) -> Allocated:
    seeds = [("s", str(run)) for run in range(len(said))]
    return Allocated(
        line=line,
        name=f"{100 * vision:.0f}:{100 * language:.0f}",
        vision=vision,
        language=language,
        runs=dict.fromkeys(seeds, ("s", "t")),
        said=dict(zip(seeds, said, strict=True)),
    )


def _print_recorded(folder: Path) -> None:
    store = open_store(folder)
    print("\nRecorded runs of one allocation, dealt to two sides at random\n")
    print("| allocation | state | runs | test | pairs | claims a difference |")
    print("|---|---|---|---|---|---|")
    for name in store.sweeps():
        sweep = store.sweep(name)
        trials = sweep.trials()
        trials = trials[(trials["role"] == "search") & (trials["state"] == "succeeded")]
        for (vision, _), rows in trials.groupby(["vision_target", "language_target"]):
            if len(rows) < 10:
                continue
            split = f"{name} {vision}:{float(rows['language_sparsity'].iloc[0]):.2f}"
            is_repaired = rows["score_repaired"].notna().all()
            for state in ("pruned", "repaired") if is_repaired else ("pruned",):
                items = read_items({sweep: rows}, state=state)
                for test, runs, claims in _recorded(items):
                    wrong, pairs = sum(claims), len(claims)
                    print(
                        f"| {split} | {state} | {len(rows)} | {test}, {runs} against {runs} | "
                        f"{pairs} | {rate(wrong, pairs)} |",
                        flush=True,
                    )


def _recorded(items: Items) -> Iterator[tuple[str, int, list[bool]]]:
    """Yields a test, how many runs a side, and whether it claims something of each pair."""
    said, count = items.said, len(items.runs)

    def over_seeds(order: NDArray[np.int64], runs: int) -> bool:
        return _claims_any(allocations(said[order[:runs]], said[order[runs : 2 * runs]]))

    def as_they_are(order: NDArray[np.int64], runs: int) -> bool:
        one, other = items.runs[order[0]], items.runs[order[1]]
        return same_checkpoints(items, one, other).p_value <= LEVEL

    tests: tuple[
        tuple[str, Callable[[NDArray[np.int64], int], bool], tuple[int, ...], int], ...
    ] = (
        ("over seeds and pictures", over_seeds, (3, 5), 400),
        ("as checkpoints", as_they_are, (1,), 100),
    )
    for name, test, sizes, pairs in tests:
        for runs in sizes:
            if 2 * runs <= count:
                draw = np.random.default_rng(0)
                yield name, runs, [test(draw.permutation(count), runs) for _ in range(pairs)]


def rate(count: int, of: int) -> str:
    """A share in percent with Wilson's 95 % interval."""
    z = 1.96
    share = count / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    reach = z * np.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return f"{100 * share:.1f} % ({100 * (middle - reach):.1f}–{100 * (middle + reach):.1f})"


if __name__ == "__main__":
    main()
