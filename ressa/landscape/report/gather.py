"""What a report shows, read from the store as plain values that JSON has."""

import math
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ressa.errors import SpecError
from ressa.landscape.allocations import is_pattern, of_search
from ressa.landscape.best import best_trials, over_runs, ranked
from ressa.landscape.charted import KINDS, Charted, charts
from ressa.landscape.figures import lines_of
from ressa.landscape.points import budget_ends, colour_range
from ressa.landscape.render import percent
from ressa.landscape.standing import failures, sweep_row
from ressa.landscape.surface import Surface, hull_of
from ressa.landscape.tables import COLUMNS, STATES, About, results_table
from ressa.landscape.together import owner, results_of
from ressa.landscape.verdicts import allocation_rows, confirmed, judge
from ressa.spec import SweepSpec
from ressa.store import PACKAGES, SweepStore, is_null

if TYPE_CHECKING:
    import pandas

_SHOWN = (
    *("trial", "state", "role", "vision", "language", "vision_sparsity", "language_sparsity"),
    *("sparsity", "whole", "budget", "pruned", "repaired", "standard_error", "score"),
    *("recovery", "recovery_repaired", "blank_pruned", "blank_repaired", "seconds", "options"),
    *("best", "error"),
)
_DETAILED = 60
"""Trials whose curves and layers are in the page: the baselines and the best."""
_STEPS = 120
"""Points of a curve at most: a longer one is thinned."""
_FAILURES = 200
_DIGITS = 6
_UNCONFIRMED = "Best of the search, not confirmed; biased upwards: "


def gather(
    sweep: SweepStore,
    *,
    confirming: Sequence[SweepStore] = (),
    margin: float = 1.0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Reads a sweep as the report's page wants it; strings are as they were written, unescaped.

    Args:
        sweep: what to show.
        confirming: the sweeps that ran its best again. Where they have come to results, headline
            and verdicts are of these alone.
        margin: in points: what lies less than this below the best is as good.
        confidence: that all verdicts are right together.
    """
    frame = results_table(sweep)
    spec = sweep.spec()
    detailed = [*frame.loc[frame["role"] == "baseline", "trial"], *ranked(frame)][:_DETAILED]
    failed, more = _failures(sweep)
    return {
        **_map([sweep], frame, margin=margin),
        **_answer(confirming, margin, confidence),
        "along": [_along(name, rows) for name, rows in lines_of(frame)],
        "first": ranked(frame)[:5],
        "curves": _curves(sweep, detailed),
        "layers": _layers(sweep, detailed),
        "failures": failed,
        "more_failures": more,
        "redo": _command("resume", sweep, "--failed"),
        "provenance": _provenance(sweep, spec),
        "spec": sweep.spec_text(),
        "again": _again(sweep),
    }


def gather_map(
    sweeps: Sequence[SweepStore], *, margin: float = 1.0, by: str | None = None
) -> dict[str, Any]:
    """Reads one or several sweeps as a page of their map and trials alone wants them.

    Args:
        sweeps: of one model, evaluation and recipe.
        margin: in points: what lies less than this below the best is as good.
        by: a field in which they may differ.

    Raises:
        SpecError: they differ in another field.
    """
    return _map(sweeps, results_of(sweeps, by=by), margin=margin)


def _map(
    sweeps: Sequence[SweepStore], frame: "pandas.DataFrame", *, margin: float
) -> dict[str, Any]:
    about: About = frame.attrs["about"]
    best = ranked(frame)[:1]
    asked = sweeps[0] if not best else owner(sweeps, best[0])[0]
    surrogates = charts(sweeps, margin=margin)
    questions = [_question(sweep.spec(), about) for sweep in sweeps]
    return {
        "sweep": about.sweep,
        "question": " ".join(dict.fromkeys(questions)),
        "stand": " ".join(
            f"{sweep.name} is {_stand(sweep_row(sweep))}"
            if sweeps[1:]
            else _stand(sweep_row(sweep))
            for sweep in sweeps
        ),
        "confirmed": False,
        "headline": _UNCONFIRMED + _command("confirm", asked),
        "facts": [*_best(frame), *_yardsticks(about)],
        "range": list(colour_range(frame)),
        "stars": _stars(frame),
        "lines": [[*a, *b] for a, b in budget_ends(of_search(frame), about).values()],
        "charts": {state: _chart(frame, state, one) for state, one in surrogates.items()},
        "kinds": KINDS,
        "margin": margin,
        "meanings": {name: COLUMNS[name] for name in _SHOWN},
        "trials": {name: _values(frame[name]) for name in _SHOWN},
    }


def _answer(
    confirming: Sequence[SweepStore],
    margin: float,
    confidence: float,
) -> dict[str, Any]:
    """What confirmed rows say, where there are any: the headline and what stands below it."""
    try:
        found = confirmed(confirming)
    except SpecError as error:  # the objective is no mean over questions: nothing can be paired
        found, fault = (), [str(error)]
    else:
        fault = []
    if not found:
        return {"verdicts": fault}
    rows = allocation_rows(found, confidence=confidence)
    facts, said = [], []
    for line in sorted({row["line"] for row in rows if row["line"] > 0}):
        here = [row for row in rows if row["line"] == line]
        best = max(here, key=lambda row: row["score"])
        value = _with_error(best["score"], best["standard_error"])
        size = f"{percent(line)} % of the prunable weights gone"
        said.append(f"{best['allocation']} ({value}) with {size}")
        facts.append((value, f"{best['allocation']}, {size}: {_runs(best['runs'])}"))
    for row in rows:
        if row["line"] == 0:
            value = _with_error(row["score"], row["standard_error"])
            facts.append((value, f"{row['allocation']}: {_runs(row['runs'])}"))
    stands = ", ".join(f"{one.name} is {one.status().state}" for one in confirming)
    headline = (
        f"Confirmed with fresh seeds on {_tested(confirming[0])}: best vision:language in % is "
        f"{'; '.join(said)}. {stands}."
    )
    verdicts = judge(found, margin=margin, confidence=confidence)
    return {
        "confirmed": True,
        "headline": headline,
        "facts": facts + _yardsticks(results_table(confirming[0]).attrs["about"]),
        "verdicts": [one.sentence for one in verdicts],
    }


def _with_error(score: float, error: float | None) -> str:
    return f"{percent(score)} %" if error is None else f"{percent(score)} ± {percent(error)} %"


def _runs(count: int) -> str:
    return f"{count} fresh seed{'s' if count > 1 else ''}"


def _tested(sweep: SweepStore) -> str:
    """On which examples a sweep was scored."""
    splits = {one.split for one in sweep.spec().evaluate}
    return f"the {' and '.join(sorted(splits))} split"


def _chart(frame: "pandas.DataFrame", state: str, found: Charted) -> dict[str, Any]:
    """A surrogate's grid and the best of its lines, as JSON has them."""
    chart = found.chart
    free = of_search(frame, scored=state)
    free = free[~is_pattern(free)]
    corners = hull_of(free[["vision_sparsity", "language_sparsity"]].to_numpy(float))
    widest = float(chart.deviation.max())
    if corners is not None:
        deviation = Surface(
            vision=chart.vision, language=chart.language, values=chart.deviation, hull=corners
        )
        widest = float(chart.deviation[deviation.inside()].max())
    return {
        "vision": [_plain(float(value)) for value in chart.vision],
        "language": [_plain(float(value)) for value in chart.language],
        "hull": None if corners is None else corners.round(4).tolist(),
        "score": chart.mean.round(4).tolist(),
        "deviation": chart.deviation.round(4).tolist(),
        "widest": widest,
        "within": chart.within_margin.round(3).tolist(),
        "bests": [
            {name: _plain(value) for name, value in row.items()}
            | {
                "ends": found.ends(row["line"], row["equal"]),
                "sure": [
                    [x, found.language(row["line"], row["equal"], x)]
                    for x in (row["vision_low"], row["vision_high"])
                ],
            }
            for row in found.bests.to_dict("records")
        ],
    }


def _along(name: str, rows: "pandas.DataFrame") -> dict[str, Any]:
    """Scores along a line by vision sparsity."""
    return {"name": name} | {column: _values(rows[column]) for column in rows.columns}


def _question(spec: SweepSpec, about: About) -> str:
    """What the sweep file asks, or else what the sweep does."""
    if spec.question:
        return spec.question
    names = [objective.maximize for objective in spec.objectives]
    budgets = ", ".join(f"{percent(float(budget))} %" for budget in spec.budget or ())
    where = f" when {budgets} of the prunable weights are zero" if budgets else ""
    how = f", pruned by {about.methods}" if about.methods else ""
    return (
        f"How to split the sparsity of {spec.model.id} between vision and language{where}, for the "
        f"highest {' and '.join(names)}{how}?"
    )


def _stand(state: dict[str, Any]) -> str:
    planned = "" if state["planned"] is None else f" of {state['planned']:,}"
    failed = f", {state['failed']} failed" if state["failed"] else ""
    updated = (
        "" if state["updated"] is None else f", last row {state['updated']:%Y-%m-%d %H:%M} UTC"
    )
    return f"{state['state']}: {state['done']:,}{planned} trials are done{failed}{updated}."


def _best(frame: "pandas.DataFrame") -> list[tuple[str, str]]:
    scored = over_runs(frame[frame["score"].notna()])
    best = scored[scored["best"].astype(bool)].sort_values("score", ascending=False)
    if frame.attrs["about"].several_objectives:
        best = best.head(1)
    several = len(best) > 1
    if several:
        best = best.sort_values("budget")

    def line(row: dict[str, Any]) -> str:
        return f"budget {row['budget']:g}, " if several else ""

    return [
        (
            _with_error(row["score"], _plain(row["standard_error"])),
            f"{row['trial']}, {line(row)}{_mean_of(row['runs'])}not confirmed",
        )
        for row in best.to_dict("records")
    ]


def _mean_of(runs: int) -> str:
    return f"mean of {runs} runs, " if runs > 1 else ""


def _stars(frame: "pandas.DataFrame") -> dict[str, list[str]]:
    """The trials to star on the map of each state."""
    searched = over_runs(of_search(frame, scored="score"))
    several = frame.attrs["about"].several_objectives
    return {
        state: sorted(best_trials(searched, state, several_objectives=several)) for state in STATES
    }


def _yardsticks(about: About) -> list[tuple[str, str]]:
    """What scores are to be compared with."""
    facts = [(f"{percent(score)} %", name) for name, score in about.yardsticks.items()]
    if about.items:
        facts.append((f"{about.items:,}", "questions behind each score"))
    return facts


def _curves(sweep: SweepStore, trials: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    found = sweep.read("curves", columns=["trial", "step", "loss"], in_order=False).to_pandas()
    found = found[found["trial"].isin(trials)].sort_values(["trial", "step"])
    curves = {}
    for trial, own in found.groupby("trial"):
        thinned = own.iloc[:: max(math.ceil(len(own) / _STEPS), 1)]
        curves[str(trial)] = {name: _values(thinned[name]) for name in ("step", "loss")}
    return curves


def _layers(sweep: SweepStore, trials: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    columns = ["name", "tower", "block", "sparsity", "output_error"]
    found = sweep.read("layers", columns=["trial", *columns], in_order=False).to_pandas()
    found = found[found["trial"].isin(trials)]
    return {
        str(trial): [
            {name: _plain(value) for name, value in row.items()}
            for row in own[columns].to_dict("records")
        ]
        for trial, own in found.groupby("trial")
    }


def _failures(sweep: SweepStore) -> tuple[list[dict[str, Any]], int]:
    failed = failures(sweep, "traceback")
    rows = []
    for row in failed.head(_FAILURES).to_dict("records"):
        where = [row[name] for name in ("failure_stage", "failure_class") if _plain(row[name])]
        rows.append(
            {
                "trial": row["trial"],
                "state": row["state"],
                "where": " · ".join(where),
                "error": _plain(row["error"]),
                "traceback": _plain(row["traceback"]),
                "command": _command("resume", sweep, row["trial"]),
            }
        )
    return rows, max(len(failed) - _FAILURES, 0)


def _provenance(sweep: SweepStore, spec: SweepSpec) -> list[tuple[str, str]]:
    versions = [f"{package}_version" for package in PACKAGES]
    about = ["cpu", "gpu", "host", "started", "finished", "workers", "total_seconds", "cpu_seconds"]
    trials = sweep.trials([*versions, *about, "ressa_commit"])
    rows = [("store", sweep.store.location), ("model", _model(spec))]
    known = [
        f"{package} {_all(trials[column])}"
        for package, column in zip(PACKAGES, versions, strict=True)
        if trials[column].notna().any()
    ]
    workers = f"workers a trial: {_all(trials['workers']) or '?'}"
    rows += [
        ("versions", ", ".join(known)),
        ("git", _all(trials["ressa_commit"])),
        ("hardware", "; ".join(filter(None, (_all(trials["gpu"]), _all(trials["cpu"]), workers)))),
        ("machines", _all(trials["host"])),
        (
            "cost",
            f"{trials['total_seconds'].sum() / 3600:.2f} hours of trials, "
            f"{trials['cpu_seconds'].sum() / 3600:.2f} processor-hours",
        ),
    ]
    times = [trials["started"].min(), trials["finished"].max()]
    if all(time == time and time is not None for time in times):
        rows.append(("time", " to ".join(f"{time:%Y-%m-%d %H:%M} UTC" for time in times)))
    for row in (
        sweep.data().drop_duplicates(["purpose", "task", "split", "seed"]).to_dict("records")
    ):
        rows.append(
            (
                f"data: {row['purpose']}",
                f"{row['samples']:,} questions on {len(row['image_ids']):,} pictures of "
                f"{row['task']} {row['split']}, seed {row['seed']}",
            )
        )
    repair = "" if spec.repair.method == "none" else f", repair {spec.repair.seed}"
    rows.append(
        (
            "seeds",
            f"search {spec.search.seed}, calibration {spec.prune.calibration.seed}{repair}; "
            f"{spec.replicates} run(s) of each point",
        )
    )
    rows.append(("read", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"))
    return [(name, value) for name, value in rows if value]


def _model(spec: SweepSpec) -> str:
    revision = f" at {spec.model.revision}" if spec.model.revision else ""
    return f"{spec.model.id}{revision}, {spec.model.dtype}"


def _again(sweep: SweepStore) -> str:
    save = f"# save the sweep file below as {sweep.name}.yaml; its `store` is where rows will go"
    return "\n".join(
        [
            save,
            shlex.join(["ressa", "run", f"{sweep.name}.yaml"]),
            "# or look at these rows",
            _command("results", sweep),
            _command("export", sweep, "TRIAL", "--to", "model"),
        ]
    )


def _command(verb: str, sweep: SweepStore, *options: str) -> str:
    return shlex.join(["ressa", verb, sweep.name, *options, "--store", sweep.store.location])


def _all(column: "pandas.Series") -> str:
    """All values that a column has, of which there are few."""
    return ", ".join(str(value) for value in sorted(set(column.dropna()), key=str)[:8])


def _values(column: "pandas.Series") -> list[Any]:
    """A column as JSON has it: null for what is not there, numbers rounded."""
    import pandas as pd

    if pd.api.types.is_float_dtype(column):
        return [_plain(value) for value in column.astype("float64").tolist()]
    return [_plain(value) for value in column.astype(object).where(column.notna(), None).tolist()]


def _plain(value: Any) -> Any:
    if is_null(value):
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.{_DIGITS}g}")
    return value.item() if hasattr(value, "item") else value
