"""Which allocations are best: by the mean over their runs, of each budget's line its own."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

_RUN = re.compile(r"(?:^| )(?:replicate|\S*seed)=\S*")
"""What in a trial's `options` tells runs of one allocation apart: their number, and any seed."""

RACING = [
    *("trial", "role", "state", "budget", "vision_target", "language_target", "point"),
    *("score", "objectives"),
]
"""The columns of the table `trials` that `bests` is made from."""

_CHOSEN = ("vision_sparsity", "language_sparsity", "sparsity", "budget")  # these have columns
_SPARSITY = rf'"({"|".join(_CHOSEN)})": ("[^"\\]*"|[^",\\{{}}\[\]]+)'
"""One of them in a point's JSON, as a regular expression."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """A best allocation: of the sweep, of one of its lines, or on its Pareto front."""

    trial: str
    """Its first run."""
    runs: int
    score: float
    """Mean over them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bests:
    """The best allocations of a sweep; none has several objectives *and* lines."""

    lines: int | None
    """How many budgets have a best; None: the sweep has no budgets, or several objectives."""
    front: int | None
    """How many are on the Pareto front; None: there is one objective."""
    only: Best | None
    """The best of all, where that is one: not of several lines, which differ in size."""


def bests(trials: "pandas.DataFrame") -> Bests:
    """Returns the best allocations among rows of the table `trials`, with columns `RACING`."""
    frame = renamed(trials)
    best = frame[is_best(frame, frame["objectives"])]
    runs = [own for _, own in best.groupby(allocations(best), sort=False)]
    has_lines = bool(best["budget"].notna().any())
    several = has_several(frame["objectives"])
    only = None
    if len(runs) == 1 and not several:
        score = float(runs[0]["score"].astype(float).mean())
        only = Best(trial=str(runs[0]["trial"].iloc[0]), runs=len(runs[0]), score=score)
    return Bests(
        lines=len(runs) if has_lines and not several else None,
        front=len(runs) if several else None,
        only=only,
    )


def renamed(trials: "pandas.DataFrame") -> "pandas.DataFrame":
    """Returns rows of the table `trials` with vision, language and options, as a `results_table`
    has them."""
    return trials.assign(
        vision=trials["vision_target"],
        language=trials["language_target"],
        options=options_of(trials["point"]),
    )


def of_search(frame: "pandas.DataFrame", *, scored: str | None = None) -> "pandas.DataFrame":
    """Returns the trials of a search, without baselines.

    Args:
        frame: a `results_table`, or rows of the table `trials`.
        scored: a column with a score; only trials that have it.
    """
    searched = frame[frame["role"] != "baseline"]
    return searched if scored is None else searched[searched[scored].notna()]


def named_pattern(asked: Any) -> str | None:
    """Returns what was asked of a tower if it is a pattern N:M; None of a sparsity, or nothing."""
    return asked if isinstance(asked, str) and ":" in asked else None


def is_pattern(
    frame: "pandas.DataFrame", columns: Sequence[str] = ("vision", "language")
) -> "pandas.Series[bool]":
    """Says of each trial whether a pattern N:M was asked of a tower: in one of the columns."""
    one, other = (frame[name].astype("str").str.contains(":", regex=False) for name in columns)
    return one | other


def is_best(
    frame: "pandas.DataFrame", objectives: "pandas.Series | None" = None
) -> "pandas.Series[bool]":
    """Says which trials are runs of a best allocation.

    That is the one of the highest mean score over its runs, of equals the first. Sizes are not
    compared: where trials have budgets, each budget has a best, and what has none is not in the
    race. With several objectives the best are those on their Pareto front, by means too.

    Args:
        frame: a `results_table`; its role, state, budget, vision, language, options and score.
        objectives: of each trial, its objectives by name, or the JSON of that; None: one.
    """
    racing = of_search(frame, scored="score")
    racing = racing[racing["state"] == "succeeded"]
    allocation = allocations(racing)
    if objectives is not None and has_several(objectives):
        values = _values(objectives[racing.index]).groupby(allocation).mean()
        best = _front(values)
    else:
        mean = racing["score"].astype(float).groupby(allocation).mean()
        line = racing["budget"].astype(float)
        if line.isna().all():
            line = line.fillna(-1.0)
        of_line = mean.groupby(line.groupby(allocation).first())  # leaves out what has no line
        best = list(of_line.idxmax())
    return frame.index.to_series().isin(racing.index[allocation.isin(best)])


def allocations(frame: "pandas.DataFrame") -> "pandas.Series[int]":
    """Returns the number of each trial's allocation, rising; its runs have the same one.

    Args:
        frame: with the columns budget, vision, language and options of a `results_table`.
    """
    import numpy as np

    options = frame["options"].astype(str)
    rest = without_run(options)
    alone = np.where(rest == options, np.arange(len(frame)), -1)
    key = frame[["budget", "vision", "language"]].assign(rest=rest, alone=alone)
    return key.groupby(list(key), dropna=False, sort=False).ngroup()


def without_run(options: "pandas.Series") -> "pandas.Series[str]":
    """Returns trials' `options` without what tells runs of one allocation apart."""
    return options.astype(str).str.replace(_RUN, "", regex=True).str.strip()


def runs_and_rest(options: str) -> tuple[str, str]:
    """Splits a trial's `options` into what tells runs of one allocation apart, and the rest.

    Two sweeps may list their axes in another order: both parts are in that of the alphabet.
    """
    run, rest = "".join(_RUN.findall(options)), _RUN.sub("", options)
    return " ".join(sorted(run.split())), " ".join(sorted(rest.split()))


def has_several(objectives: "pandas.Series") -> bool:
    """Whether trials have more than one objective."""
    known = objectives.dropna()
    return not known.empty and len(_named(known.iloc[0])) > 1


def _values(objectives: "pandas.Series") -> "pandas.DataFrame":
    import pandas as pd

    return pd.DataFrame([_named(one) for one in objectives], index=objectives.index).astype(float)


def _named(objectives: Any) -> dict[str, float]:
    found: dict[str, float] = json.loads(objectives) if isinstance(objectives, str) else objectives
    return found


def _front(values: "pandas.DataFrame") -> list[Any]:
    """The rows that no other covers; of equals, the first."""
    front: dict[Any, tuple[float, ...]] = {}
    # From the best in the first objective on, so that whatever beats one comes before it.
    rows = [(place, tuple(row)) for place, row in zip(values.index, values.to_numpy(), strict=True)]
    for place, row in sorted(rows, key=lambda one: one[1], reverse=True):
        if not any(_covers(other, row) for other in front.values()):
            front[place] = row
    return list(front)


def _covers(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether one is at least as good in every objective."""
    return all(a >= b for a, b in zip(one, other, strict=True))


def options_of(points: "pandas.Series") -> list[str]:
    """Returns what each point says beside the sparsities, as words."""
    import pandas as pd

    texts = points.astype("str").fillna("{}")
    # Sparsities differ from trial to trial; without them few texts are left to be parsed.
    texts = texts.mask(texts.str.fullmatch(rf"\{{({_SPARSITY}(, )?)*\}}"), "{}")
    rest = texts.str.replace(f"(, )?{_SPARSITY}", "", regex=True)
    rest = rest.str.replace("{, ", "{", regex=False)
    is_flat = texts.str.count(r"\{") == 1
    numbers, distinct = pd.factorize(rest.where(is_flat, texts))
    words = [_words(text) for text in distinct]
    return [words[number] for number in numbers]


def _words(point: str) -> str:
    try:
        chosen = dict(json.loads(point))
    except (ValueError, TypeError, RecursionError):  # another program wrote it
        return point
    return " ".join(f"{field}={value}" for field, value in chosen.items() if field not in _CHOSEN)
