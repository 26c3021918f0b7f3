"""What is confirmed: the best, with fresh seeds and unseen pictures, beside what it is held to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ressa.errors import ConflictError, NotFoundError, SpecError
from ressa.landscape import confirmed, judge
from ressa.landscape.report import gather
from ressa.sparsity import zeros_per_row
from ressa.spec import spec_from_mapping, spec_from_yaml
from ressa.spec.check import check_spec
from ressa.store import SweepStore, open_store
from ressa.sweep.confirm import (
    check_unseen,
    confirmation,
    confirmations,
    further,
    rows,
    searched,
)
from ressa.sweep.ledger import Attempt, Ledger
from ressa.sweep.plan import make_plan

CONTENT: dict[str, Any] = {
    "ressa": 1,
    "name": "searched",
    "model": "pocket-blip2",
    "budget": [0.5, 0.6],
    "space": {"vision_sparsity": {"choices": ["0.3", "0.4", "0.5", "2:4"]}},
    "replicates": 2,
    "repair": {"steps": 5, "seed": 3},
    "search": {"parallel": 2},
    "confirm": [{"task": "easy-vqa", "samples": 50}],
}
SCORES = {"0.3": 0.7, "0.4": 0.9, "0.5": 0.8, "2:4": 0.6}


def searched_sweep(folder: Path, **content: Any) -> SweepStore:
    """A sweep whose trials all ended, scored as `SCORES` says of their vision sparsity."""
    spec = spec_from_mapping(CONTENT | content).spec
    plan = make_plan(spec)
    sweep = open_store(folder, create=True).create_sweep("searched", spec.to_yaml())
    finish(sweep, plan, lambda point: SCORES[point["vision_sparsity"]])
    return sweep


def finish(sweep: SweepStore, plan: Any, score: Any) -> None:
    """Ends every trial of a sweep as its driver would, without running one."""
    ledger = Ledger(sweep, plan, epoch=1)
    while isinstance(attempt := ledger.next(), Attempt):
        budget = plan.budget_of(attempt.point) if attempt.point else None
        value = score(attempt.point) if attempt.point else 1.0
        row = {
            "role": attempt.role,
            "number": attempt.number,
            "state": "succeeded",
            "score": value,
            "score_pruned": value,
            "metric": "easy-vqa.balanced_accuracy",
            "objectives": {"easy-vqa.balanced_accuracy": value},
            "point": json.dumps(dict(attempt.point)),
            "budget": None if budget is None else float(budget),
            "total_seconds": 10.0,
            "evaluate_seconds": 2.0,
            "items": 2000,
        }
        zeros = 0
        for tower in ("vision", "language"):
            wanted, layers = attempt.spec.tower(tower), plan.inventory.tower(tower)
            counts = zeros_per_row(layers, wanted.target, counting=wanted.counting)
            zeros += sum(int(count.sum()) for count in counts)
            row |= {
                f"{tower}_target": str(wanted.target),
                f"{tower}_sparsity": float(wanted.target.sparsity),
                f"{tower}_zeros_requested": plan.zeros(attempt.spec, tower),
                f"{tower}_prunable": plan.inventory.prunable(tower),
            }
        row["sparsity"] = zeros / plan.inventory.prunable()
        ledger.finish(attempt, {"answers": answers(attempt, value), "trials": [row]})
    sweep.event("started", {"planned": ledger.planned}, epoch=1)
    sweep.event("finished", epoch=1)


def answers(attempt: Attempt, score: float) -> list[dict[str, Any]]:
    """Answers to 40 pictures, so many right as the score says, and a bit of chance by the seed."""
    draw = np.random.default_rng(int(attempt.spec.key[:8], 16))
    wrong = set(draw.permutation(40)[: round((1 - score) * 40) + int(draw.integers(0, 2))].tolist())
    about = {"task": "easy-vqa", "split": "test", "state": "pruned", "image": "real"}
    return [
        about
        | {
            "example_id": f"q{at}",
            "image_id": f"p{at}",
            "value": float(at not in wrong),
            "true_answer": "yes",
        }
        for at in range(40)
    ]


def test_the_best_of_each_line_run_again_beside_what_they_are_held_to(tmp_path: Path) -> None:
    sweep = searched_sweep(tmp_path)
    found = confirmation(sweep, top=1, per_line=True, seeds=3)
    shown = rows(found, make_plan(found.spec))
    assert [(row["why"], row["line"], row["vision"]) for row in shown] == [
        ("number 1 of its line", 0.5, "0.4"),
        ("number 1 of its line", 0.6, "0.4"),
        ("equal split", 0.5, "0.5"),
        ("language only", 0.5, "0"),
        ("equal split", 0.6, "0.6"),
        ("dense, repaired alike", 0.0, "0"),
    ]
    assert found.left_out == (
        "language only on 0.6: language sparsity is a fraction in [0, 1], got 1.050: budget 0.6 "
        "with vision 0 asks for more zeros than language has weights",
    )
    assert found.seconds == pytest.approx(10 + 2 * (50 / 2000 - 1))


def test_where_a_pattern_in_both_towers_is_best_it_is_the_equal_split(tmp_path: Path) -> None:
    space = {
        tower: {"choices": ["2:4", "0.4"]} for tower in ("vision_sparsity", "language_sparsity")
    }
    sweep = searched_sweep(tmp_path, space=space, budget=None)
    best = confirmation(sweep, top=4, per_line=False, seeds=3)
    shown = rows(best, make_plan(best.spec))
    equal = [row for row in shown if "equal split" in row["why"]]
    assert ("2:4", "2:4") in [(row["vision"], row["language"]) for row in equal]
    assert ("0.5", "0.5") not in [(row["vision"], row["language"]) for row in equal]


def test_the_equal_split_is_of_the_recipe_that_is_best(tmp_path: Path) -> None:
    space = {
        "vision_sparsity": {"choices": ["0.4", "0.5"]},
        "prune.method": {"choices": ["wanda", "magnitude"]},
    }
    spec = spec_from_mapping(CONTENT | {"space": space, "budget": [0.5], "replicates": 1}).spec
    sweep = open_store(tmp_path, create=True).create_sweep("searched", spec.to_yaml())
    first = {("0.4", "wanda"): 0.97, ("0.5", "magnitude"): 0.96}
    finish(
        sweep,
        make_plan(spec),
        lambda point: first.get((point["vision_sparsity"], point["prune.method"]), 0.5),
    )
    found = confirmation(sweep, top=2, per_line=True, seeds=3)
    shown = rows(found, make_plan(found.spec))
    assert [(row["why"], row["vision"], row["also"]) for row in shown] == [
        ("number 1 of its line", "0.4", "prune.method=wanda"),
        ("number 2 of its line, equal split", "0.5", "prune.method=magnitude"),
        ("equal split", "0.5", "prune.method=wanda"),
        ("language only", "0", "prune.method=wanda"),
        ("dense, repaired alike", "0", "prune.method=wanda"),
    ]
    made = sweep.store.create_sweep(
        found.spec.name, found.spec.model_copy(update={"store": "."}).to_yaml()
    )
    finish(made, make_plan(found.spec), lambda point: 0.7)
    verdicts = judge(confirmed([made]), margin=50, confidence=0.95)
    assert {one.also for one in verdicts} == {"prune.method=wanda"}


def test_seeds_and_pictures_are_such_as_no_search_saw(tmp_path: Path) -> None:
    sweep = searched_sweep(tmp_path)
    spec = confirmation(sweep, top=3, per_line=False, seeds=5).spec
    plan = make_plan(spec)
    trials = [
        plan.trial(point | {"replicate": str(run)}) for point in spec.points for run in (0, 4)
    ]
    assert {trial.calibration.seed for trial in trials} == {2, 6}
    assert {trial.repair.seed for trial in trials if trial.repair} == {5, 9}
    assert {trial.repair.order_seed for trial in trials if trial.repair} == {2, 6}
    assert {ref.split for trial in trials for ref in trial.evaluate} == {"test"}
    check_unseen(sweep, plan)


def test_a_sweep_that_ended_when_its_lines_were_decided_is_confirmed_too(tmp_path: Path) -> None:
    space = {"vision_sparsity": {"choices": ["0.3", "0.4", "0.5"]}}
    sweep = searched_sweep(tmp_path, space=space, search={"stop_when": {}, "trials": 1})
    spec = confirmation(sweep, top=1, per_line=True, seeds=2).spec
    assert spec.search.stop_when is None


def test_seeds_that_the_search_chose_from_are_not_used_again(tmp_path: Path) -> None:
    space = {"vision_sparsity": {"choices": ["0.4", "0.5"]}, "repair.seed": {"choices": [0, 7]}}
    sweep = searched_sweep(tmp_path, space=space, replicates=1)
    spec = confirmation(sweep, top=1, per_line=True, seeds=2).spec
    assert spec.repair.seed == 8
    assert all("repair.seed" not in point for point in spec.points or ())


def test_pictures_that_the_search_was_scored_on_are_refused(tmp_path: Path) -> None:
    sweep = searched_sweep(tmp_path)
    plan = make_plan(confirmation(sweep, top=1, per_line=True, seeds=2).spec)
    used = next(row for row in plan.data if row["purpose"] == "evaluate")
    sweep.commit("data", [used], epoch=1)
    with pytest.raises(SpecError, match="images with what searched was scored on"):
        check_unseen(sweep, plan)


def test_a_confirming_sweep_is_a_sweep_like_any_other(tmp_path: Path) -> None:
    sweep = searched_sweep(tmp_path)
    spec = confirmation(sweep, top=1, per_line=True, seeds=3).spec
    assert spec_from_yaml(spec.to_yaml()) == spec
    made = sweep.store.create_sweep(spec.name, spec.model_copy(update={"store": "."}).to_yaml())
    finish(made, make_plan(spec), lambda point: 0.5 + float(point["vision_sparsity"]) / 2)
    trials = made.trials()
    assert (trials["role"] == "confirm").sum() == 18
    assert Ledger(made, make_plan(spec), epoch=2).is_complete
    assert [one.name for one in confirmations(sweep)] == ["searched-confirm"]
    assert searched(made).name == "searched"
    with pytest.raises(SpecError, match="confirms searched already"):
        confirmation(made, top=1, per_line=False, seeds=1)


def test_verdicts_rest_on_all_confirmations_and_nothing_else(tmp_path: Path) -> None:
    sweep = searched_sweep(tmp_path)
    spec = confirmation(sweep, top=1, per_line=True, seeds=3).spec
    with pytest.raises(NotFoundError, match="nothing of searched was confirmed yet"):
        further(sweep, 2)
    made = sweep.store.create_sweep(spec.name, spec.model_copy(update={"store": "."}).to_yaml())
    with pytest.raises(ConflictError, match="finish it first"):
        further(sweep, 2)

    def score(point: dict[str, str]) -> float:
        return {"0.4": 0.9, "0.5": 0.9, "0.6": 0.5, "0": 0.2}[point["vision_sparsity"]]

    finish(made, make_plan(spec), score)
    again = further(sweep, 2)
    assert (again.name, again.replicates) == ("searched-confirm-2", 2)
    assert again.repair.seed == spec.repair.seed + 3
    second = sweep.store.create_sweep(again.name, again.model_copy(update={"store": "."}).to_yaml())
    finish(second, make_plan(again), score)
    found = confirmed(confirmations(sweep))
    assert {len(one.said) for one in found} == {5}
    half, language, worse = judge(found, margin=10, confidence=0.95)
    assert (half.line, half.answer, half.seeds) == (0.5, "yes", 5)
    assert (language.line, language.answer) == (0.5, "no")
    assert (worse.line, worse.answer, worse.against) == (0.6, "no", "40:75")
    for reported in (sweep, made):  # the report says them too
        said = gather(reported, confirming=confirmations(searched(reported)), margin=10)
        assert said["confirmed"]
        assert len(said["verdicts"]) == 3
        assert "on line 0.5: " in said["verdicts"][0]
        assert said["headline"].startswith("Confirmed with fresh seeds on the test split: ")
        assert ", 50.0 % of the prunable weights gone: 5 fresh seeds" in said["facts"][0][1]


def test_a_line_is_what_was_asked_where_rows_lose_the_floor_of_their_share(tmp_path: Path) -> None:
    sweep = searched_sweep(tmp_path, prune={"counting": "reference"}, replicates=1)
    assert sweep.trials()["sparsity"].nunique() > 3, "or nothing came out differently"
    spec = (found := confirmation(sweep, top=1, per_line=True, seeds=3)).spec
    assert [one.line for one in found.candidates] == [0.5, 0.6, 0.5, 0.5, 0.6, 0]
    made = sweep.store.create_sweep(spec.name, spec.model_copy(update={"store": "."}).to_yaml())
    finish(made, make_plan(spec), lambda point: 0.5)
    verdicts = judge(confirmed([made]), margin=10, confidence=0.95)
    assert [one.line for one in verdicts] == [0.5, 0.5, 0.6]


def test_confirmations_of_long_names_are_told_apart(tmp_path: Path) -> None:
    store = open_store(tmp_path, create=True)
    sweeps = []
    for name in ("s" * 63 + "1", "s" * 63 + "2"):
        spec = spec_from_mapping(CONTENT | {"name": name, "replicates": 1}).spec
        sweep = store.create_sweep(name, spec.to_yaml())
        finish(sweep, make_plan(spec), lambda point: SCORES[point["vision_sparsity"]])
        spec = confirmation(sweep, top=1, per_line=True, seeds=2).spec
        store.create_sweep(spec.name, spec.to_yaml())
        sweeps.append(sweep)
    first, second = map(confirmations, sweeps)
    assert (len(first), len(second)) == (1, 1)
    assert first[0].name != second[0].name


def test_confirmations_that_an_earlier_ressa_named_are_gone_on_with(tmp_path: Path) -> None:
    name, store = "s" * 60, open_store(tmp_path, create=True)
    spec = spec_from_mapping(CONTENT | {"name": name, "replicates": 1}).spec
    sweep = store.create_sweep(name, spec.to_yaml())
    finish(sweep, make_plan(spec), lambda point: SCORES[point["vision_sparsity"]])
    asked = {"top": 1, "per_line": True, "seeds": 2}
    made = confirmation(sweep, **asked).spec.model_copy(update={"name": f"{name[:50]}-confirm"})
    finish(store.create_sweep(made.name, made.to_yaml()), make_plan(made), lambda point: 0.5)
    assert [one.name for one in confirmations(sweep)] == [made.name]
    assert confirmation(sweep, **asked).spec.name == made.name, "no second look at the test split"
    more = further(sweep, 2)
    store.create_sweep(more.name, more.to_yaml())
    assert [one.name for one in confirmations(sweep)] == [made.name, more.name]


def test_what_was_allowed_when_a_sweep_began_does_not_forbid_its_confirmation(
    tmp_path: Path,
) -> None:
    """float16 with a repair that does not scale the loss is refused in files by now."""
    spec = spec_from_mapping(CONTENT).spec
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"dtype": "float16"})})
    assert list(check_spec(spec)), "if it is allowed again, this test says nothing"
    sweep = open_store(tmp_path, create=True).create_sweep("searched", spec.to_yaml())
    finish(sweep, make_plan(spec), lambda point: SCORES[point["vision_sparsity"]])
    assert confirmation(sweep, top=1, per_line=True, seeds=2).spec.model.dtype == "float16"


def test_what_cannot_be_confirmed_is_said(tmp_path: Path) -> None:
    free = {"vision_sparsity": {"choices": ["0.3", "0.4"]}, "language_sparsity": "0.5"}
    sweep = searched_sweep(tmp_path, space=free, budget=None)
    with pytest.raises(SpecError, match="no lines of equal size"):
        confirmation(sweep, top=1, per_line=True, seeds=3)
    found = confirmation(sweep, top=1, per_line=False, seeds=3)
    shown = rows(found, make_plan(found.spec))
    assert [row["why"] for row in shown][:2] == ["among the best", "equal split"]
    equal = shown[1]["vision_sparsity"], shown[1]["language_sparsity"]
    assert equal == pytest.approx([shown[0]["line"]] * 2, abs=1e-4)
    untested = searched_sweep(tmp_path / "untested", confirm=[])
    with pytest.raises(SpecError, match="has no test examples"):
        confirmation(untested, top=1, per_line=False, seeds=3)
    new = open_store(tmp_path / "new", create=True).create_sweep(
        "searched", spec_from_mapping(CONTENT).spec.to_yaml()
    )
    with pytest.raises(SpecError, match="no trial of searched has succeeded yet"):
        confirmation(new, top=1, per_line=False, seeds=3)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("bleu4", r"bleu4 is no mean over items.*ressa best"),
        ("likelihood", r"of a likelihood a verdict's margin in points says nothing\..*ressa best"),
    ],
)
def test_an_objective_that_no_verdict_can_be_about_is_refused_before_it_runs(
    tmp_path: Path, metric: str, message: str
) -> None:
    sweep = searched_sweep(tmp_path)
    for row in sweep.read("trials").to_pylist():
        row["metric"] = f"easy-vqa.{metric}"
        sweep.commit("trials", [row], trial=row["trial"], epoch=1, attempt=row["attempt"])
    with pytest.raises(SpecError, match=message):
        confirmation(sweep, top=1, per_line=True, seeds=3)


def test_the_best_is_by_its_mean_and_not_its_luckiest_run(tmp_path: Path) -> None:
    spec = spec_from_mapping(CONTENT).spec
    sweep = open_store(tmp_path, create=True).create_sweep("searched", spec.to_yaml())
    runs = {"0.3": (0.99, 0.5), "0.4": (0.9, 0.8), "0.5": (0.7, 0.7), "2:4": (0.6, 0.6)}
    finish(sweep, make_plan(spec), lambda p: runs[p["vision_sparsity"]][int(p["replicate"])])
    best, *_ = confirmation(sweep, top=1, per_line=True, seeds=2).candidates
    assert (best.point["vision_sparsity"], best.score) == ("0.4", pytest.approx(0.85))


def test_without_budgets_the_equal_split_has_its_leaders_size(tmp_path: Path) -> None:
    free = {
        "vision_sparsity": {"choices": ["0.3", "0.4"]},
        "language_sparsity": "0.5",
        "repair.steps": {"choices": [5, 6]},
    }
    spec = spec_from_mapping(CONTENT | {"space": free, "budget": None, "replicates": 1}).spec
    sweep = open_store(tmp_path, create=True).create_sweep("searched", spec.to_yaml())

    def score(point: dict[str, str]) -> float:
        return 0.5 + (point["repair.steps"] == "6") / 10 + float(point["vision_sparsity"]) / 10

    finish(sweep, make_plan(spec), score)
    found = confirmation(sweep, top=3, per_line=False, seeds=2)
    shown = rows(found, make_plan(found.spec))
    equal = next(row for row in shown if row["why"] == "equal split")
    assert equal["vision_sparsity"] == pytest.approx(equal["line"], abs=1e-4)
    assert shown[-1]["also"] == "repair.steps=6"
