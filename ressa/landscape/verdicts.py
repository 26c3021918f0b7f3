"""Verdicts: what a confirmed sweep says about its question, yes, no or not decided.

Two questions on every line of equal size, of allocations alike in all but their split:

- *Is the equal split near-optimal?* Yes if each other allocation of the line is shown to be less
  than the margin better: an intersection-union test, whose error is at most that of one of its
  parts, however many there are and whichever of them is the best. No if one of them is shown to be
  better by the margin or more, by Bonferroni over them.
- *Does pruning language alone beat pruning both towers?* Yes if it is shown to be better than each
  allocation of the line that prunes both, no if one of those is shown to be better than it.

With a margin one of yes and no is right, whatever is so, and each is a one-sided claim at the full
level. Without one both claim a difference: where there is none both are wrong, so that p is twice
the smaller of theirs. What is not shown either way, at the sweep's confidence by Holm over all its
questions, is not decided. Differences, their intervals and p are those of
`significance.allocations`: over seeds and pictures.
"""

import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ressa.landscape.allocations import named_pattern
from ressa.landscape.items import Floats, Run, read_items
from ressa.landscape.significance import LEAST_SEEDS, Spread, allocations, holm
from ressa.landscape.tables import LINE_COLUMNS, asked_lines
from ressa.store import SUCCESSFUL, SweepStore

if TYPE_CHECKING:
    import pandas

Answer = Literal["yes", "no", "not decided"]
EQUAL_QUESTION = "the equal split is near-optimal"
LANGUAGE_QUESTION = "language-only beats both towers"
_MOST_SEEDS = 100  # more are not worth naming
_READ = [
    *("trial", "role", "state", "reused_trial", "metric", "point", "sparsity", "score_repaired"),
    *LINE_COLUMNS,
    *(f"{tower}_{what}" for tower in ("vision", "language") for what in ("target", "sparsity")),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocated:
    """One confirmed allocation: its runs, and what each picture says of each."""

    line: float
    """Sparsity asked over all prunable weights; 0 is the dense model, repaired."""
    name: str
    """Its vision and language sparsity in percent, or patterns: 40:58; and what else it chose."""
    also: str = ""
    """What it chose besides its split, such as prune.method=wanda."""
    vision: float
    language: float
    runs: Mapping[tuple[str, str], Run]
    """By sweep and replicate: the same seeds in every allocation."""
    said: Mapping[tuple[str, str], Floats]

    @property
    def is_equal(self) -> bool:
        """Whether both towers lose the same share."""
        return self.line > 0 and abs(self.vision - self.language) < 1e-4

    def minus(self, other: "Allocated") -> Spread | None:
        """Compares it with another one on the seeds that both have; None with fewer than two."""
        import numpy as np

        seeds = [seed for seed in self.said if seed in other.said]
        if len(seeds) < 2:
            return None
        return allocations(
            np.stack([self.said[seed] for seed in seeds]),
            np.stack([other.said[seed] for seed in seeds]),
        )

    def spread(self) -> Spread | None:
        """Returns its mean score with what it varies by; None with fewer than two seeds."""
        import numpy as np

        found = np.stack([*self.said.values()])
        return allocations(found, np.zeros_like(found)) if len(found) > 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One question on one line, with its answer and what that rests on; points are of 100."""

    line: float
    also: str
    """What the allocations that are asked about chose alike, besides their split."""
    question: str
    answer: Answer
    why: str
    subject: str
    """The allocation that is asked about."""
    against: str
    """The allocation that decides: the strongest of the others."""
    difference_points: float | None
    """against − subject."""
    low_points: float | None
    high_points: float | None
    """Its bounds at the confidence of one question alone: one-sided each, or with a margin of 0
    the ends of one interval."""
    p_value: float | None
    """Of the answer, for this question alone; Holm compares it with all of the sweep's."""
    margin_points: float
    confidence: float
    seeds: int
    pictures: int
    more_trials: int | None
    """How many more trials of the line would decide it if all stays as it looks; None: no 100
    seeds would."""

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        where = f"{self.line:g}{self.also and f' with {self.also}'}"
        return f"{self.question} on line {where}: {self.answer} ({self.why})"


def confirmed(sweeps: Sequence[SweepStore]) -> tuple[Allocated, ...]:
    """Reads what sweeps that confirm another one found, by line and then by score.

    Args:
        sweeps: those that `ressa confirm` made, with seeds of their own each.

    Raises:
        SpecError: their objective cannot be paired by items.
    """
    trials = {sweep: _confirming(sweep) for sweep in sweeps}
    trials = {sweep: rows for sweep, rows in trials.items() if len(rows)}
    if not trials:
        return ()
    items = read_items(trials)
    said = dict(zip(items.runs, items.said, strict=True))
    found: dict[tuple[Any, ...], Allocated] = {}
    for sweep, rows in trials.items():
        for row in rows.to_dict("records"):
            key = (row["vision_target"], row["language_target"], row["rest"], row["line"])
            run, seed = (sweep.name, row["trial"]), (sweep.name, row["run"])
            known = found.get(key)
            if known is None:
                known = Allocated(
                    line=row["line"],
                    name=_name(row),
                    also=row["rest"],
                    vision=_sparsity(row, "vision"),
                    language=_sparsity(row, "language"),
                    runs={},
                    said={},
                )
            found[key] = replace(
                known, runs={**known.runs, seed: run}, said={**known.said, seed: said[run]}
            )
    return tuple(sorted(found.values(), key=lambda one: (one.line, -_mean(one))))


def judge(found: Sequence[Allocated], *, margin: float, confidence: float) -> tuple[Verdict, ...]:
    """Answers both questions on every line.

    Args:
        found: the confirmed allocations.
        margin: in points; what lies less than this below the best is near-optimal.
        confidence: 1 − the chance that any of the answers is wrong.
    """
    asked = []
    for line, also in sorted({(one.line, one.also) for one in found if one.line > 0}):
        here = [one for one in found if (one.line, one.also) == (line, also)]
        equal = next((one for one in here if one.is_equal), None)
        if equal is not None and len(here) > 1:
            others = [one for one in here if one is not equal]
            asked.append(ask(EQUAL_QUESTION, equal, others, margin, confidence))
        alone = next((one for one in here if one.vision == 0), None)
        both = [one for one in here if one.vision > 0 and one.language > 0]
        if alone is not None and both:
            asked.append(ask(LANGUAGE_QUESTION, alone, both, 0.0, confidence))
    return settled(asked, confidence)


def settled(asked: Sequence[Verdict], confidence: float) -> tuple[Verdict, ...]:
    """Returns answers that stand together, by Holm over all of them; the others are undecided."""
    adjusted = holm([1.0 if one.p_value is None else one.p_value for one in asked])
    return tuple(
        replace(one, more_trials=0) if p <= 1 - confidence else _undecided(one)
        for one, p in zip(asked, adjusted, strict=True)
    )


def ask(
    question: str,
    subject: Allocated,
    others: Sequence[Allocated],
    margin: float,
    confidence: float,
) -> Verdict:
    """Answers one question as if it were the only one.

    The claim "yes" is that each other allocation is less than the margin better than the subject;
    for "beats" the margin is 0.
    """
    found = [other.minus(subject) for other in others]
    spreads = [spread for spread in found if spread is not None]
    seeds = min([spread.seeds for spread in spreads], default=min(1, len(subject.said)))
    blank = Verdict(
        line=subject.line,
        also=subject.also,
        question=question,
        answer="not decided",
        why=f"at least {LEAST_SEEDS} seeds of each allocation are needed, there are {seeds}",
        subject=subject.name,
        against=max(others, key=_mean).name,
        difference_points=None,
        low_points=None,
        high_points=None,
        p_value=None,
        margin_points=margin,
        confidence=confidence,
        seeds=seeds,
        pictures=len(next(iter(subject.said.values()))),
        more_trials=max(0, LEAST_SEEDS - seeds) * (len(others) + 1),
    )
    if len(spreads) < len(others) or seeds < LEAST_SEEDS:
        return blank
    edge, claims = margin / 100, 1 if margin else 2  # of a difference, of which both may be wrong
    level = 1 - (1 - confidence) / claims
    yes = [spread.p_below(edge) for spread in spreads]
    no = [spread.p_above(edge) for spread in spreads]
    p_yes, p_no = max(yes), min(1.0, len(no) * min(no))
    answer: Answer = "yes" if p_yes <= p_no else "no"
    at = yes.index(max(yes)) if answer == "yes" else no.index(min(no))
    spread, against = spreads[at], others[at].name
    return replace(
        blank,
        answer=answer,
        why=_why(answer, against, spread, level, margin),
        against=against,
        difference_points=100 * spread.value,
        low_points=100 * spread.low(level),
        high_points=100 * spread.high(level),
        p_value=min(1.0, claims * min(p_yes, p_no)),
        more_trials=_more_trials(spreads, edge, len(others) + 1, level),
    )


def _why(answer: Answer, against: str, spread: Spread, level: float, margin: float) -> str:
    bounds = (spread.value, spread.low(level), spread.high(level))
    value, low, high = (100 * x for x in bounds)
    if margin:
        bound = f"at most {high:+.2f}" if answer == "yes" else f"at least {low:+.2f}"
        return f"{against} is {value:+.2f} points from it, {bound}; margin {margin:g}"
    if answer == "yes":
        return f"better than each by at least {-high:.2f} points; nearest {against}, {-value:+.2f}"
    return f"{against} is better by {value:.2f} points, at least {low:.2f}"


def _undecided(one: Verdict) -> Verdict:
    """The verdict on a question that Holm does not let through, with what would decide it."""
    if one.p_value is None:
        return replace(one, answer="not decided")
    interval = (
        f"{one.against} is {one.difference_points:+.2f} points from it, between "
        f"{one.low_points:.2f} and {one.high_points:.2f}"
    )
    needs = (
        f"needs about {one.more_trials} more trials"
        if one.more_trials
        else "more seeds alone would not decide it: more pictures would, or a larger margin"
    )
    return replace(one, answer="not decided", why=f"{interval}; {needs}")


def _more_trials(
    spreads: Sequence[Spread], edge: float, allocations: int, level: float
) -> int | None:
    """How many more trials would decide a question, if means and variances stay as they are."""

    shared = 1 - (1 - level) / len(spreads)

    def decides(seeds: int) -> bool:
        grown = [spread.with_seeds(seeds) for spread in spreads]
        below = all(one.high(level) < edge for one in grown)
        return below or any(one.low(shared) > edge for one in grown)

    seeds = min(spread.seeds for spread in spreads)
    wanted = bisect_left(range(_MOST_SEEDS + 1), True, lo=min(seeds, _MOST_SEEDS) + 1, key=decides)
    return (wanted - seeds) * allocations if wanted <= _MOST_SEEDS else None


def allocation_rows(found: Sequence[Allocated], *, confidence: float) -> list[dict[str, Any]]:
    """One row for each confirmed allocation: its score, and how far it is from dense-repaired.

    Scores are fractions and differences points, each with ends of a two-sided interval.
    """
    dense = next((one for one in found if one.line == 0), None)
    made = []
    for one in found:
        spread = one.spread()
        against = None if dense is None or one is dense else one.minus(dense)
        level = (1 + confidence) / 2
        apart = (
            (math.nan,) * 3
            if against is None
            else (against.value, against.low(level), against.high(level))
        )
        names = ("minus_dense_repaired_points", "low_points", "high_points")
        made.append(
            {
                "line": one.line,
                "allocation": one.name,
                "runs": len(one.said),
                "score": _mean(one),
                "standard_error": None if spread is None else spread.standard_error,
                **{name: 100 * value for name, value in zip(names, apart, strict=True)},
            }
        )
    return made


def _confirming(sweep: SweepStore) -> "pandas.DataFrame":
    """The trials of a confirming sweep that came to a result, with line, run and other choices."""
    trials = sweep.trials(_READ)
    is_result = (trials["role"] == "confirm") & trials["state"].isin(SUCCESSFUL)
    trials = trials[is_result]
    points = [_parsed(text) for text in trials["point"]]
    return trials.assign(
        line=asked_lines(trials),
        run=[point.pop("replicate", "0") for point in points],
        rest=[" ".join(f"{k}={v}" for k, v in p.items() if "sparsity" not in k) for p in points],
    )


def _parsed(point: str) -> dict[str, str]:
    return {name: str(value) for name, value in json.loads(point).items()}


def _sparsity(row: Mapping[str, Any], tower: str) -> float:
    value = row[f"{tower}_sparsity"]
    return float(row["sparsity"]) if value is None or value != value else float(value)


def _name(row: Mapping[str, Any]) -> str:
    if row["line"] == 0:
        return "dense, repaired alike"

    def short(tower: str) -> str:
        pattern = named_pattern(row[f"{tower}_target"])
        return f"({pattern})" if pattern else f"{100 * _sparsity(row, tower):.0f}"

    return " ".join(filter(None, (f"{short('vision')}:{short('language')}", row["rest"])))


def _mean(one: Allocated) -> float:
    return float(sum(found.mean() for found in one.said.values()) / len(one.said))
