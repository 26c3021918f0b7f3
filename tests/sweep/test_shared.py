"""Stages of a store: who needs them, which may go, and what a plan says of them beforehand."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from ressa.keys import stages_of
from ressa.records import TrialSpec
from ressa.spec import SweepSpec, spec_from_mapping
from ressa.store import Store, SweepStore, open_store
from ressa.sweep import shared
from ressa.sweep.ledger import Attempt, Ledger
from ressa.sweep.plan import SweepPlan, make_plan
from ressa.sweep.preview import preview
from ressa.sweep.shared import collect, needs_of, uses_of, versions_of, work_rows

NOW = timedelta(0)


def spec_of(name: str, store: Path, **changes: object) -> SweepSpec:
    content = {
        "ressa": 1,
        "name": name,
        "model": "pocket-llava",
        "space": {
            "vision_sparsity": {"choices": ["0.2", "0.3", "0.4"]},
            "language_sparsity": {"choices": ["0.5", "0.6"]},
        },
        "prune": {"method": "magnitude"},
        "search": {"sampler": "grid", "trials": 6},
        "repair": {"method": "none"},
        "store": str(store),
    }
    return spec_from_mapping(content | changes).spec


def keys_of(spec: SweepSpec, point: dict[str, str]) -> list[str]:
    plan = make_plan(spec)
    trial = plan.trial(point)
    return [f"{stage}/{key}" for stage, key in stages_of(trial, versions_of(trial), plan.inventory)]


def begin(store: Store, spec: SweepSpec) -> SweepStore:
    sweep = store.create_sweep(spec.name, spec.to_yaml())
    sweep.event("started", {"planned": 6}, epoch=1)
    return sweep


def fill(store: Store, names: list[str]) -> None:
    for name in names:
        store.stages.put(*name.split("/"), {"content": b"c" * 1000})


def left(store: Store) -> set[str]:
    return {stage.name for stage in store.stages.inventory()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store", create=True)


POINT = {"vision_sparsity": "0.2", "language_sparsity": "0.5"}


def test_a_plan_counts_what_is_shared_and_what_the_store_holds(store: Store) -> None:
    spec = spec_of("one", Path(store.location))
    said = [text for topic, text in preview(spec).facts if topic == "shared work"]
    assert said == [  # in the order made
        "the dense model's scores: made once, used 7 times",
        "calibration on 128 questions: made 2 times, used 14 times",
        "language masks: made 3 times, used 7 times",
        "vision masks: made 4 times, used 7 times",
    ]
    dense, vision, *_ = keys_of(spec, POINT)
    fill(store, [dense, vision])
    assert any("holds: 1 calibration, 1 dense" in text for _, text in preview(spec).facts)


def test_what_an_unfinished_sweep_may_read_stays(store: Store) -> None:
    spec = spec_of("one", Path(store.location))
    needed = keys_of(spec, POINT)
    fill(store, [*needed, "vision-mask/strange", "outcome/strange"])
    begin(store, spec)
    assert {use.stored.name for use in collect(store, older_than=NOW, dry_run=True).removed} == {
        "vision-mask/strange",
        "outcome/strange",
    }
    assert left(store) == {*needed, "vision-mask/strange", "outcome/strange"}
    assert len(collect(store, older_than=NOW).removed) == 2
    assert left(store) == set(needed)


def test_what_is_in_nobodys_way_goes_beside_a_sweep_whose_baselines_are_proposed(
    store: Store,
) -> None:
    stopping = {"rungs": [50], "reduction": 2}
    spec = spec_of("one", Path(store.location), early_stopping=stopping, repair={"steps": 100})
    plan = make_plan(spec)
    sweep = begin(store, spec)
    for _ in plan.baselines:
        assert isinstance(Ledger(sweep, plan, epoch=1).next(), Attempt)
    assert len(sweep.proposals()) == 2
    rung = f"rung/{plan.trial(POINT).rung_key(50)}"
    fill(store, [rung, "rung/strange", "vision-mask/strange"])
    done = collect(store, older_than=NOW)
    assert not done.unclear
    assert left(store) == {rung}


def test_what_a_finished_sweep_used_goes_when_it_is_old_enough(store: Store) -> None:
    spec = spec_of("one", Path(store.location))
    needed = keys_of(spec, POINT)
    fill(store, needed)
    sweep = begin(store, spec)
    sweep.event("finished", epoch=1)
    assert not collect(store, older_than=timedelta(hours=1)).removed
    assert {use.stored.name for use in collect(store, older_than=NOW).removed} == set(needed)
    assert not left(store)


def test_a_checkpoint_stays_while_its_trial_is_not_finished(store: Store) -> None:
    spec = spec_of("one", Path(store.location))
    trial = make_plan(spec).trial(POINT)
    fill(store, [f"repair-checkpoint/{trial.key}-00000005", "repair-checkpoint/f00-00000005"])
    begin(store, spec)
    (gone,) = collect(store, older_than=NOW).removed
    assert gone.stored.key == "f00-00000005"


def test_a_sweep_that_begins_while_stages_are_removed_keeps_its_own(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is proposed after the first look, and has opened a stage that is then hidden."""
    spec = spec_of("one", Path(store.location))
    needed = keys_of(spec, POINT)
    fill(store, [*needed, "vision-mask/strange"])
    opened = store.stages.open(*needed[0].split("/"))
    looks = []

    def look(store: Store) -> shared.Needs:
        if looks:
            begin(store, spec)
        looks.append(store)
        return needs_of(store)

    monkeypatch.setattr(shared, "needs_of", look)
    assert [use.stored.name for use in collect(store, older_than=NOW).removed] == [
        "vision-mask/strange"
    ]
    assert left(store) == set(needed)
    assert store.stages.exists(*needed[0].split("/")), "it is there again"
    assert opened is not None and opened["content"] == b"c" * 1000


LARGE = {
    "space": {
        "vision_sparsity": {"low": 0.1, "high": 0.6, "step": 0.001},
        "language_sparsity": {"low": 0.1, "high": 0.2, "step": 0.001},
    }
}  # 50,601 points


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every trial that is worked out from its point."""
    points: list[object] = []
    trial = SweepPlan.trial

    def noted(plan: SweepPlan, point: Mapping[str, str]) -> TrialSpec:
        points.append(point)
        return trial(plan, point)

    monkeypatch.setattr(SweepPlan, "trial", noted)
    return points


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe"])
def test_of_a_large_space_only_what_can_come_is_worked_out(
    store: Store, made: list[object], sampler: str
) -> None:
    spec = spec_of("one", Path(store.location), search={"sampler": sampler, "trials": 10}, **LARGE)
    begin(store, spec)
    needs = needs_of(store)
    assert len(needs.of_trials) == len(spec.baselines) + 10 * (sampler != "tpe")
    assert len(made) < 50


def test_a_sampler_that_looks_at_no_result_needs_what_it_will_propose(tmp_path: Path) -> None:
    """As a driver goes through it, from the first trial to the last."""
    store = open_store(tmp_path / "store", create=True)
    search = {"sampler": "random", "trials": 4, "parallel": 1, "seed": 3}
    spec = spec_of("one", Path(store.location), search=search, replicates=2)
    sweep = begin(store, spec)
    expected = set(needs_of(store).of_trials)
    ledger = Ledger(sweep, make_plan(spec), epoch=1)
    started = set()
    while isinstance(attempt := ledger.next(), Attempt):
        started.add(attempt.spec.key)
        row = {"state": "failed", "failure_class": "code", "error": "no", "role": attempt.role}
        ledger.finish(attempt, {"trials": [row]})
    assert started == expected


def test_a_plan_works_each_point_out_once(store: Store, made: list[object]) -> None:
    resources = {"gpus_per_worker": 1}
    found = preview(spec_of("one", Path(store.location), resources=resources))
    rows = len(found.points)
    assert len(made) == 2 * rows, "for the table, and for all that is said of the trials"
    assert "estimate" in dict(found.facts)


def test_of_a_sweep_that_cannot_be_understood_everything_stays(store: Store) -> None:
    spec = spec_of("one", Path(store.location))
    lost = spec.model_copy(update={"model": spec.model.model_copy(update={"id": "no-such-model"})})
    fill(store, ["vision-mask/strange"])
    begin(store, lost)
    assert not collect(store, older_than=NOW).removed
    assert list(needs_of(store).unclear) == ["one"]


def test_uses_and_shared_work_are_read_from_the_rows(store: Store) -> None:
    spec = spec_of("one", Path(store.location))
    sweep = begin(store, spec)
    fill(store, ["dense/a"])
    for number, how in enumerate(("computed", "reused")):
        row = {"state": "succeeded", "role": "search", "number": number}
        sweep.commit("trials", [row | {f"stages_{how}": ["dense/a"]}], epoch=1, trial=f"t{number}")
    (use,) = uses_of(store, needs_of(store))
    assert use.used_by == ("one",)
    assert work_rows(sweep) == [{"stage": "dense", "made": 1, "found": 1}]
