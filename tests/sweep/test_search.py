"""What a sweep proposes is a function of its store: not of who finished first, nor of kills.

Whole searches on a real store, with trials that cost nothing in place of Ray's.
"""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ressa.records import Progress
from ressa.spec import spec_from_mapping
from ressa.store import SweepStore, open_store
from ressa.sweep.ledger import Attempt, Ledger, Redo
from ressa.sweep.plan import SweepPlan, make_plan

LINE = {
    "space": {"vision_sparsity": {"low": 0.0, "high": 0.8, "step": 0.1}},
    "budget": [0.4, 0.5],
}
PLANE = {
    "space": {
        "vision_sparsity": {"low": 0.0, "high": 0.9},
        "language_sparsity": {"low": 0.0, "high": 0.9},
    },
}


def plan_of(search: Mapping[str, Any], space: Mapping[str, Any] = LINE, **more: Any) -> SweepPlan:
    content = {"ressa": 1, "model": "pocket-blip2", "baselines": [], **space, **more}
    return make_plan(spec_from_mapping(content | {"search": search}).spec)


def score(attempt: Attempt) -> float:
    """A hill over the plane, with its top away from the middle."""
    vision, language = (
        float(t.target.sparsity) for t in (attempt.spec.vision, attempt.spec.language)
    )
    return 1 - (vision - 0.3) ** 2 - (language - 0.6) ** 2


def outcome(attempt: Attempt, plan: SweepPlan, state: str = "succeeded") -> dict[str, Any]:
    lost = plan.all_zeros(attempt.spec) / plan.inventory.prunable()
    values = {"sparsity": lost, **dict.fromkeys(["easy-vqa.balanced_accuracy"], score(attempt))}
    row = {"role": attempt.role, "number": attempt.number, "key": attempt.spec.key, "state": state}
    row["point"] = dict(attempt.point)
    if state != "succeeded":
        return row | {"failure_class": "code", "failure_stage": "prune", "error": "it broke"}
    return row | {"score": score(attempt), "objectives": values}


@dataclass
class Killed(Exception):
    """The driver ends here."""


def drive(
    sweep: SweepStore,
    plan: SweepPlan,
    chance: random.Random,
    *,
    kill: float = 0.0,
    fails: Callable[[Attempt], bool] = lambda attempt: False,
    redo: Redo | None = None,
) -> None:
    """Drives a sweep to its end; what runs finishes in an order of chance.

    Args:
        kill: how likely the driver ends after each thing that happens; another then takes over.
    """
    epoch = len(sweep.attempts()) + 100
    ledger, running = Ledger(sweep, plan, epoch=epoch, redo=redo), []
    while True:
        if chance.random() < kill:
            return drive(sweep, plan, chance, kill=kill * 0.9, fails=fails)
        found = ledger.next() if len(running) < plan.spec.search.parallel else "wait"
        if isinstance(found, Attempt):
            running.append(found)
            continue
        if found == "finished" and not running:
            assert ledger.is_complete or ledger.planned > len(ledger.results)
            return None
        attempt = running.pop(chance.randrange(len(running)))
        state = "failed" if fails(attempt) else "succeeded"
        ledger.finish(attempt, {"trials": [outcome(attempt, plan, state)]})


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., SweepStore]:
    """Drives a sweep of a plan in a store of its own."""
    stores = iter(range(1000))

    def run(plan: SweepPlan, seed: int, **how: Any) -> SweepStore:
        store = open_store(tmp_path / str(next(stores)), create=True)
        sweep = store.create_sweep("sweep", plan.spec.to_yaml())
        drive(sweep, plan, random.Random(seed), **how)
        return sweep

    return run


def proposals(sweep: SweepStore) -> list[tuple[str, str, Any, str]]:
    """What was proposed, on which results, with which notes: the first word on each trial."""
    found = sweep.proposals().drop_duplicates("trial").to_dict("records")
    return [
        (
            row["trial"],
            row["point"],
            None if row["seen"] is None else list(row["seen"]),
            row["system_attrs"],
        )
        for row in found
    ]


def trials(sweep: SweepStore) -> dict[str, tuple[Any, ...]]:
    columns = ["state", "score", "reused_trial", "key"]
    return {
        row["trial"]: tuple(str(row[column]) for column in columns)
        for row in sweep.trials().to_dict("records")
    }


@pytest.mark.parametrize("sampler", ["grid", "random", "qmc", "tpe", "nsga2"])
def test_kills_and_the_order_of_finishing_change_no_proposal(run, sampler: str) -> None:
    plan = plan_of({"sampler": sampler, "trials": 12, "parallel": 3, "seed": 5})
    fails = lambda attempt: attempt.number in (2, 7)  # noqa: E731
    calm = run(plan, 0, fails=fails)
    for seed in (1, 2):
        stormy = run(plan, seed, kill=0.12, fails=fails)
        assert proposals(stormy) == proposals(calm)
        assert trials(stormy) == trials(calm)


def test_a_gp_with_two_objectives_and_a_constraint_survives_kills(run) -> None:
    objective = [{"maximize": "easy-vqa.balanced_accuracy"}, {"maximize": "sparsity"}]
    plan = plan_of(
        {"sampler": "gp", "trials": 9, "parallel": 2},
        PLANE,
        objective=objective,
        constraints=["density >= 0.4"],
    )
    calm, stormy = run(plan, 0), run(plan, 1, kill=0.1)
    assert proposals(stormy) == proposals(calm)
    assert all(json.loads(values)["sparsity"] <= 0.6 for values in calm.trials()["objectives"])


def test_a_proposal_sees_exactly_the_trials_before_its_window(run) -> None:
    plan = plan_of({"sampler": "tpe", "trials": 9, "parallel": 2, "window": 3})
    for number, (_, _, seen, _) in enumerate(proposals(run(plan, 4))):
        assert seen == [f"t{n:03d}" for n in range(max(0, number - 2))]


def test_an_asynchronous_search_sees_whatever_has_finished(run) -> None:
    plan = plan_of({"sampler": "tpe", "trials": 9, "parallel": 4, "asynchronous": True})
    orders = {
        json.dumps([seen for _, _, seen, _ in proposals(run(plan, seed))]) for seed in range(4)
    }
    assert len(orders) > 1


DECIDED = {"stop_when": {"regret_points": 3.0, "confidence": 0.8}, "seed": 1}


@pytest.mark.parametrize("sampler", ["map", "random"])
def test_a_decided_sweep_ends_alike_after_kills_and_in_any_order_of_finishing(
    run, sampler: str
) -> None:
    plan = plan_of({"sampler": sampler, "parallel": 2, "trials": 18} | DECIDED)
    fails = lambda attempt: attempt.number == 2  # noqa: E731
    calm = run(plan, 0, fails=fails)
    assert 4 < len(calm.trials()) < 17
    for seed in (1, 2):
        stormy = run(plan, seed, kill=0.15, fails=fails)
        assert proposals(stormy) == proposals(calm)
        assert trials(stormy) == trials(calm)


def test_a_decision_rests_on_the_trials_before_the_window_alone(run) -> None:
    plan = plan_of({"sampler": "random", "parallel": 2, "window": 5, "trials": 18} | DECIDED)
    sweep = run(plan, 3)
    ledger = Ledger(sweep, plan, epoch=1000)
    decision = ledger.decision
    assert decision is not None and ledger.is_complete and ledger.next() == "finished"
    assert decision.results == len(sweep.trials()) - 4
    assert set(decision.sure) == {"0.4", "0.5"} and min(decision.sure.values()) >= 0.8
    sweep.event("finished", decision.to_row(), epoch=1000)
    said = sweep.status().why
    assert said is not None and f"decided by the first {decision.results}: 0.4 (" in said


def test_no_sweep_ends_while_a_line_is_undecided(run) -> None:
    sure = {"stop_when": {"regret_points": 0.001, "confidence": 0.9999}}
    plan = plan_of({"sampler": "map", "parallel": 2, "trials": 12} | sure)
    sweep = run(plan, 0)
    assert len(sweep.trials()) == 12
    assert Ledger(sweep, plan, epoch=1000).decision is None


def test_a_decided_sweep_goes_on_when_its_rule_is_taken_back(run) -> None:
    plan = plan_of({"sampler": "map", "parallel": 2, "trials": 18} | DECIDED)
    sweep = run(plan, 0)
    search = plan.spec.search.model_copy(update={"stop_when": None})
    free = SweepPlan(
        plan.spec.model_copy(update={"search": search}), plan.inventory, plan.fingerprint
    )
    assert free.spec.identity == plan.spec.identity
    before = proposals(sweep)
    drive(sweep, free, random.Random(0))
    assert len(proposals(sweep)) > len(before) and proposals(sweep)[: len(before)] == before


def test_the_map_finds_the_best_of_every_line_before_the_grid_is_half_done(run) -> None:
    plan = plan_of({"sampler": "map", "parallel": 1, "trials": 8})
    whole = _best_of_lines(run(plan_of({"sampler": "grid", "parallel": 1}), 0))
    for line, score in _best_of_lines(run(plan, 0)).items():
        assert whole[line] - score < 0.01


def _best_of_lines(sweep: SweepStore) -> dict[str, float]:
    found = sweep.trials()
    budgets = [json.loads(point)["budget"] for point in found["point"]]
    best: dict[str, float] = found.groupby(budgets)["score"].max().to_dict()
    assert set(best) == {"0.4", "0.5"}
    return best


TWICE = {
    "space": {
        "prune.method": {"choices": ["wanda", "sparsegpt"]},
        "prune.dampening": {"choices": [0.01, 0.1]},
        "vision_sparsity": 0.5,
        "language_sparsity": {"choices": [0.4, 0.6]},
    }
}


@pytest.mark.parametrize("sampler", ["grid", "qmc", "random"])
def test_points_that_come_to_one_trial_run_once_and_are_reused(run, sampler: str) -> None:
    plan = plan_of({"sampler": sampler, "trials": 8, "parallel": 2}, TWICE)
    sweep = run(plan, 3)
    found = sweep.trials()
    assert len(found) == 8 and found["key"].nunique() == 6
    repeats = found[found["state"] == "reused"].set_index("trial")
    assert len(repeats) == 2 and (repeats["total_seconds"] == 0).all()
    for _, row in repeats.iterrows():
        original = found.set_index("trial").loc[row["reused_trial"]]
        assert (row["key"], row["score"]) == (original["key"], original["score"])
        assert row["point"] != original["point"]
        assert "wanda" in row["point"]
    assert trials(run(plan, 5, kill=0.15)) == trials(sweep)


def test_trials_counts_what_runs_and_repeats_come_on_top(run) -> None:
    plan = plan_of({"sampler": "grid", "trials": 3, "parallel": 1}, TWICE)
    assert list(run(plan, 0).trials()["state"]) == ["succeeded"] * 2 + ["reused"] * 2 + [
        "succeeded"
    ]


def test_a_point_that_is_a_baseline_reuses_it(run) -> None:
    space = {"space": {"vision_sparsity": {"choices": [0, 0.5]}, "language_sparsity": 0}}
    plan = plan_of({"sampler": "grid", "trials": 2}, space, baselines=["dense_repaired"])
    found = run(plan, 0).trials().set_index("trial")
    assert found.loc["t000", "reused_trial"] == "dense-repaired"
    assert list(found["state"]) == ["succeeded", "reused", "succeeded"]


def test_repeats_of_a_failed_trial_follow_it_when_it_is_redone(run) -> None:
    plan = plan_of({"sampler": "grid", "trials": 8, "parallel": 2}, TWICE)
    sweep = run(plan, 0, fails=lambda attempt: attempt.number == 0)
    before = proposals(sweep)
    repeat = sweep.trials().query("reused_trial == 't000'").iloc[0]
    assert repeat["state"] == "failed" and "the same trial as t000" in repeat["error"]
    drive(sweep, plan, random.Random(1), redo=Redo(all=True))
    found = sweep.trials().set_index("trial")
    assert found.loc["t000", "state"] == "succeeded"
    assert found.loc[repeat["trial"], "state"] == "reused"
    assert proposals(sweep) == before


def test_replicates_run_each_point_with_seeds_of_its_own(run) -> None:
    plan = plan_of({"sampler": "tpe", "trials": 9, "parallel": 2}, LINE, replicates=3)
    sweep = run(plan, 0)
    points = [json.loads(point) for point in sweep.trials()["point"]]
    assert [point.pop("replicate") for point in points] == ["0", "1", "2"] * 3
    assert points[0] == points[1] == points[2] != points[3]
    specs = [plan.trial(point | {"replicate": run}) for point in points[:1] for run in "012"]
    assert len({spec.key for spec in specs}) == 3
    for number, spec in enumerate(specs):
        assert spec.repair is not None
        seeds = (spec.calibration.seed, spec.repair.seed, spec.repair.order_seed)
        assert seeds == (number,) * 3
        assert spec.repair.data.seed == 0
    assert trials(run(plan, 5, kill=0.15)) == trials(sweep)


def test_repeats_of_replicated_points_are_reused_run_by_run(run) -> None:
    plan = plan_of({"sampler": "grid", "parallel": 2}, TWICE, replicates=2)
    found = run(plan, 0).trials()
    assert (len(found), found["key"].nunique()) == (16, 12)
    for _, row in found[found["state"] == "reused"].iterrows():
        assert row["number"] % 2 == int(row["reused_trial"][1:]) % 2


STOPPING = {"rungs": [0, 10, 20], "reduction": 2}


def climb(attempt: Attempt, step: int) -> float:
    """How a trial stands at a rung: at first in another order than in the end."""
    mixed = random.Random(attempt.spec.key).random()
    return score(attempt) - 0.3 * mixed * (1 - step / 30)


def drive_with_rungs(
    sweep: SweepStore, plan: SweepPlan, chance: random.Random, kill: float = 0.0
) -> None:
    """As `drive`, with trials that report rungs, side by side in an order of chance."""
    ledger = Ledger(sweep, plan, epoch=len(sweep.events()) + 1)
    running: list[tuple[Attempt, list[int]]] = []
    while True:
        if chance.random() < kill:
            return drive_with_rungs(sweep, plan, chance, kill * 0.9)
        found = ledger.next() if len(running) < plan.spec.search.parallel else "wait"
        if isinstance(found, Attempt):
            running.append((found, list(found.spec.rungs)))
            continue
        if found == "finished" and not running:
            return None
        place = chance.randrange(len(running))
        attempt, rungs = running[place]
        row = outcome(attempt, plan)
        if rungs:
            step = rungs.pop(0)
            value = climb(attempt, step)
            at = {"easy-vqa.balanced_accuracy": value}
            if not ledger.reach(attempt, Progress(stage="rung", step=step, rung=at)):
                continue
            if chance.random() < kill:  # told to stop, and nothing more was written
                return drive_with_rungs(sweep, plan, chance, kill * 0.9)
            row |= {"state": "stopped", "score": None, "objectives": at, "stopped_step": step}
        del running[place]
        ledger.finish(attempt, {"trials": [row]})


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_kills_and_the_order_of_reports_change_nobody_who_stops(
    tmp_path: Path, sampler: str
) -> None:
    search = {"sampler": sampler, "trials": 14, "parallel": 3, "window": 4}
    plan = plan_of(search, PLANE, early_stopping=STOPPING)
    found = []
    for seed, kill in ((0, 0.0), (1, 0.0), (2, 0.06), (3, 0.06)):
        store = open_store(tmp_path / str(seed), create=True)
        sweep = store.create_sweep("sweep", plan.spec.to_yaml())
        drive_with_rungs(sweep, plan, random.Random(seed), kill)
        rungs = sweep.read("rungs").sort_by([("number", "ascending"), ("step", "ascending")])
        columns = ["number", "step", "value", "threshold", "stopped"]
        found.append((proposals(sweep), trials(sweep), rungs.select(columns).to_pylist()))
    assert all(one == found[0] for one in found[1:])
    states = [state for state, *_ in found[0][1].values()]
    assert {"stopped", "succeeded"} == set(states)
    for row in found[0][2]:
        before = [
            other["value"]
            for other in found[0][2]
            if other["step"] == row["step"] and other["number"] <= row["number"] - 4
        ]
        beaten_by = sum(value > row["value"] for value in before)
        assert row["stopped"] == (len(before) >= 2 and beaten_by >= len(before) // 2)


def test_without_early_stopping_no_rung_is_asked_for(run) -> None:
    sweep = run(plan_of({"sampler": "random", "trials": 2}, PLANE), 0)
    assert sweep.read("rungs").num_rows == 0


def test_baselines_are_not_stopped() -> None:
    plan = plan_of({}, LINE, baselines=["dense_repaired"], early_stopping=STOPPING)
    assert plan.baseline("dense-repaired").rungs == ()
    trial = plan.trial({"budget": "0.4", "vision_sparsity": "0.4"})
    assert trial.rungs == (0, 10, 20)
    without = plan_of({}, LINE, baselines=["dense_repaired"])
    assert without.trial({"budget": "0.4", "vision_sparsity": "0.4"}).key == trial.key
