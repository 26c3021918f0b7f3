"""Whether two conditions rank allocations alike: before and after repair, two methods, two models.

The measure is Kendall's τ-b over pairs of allocations, (in the same order − swapped) / √(untied in
one · untied in the other), where an allocation's score is the mean over its runs. Pairs are counted
twice: over the whole map, and of allocations on one line alone, because a map's order is mostly
that of sizes, and the question is how to split one. A line is a budget, or without budgets a sum
of both sparsities.

The interval of τ is the percentile one over pictures drawn anew, whole, the same for all
allocations and both conditions; where each allocation has three runs or more, runs are drawn anew
as well. A swapped pair is shown to be swapped when its first allocation is better under one
condition and worse under the other, both significantly: the larger of the two one-sided p, doubled
as either may be the better one, by Holm over all pairs. Two tests, as in `significance`: of these
models, on other pictures; and, of three runs or more, of the allocations, with other seeds.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ressa.errors import NotFoundError, SpecError
from ressa.landscape.allocations import named_pattern, of_search, runs_and_rest
from ressa.landscape.items import Floats, Items, Places, Run, read_items
from ressa.landscape.parts import PATTERN, chosen_fields, parted
from ressa.landscape.significance import LEAST_SEEDS, allocations, holm
from ressa.landscape.tables import STATES, State, results_table
from ressa.landscape.verdicts import Allocated, Verdict, ask, settled
from ressa.store import SUCCESSFUL, SweepStore

if TYPE_CHECKING:
    import pandas


_RESAMPLES = 2000
_LEAST, _MOST = 3, 300  # allocations: of more, the pairs are too many
_BLOCK = 4_000_000  # signs of pairs that are held at once
_READ = ["trial", "state", "reused_trial", "metric", "score_repaired"]

Key = tuple[float, str, str, str]
"""An allocation: its line, its vision and language sparsity or pattern, what else was chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Allocations that were scored alike, each with its runs."""

    name: str
    state: State
    runs: Mapping[Key, Mapping[str, Run]]
    """By allocation, and by number of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """Conditions, which of them are compared, and what their trials answered."""

    pairs: tuple[tuple[Condition, Condition], ...]
    items: Mapping[State, Items]
    """Of all runs, on the same questions in the same order."""

    def rows(self, *, confidence: float) -> list[dict[str, Any]]:
        """Returns τ and swapped pairs, a row for each two conditions over the map, and its lines.

        Args:
            confidence: of the intervals, and of what a row says is swapped, all together.
        """
        drawn = {state: items.resampled(_RESAMPLES, seed=0) for state, items in self.items.items()}
        return [
            row for pair in self.pairs for row in self._rows(*pair, drawn, confidence=confidence)
        ]

    def winners(self, *, margin: float, confidence: float) -> tuple[tuple[str, str, Verdict], ...]:
        """Asks of each line whether the best under one condition is near-optimal under the other.

        Args:
            margin: in points; what lies less than this below the best is near-optimal.
            confidence: that none of the answers is wrong.

        Returns:
            Both conditions' names and the verdict: its subject is the best under the first one, by
            its mean score, and `against` the strongest of the others under the second.
        """
        asked, names = [], []
        for one, other in self.pairs:
            keys = shared(one, other)
            for line in sorted({key[0] for key in keys}):
                here = [key for key in keys if key[0] == line]
                if len(here) < 2:
                    continue
                best = max(here, key=lambda key: self._scores(one, [key], [*one.runs[key]])[0])
                found = {key: self._allocated(other, key) for key in here}
                subject = found.pop(best)
                question = f"the best ({one.name}) is near-optimal ({other.name})"
                asked.append(ask(question, subject, [*found.values()], margin, confidence))
                names.append((one.name, other.name))
        together = settled(asked, confidence)
        return tuple((*pair, one) for pair, one in zip(names, together, strict=True))

    def _rows(
        self,
        one: Condition,
        other: Condition,
        drawn: Mapping[State, Floats],
        *,
        confidence: float,
    ) -> Iterable[dict[str, Any]]:
        keys = shared(one, other)
        numbers = _common(one, other, keys)
        over_runs = len(numbers) >= LEAST_SEEDS
        places = np.array([*itertools.combinations(range(len(keys)), 2)])  # [pair 2]
        of_one_line = np.array([keys[a][0] == keys[b][0] for a, b in places])
        scores, said, resampled = [], [], []
        for condition in (one, other):
            at = self._places(condition, keys, numbers)  # [allocation run]
            scores.append(self._scores(condition, keys, numbers))
            said.append(self.items[condition.state].said[at])
            resampled.append(_means(drawn[condition.state][:, at], over_runs=over_runs))
        for scope, chosen in (("map", np.full(len(places), True)), ("lines", of_one_line)):
            pairs = places[chosen]
            if not len(pairs) or (scope == "lines" and chosen.all()):
                continue
            taus = _taus(resampled[0], resampled[1], pairs)
            taus = taus[~np.isnan(taus)]  # of draws in which not all scores were equal
            tail = (1 - confidence) / 2
            low, high = np.quantile(taus, (tail, 1 - tail)) if len(taus) else (np.nan, np.nan)
            signs = [_signs(score, pairs) for score in scores]
            swapped = pairs[signs[0] * signs[1] < 0]
            shown = partial(
                _shown, said[0], said[1], swapped, count=len(pairs), alpha=1 - confidence
            )
            yield {
                "one": one.name,
                "other": other.name,
                "scope": scope,
                "tau": float(_tau(*signs)),
                "low": float(low),
                "high": float(high),
                "pairs": len(pairs),
                "swapped": len(swapped),
                "swapped_models": shown(_models),
                "swapped_allocations": shown(_allocations) if over_runs else None,
                "allocations": len(keys),
                "runs": len(numbers),
                "pictures": said[0].shape[-1],
                "over": "runs and pictures" if over_runs else "pictures",
            }

    def _places(self, condition: Condition, keys: Sequence[Key], numbers: Sequence[str]) -> Places:
        where = {run: at for at, run in enumerate(self.items[condition.state].runs)}
        return np.array([[where[condition.runs[key][n]] for n in numbers] for key in keys])

    def _scores(self, condition: Condition, keys: Sequence[Key], numbers: Sequence[str]) -> Floats:
        """[allocation]: the mean over runs."""
        scores = self.items[condition.state].scores[self._places(condition, keys, numbers)]
        return np.asarray(scores.mean(axis=1))

    def _allocated(self, condition: Condition, key: Key) -> Allocated:
        line, vision, language, options = key
        items, numbers = self.items[condition.state], [*condition.runs[key]]
        (places,) = self._places(condition, [key], numbers)
        return Allocated(
            line=line,
            name=" ".join(filter(None, (f"{_short(vision)}:{_short(language)}", options))),
            vision=_sparsity(vision),
            language=_sparsity(language),
            runs={("", number): run for number, run in condition.runs[key].items()},
            said={("", n): items.said[at] for n, at in zip(numbers, places, strict=True)},
        )


def orders(sweeps: Sequence[SweepStore], *, by: str | None = None) -> Orders:
    """Reads what is needed to compare orders.

    Args:
        sweeps: one; or two, which are compared with each other.
        by: compares an option's values, such as prune.method or repair.steps, or "pattern": N:M
            with unstructured. None compares before repair with after it.

    Raises:
        SpecError: no trial has that option, or there is but one condition; too many allocations;
            or their scores cannot be paired by items.
        NotFoundError: there are no three allocations that both conditions have.
    """
    frames = {sweep: _results(sweep) for sweep in sweeps}
    of_repair = by is not None and by.startswith("repair.")
    conditions: list[Condition] = []
    for sweep, frame in frames.items():
        parts = {
            value if by in (None, PATTERN) else f"{by}={value}": part
            for value, part in parted(frame, by).items()
        }
        for state in STATES:
            if frame[state].isna().all():
                continue
            # Before repair its options change nothing: one condition, from any of their values.
            alone = {"": next(iter(parts.values()))}
            for value, part in (alone if of_repair and state == "pruned" else parts).items():
                words = [sweep.name if len(sweeps) > 1 else "", value]
                words.append("" if value and of_repair else STATES[state])
                runs = _runs(sweep, part, by, several=len(sweeps) > 1)
                name = ", ".join(filter(None, words))
                conditions.append(Condition(name=name, state=state, runs=runs))
    across = of_repair or (by is None and len(sweeps) == 1)
    pairs = [
        (one, other)
        for one, other in itertools.combinations(conditions, 2)
        if across or one.state == other.state
    ]
    if not pairs:
        fields = dict.fromkeys(field for frame in frames.values() for field in chosen_fields(frame))
        raise SpecError(
            f"{sweeps[0].name} has one condition alone: {conditions[0].name}. To compare: --by "
            f"{', '.join((*fields, PATTERN))}, or another sweep."
        )
    for one, other in pairs:
        _check(one, other)
    trials = {sweep: _trials(sweep, frame) for sweep, frame in frames.items()}
    states: list[State] = [*dict.fromkeys(condition.state for condition in conditions)]
    items = {state: read_items(trials, state=state) for state in states}
    return Orders(pairs=tuple(pairs), items=items)


def shared(one: Condition, other: Condition) -> list[Key]:
    """Returns the allocations that both conditions have."""
    return [key for key in one.runs if key in other.runs]


def _check(one: Condition, other: Condition) -> None:
    count = len(shared(one, other))
    names = f"{one.name} and {other.name}"
    if count < _LEAST:
        raise NotFoundError(f"{names}: {count} allocations in common, {_LEAST} make an order.")
    if count > _MOST:
        raise SpecError(f"{names}: {count:,} allocations in common, at most {_MOST} are ranked.")


def _common(one: Condition, other: Condition, keys: Sequence[Key]) -> list[str]:
    """The numbers of the runs that all allocations have under both conditions."""
    found = [set(condition.runs[key]) for condition in (one, other) for key in keys]
    common = set[str].intersection(*found)
    if not common:
        raise NotFoundError(
            f"{one.name} and {other.name}: no seed with which all their allocations ran."
        )
    return sorted(common)


# ---- what sweeps hold ---------------------------------------------------------------------------


def _results(sweep: SweepStore) -> "pandas.DataFrame":
    searched = of_search(results_table(sweep))
    found = searched[searched["state"].isin(SUCCESSFUL)]
    if found.empty:
        raise NotFoundError(f"no trial of {sweep.name} came to a result.")
    return found


def _trials(sweep: SweepStore, frame: "pandas.DataFrame") -> "pandas.DataFrame":
    trials = sweep.trials(_READ)
    return trials[trials["trial"].isin(frame["trial"])]


def _runs(
    sweep: SweepStore, frame: "pandas.DataFrame", by: str | None, *, several: bool
) -> dict[Key, dict[str, Run]]:
    found: dict[Key, dict[str, Run]] = {}
    for row in frame.to_dict("records"):
        number, rest = runs_and_rest(row["options"])
        rest = " ".join(word for word in rest.split() if not word.startswith(f"{by}="))
        vision, language = (_asked(row, tower, by) for tower in ("vision", "language"))
        if row["budget"] == row["budget"]:
            line = float(row["budget"])
            # The rest of a budget is the language model's, another share of another model.
            language = "" if several else language
        else:
            line = round(row["vision_sparsity"] + row["language_sparsity"], 3)
        key = (line, vision, language, rest)
        found.setdefault(key, {})[number] = (sweep.name, row["trial"])
    return found


def _asked(row: dict[str, Any], tower: str, by: str | None) -> str:
    """A tower's pattern, or its sparsity; patterns too are sparsities where those are compared."""
    pattern = None if by == PATTERN else named_pattern(row[tower])
    return pattern or f"{row[f'{tower}_sparsity']:.3f}"


def _short(asked: str) -> str:
    """A sparsity in percent, or a pattern: as verdicts name an allocation."""
    return f"({asked})" if ":" in asked else f"{100 * float(asked):.0f}" if asked else "rest"


def _sparsity(asked: str) -> float:
    kept, colon, of = asked.partition(":")
    return 1 - int(kept) / int(of) if colon else float(asked or "nan")


# ---- orders -------------------------------------------------------------------------------------


def _means(drawn: Floats, *, over_runs: bool) -> Floats:
    """[resample allocation]: means over runs, which are drawn anew if so asked.

    Args:
        drawn: [resample allocation run].
        over_runs: draws runs, the same for all allocations; the same in every call.
    """
    resamples, _, runs = drawn.shape
    if not over_runs:
        return np.asarray(drawn.mean(axis=2))
    times = np.random.default_rng(1).multinomial(runs, np.full(runs, 1 / runs), size=resamples)
    return np.asarray(np.einsum("bar,br->ba", drawn, times / runs))


def _signs(scores: Floats, pairs: Places) -> NDArray[np.int8]:
    """[... pair]: 1 where the first of a pair scores more, -1 where the second does."""
    return np.sign(scores[..., pairs[:, 0]] - scores[..., pairs[:, 1]]).astype(np.int8)


def _tau(one: NDArray[np.int8], other: NDArray[np.int8]) -> Floats:
    """Kendall's τ-b of signs [... pair]; NaN where one order ties all."""
    untied = (one != 0).sum(axis=-1) * (other != 0).sum(axis=-1)
    alike = (one * other).sum(axis=-1, dtype=np.int64)
    return np.asarray(np.where(untied > 0, alike / np.sqrt(np.maximum(untied, 1)), np.nan))


def _taus(one: Floats, other: Floats, pairs: Places) -> Floats:
    """[resample]: τ of scores [resample allocation]."""
    size = max(1, _BLOCK // len(pairs))
    blocks = [slice(at, at + size) for at in range(0, len(one), size)]
    return np.concatenate([_tau(_signs(one[b], pairs), _signs(other[b], pairs)) for b in blocks])


Test = Callable[[Floats, Floats], float]
"""One-sided p of "the first is not better", of [run picture] each."""


def _shown(
    one: Floats, other: Floats, swapped: Places, test: Test, *, count: int, alpha: float
) -> int:
    """How many swapped pairs are shown to be better under one condition and worse under the other.

    Args:
        one: [allocation run picture], what pictures say of each run's score.
        other: the same under the other condition.
        swapped: [pair 2].
        test: of two allocations under one condition.
        count: of all pairs, over which Holm's adjustment goes.
        alpha: the chance that any of them is wrong.
    """
    p_values = []
    for pair in swapped:
        better, worse = sorted(pair, key=lambda at: -one[at].mean())
        larger = max(test(one[better], one[worse]), test(other[worse], other[better]))
        p_values.append(min(1.0, 2 * larger))
    adjusted = holm([*p_values, *[1.0] * (count - len(p_values))])
    return sum(p <= alpha for p in adjusted)


def _allocations(one: Floats, other: Floats) -> float:
    return allocations(one, other).p_above(0.0)


def _models(one: Floats, other: Floats) -> float:
    """Over pictures alone, the runs' mean: Student's t, by the pictures' influence."""
    from scipy.special import stdtr

    differences = (one - other).mean(axis=0)
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return float(stdtr(len(differences) - 1, -differences.mean() / error)) if error else 1.0


# ---- before and after repair, of a table ------------------------------------------------------


def repair_order(frame: "pandas.DataFrame") -> str | None:
    """Says how alike repair leaves the order of the trials; None where that means nothing."""
    correlation, count = rank_correlation(frame)
    return None if math.isnan(correlation) else f"τ = {correlation:.2f} over {count} trials"


def rank_correlation(frame: "pandas.DataFrame") -> tuple[float, int]:
    """Returns how alike repair leaves the order of a search's trials, and of how many.

    Kendall's τ of the scores before and after repair: 1 if repair changes no order, -1 if it turns
    it round; NaN of fewer than three trials, or where one of the scores is the same in all.

    Args:
        frame: a `results_table`.
    """
    import pandas as pd

    searched = of_search(frame)
    searched = searched[searched["state"] == "succeeded"]
    # A trial that was reused would count twice.
    pairs = searched[["pruned", "repaired"]].dropna().apply(pd.to_numeric)
    if len(pairs) < 3:
        return math.nan, len(pairs)
    return kendall(pairs["pruned"].tolist(), pairs["repaired"].tolist()), len(pairs)


def kendall(one: Sequence[float], other: Sequence[float]) -> float:
    """Returns Kendall's τ-b of two rankings of the same things; NaN if one ties all of them.

    Of all pairs, (those in the same order − those swapped) / √(untied in one · untied in other).
    """
    from bisect import bisect_right, insort

    count = len(one)
    swapped, seen = 0, list[float]()
    for _, value in sorted(zip(one, other, strict=True)):  # ties of one rise in the other
        swapped += len(seen) - bisect_right(seen, value)
        insort(seen, value)

    def tied(values: Iterable[object]) -> int:
        return sum(times * (times - 1) // 2 for times in Counter(values).values())

    pairs, both = count * (count - 1) // 2, tied(zip(one, other, strict=True))
    ties = tied(one), tied(other)
    untied = (pairs - ties[0]) * (pairs - ties[1])
    return (pairs - sum(ties) + both - 2 * swapped) / math.sqrt(untied) if untied else math.nan
