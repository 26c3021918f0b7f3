"""What trials share is made once, and changes nothing: with it or without, results are equal."""

import errno
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import obstore
import pytest
import torch

from ressa import trial
from ressa.errors import DamagedStage, FullStore, TrialError
from ressa.kept import Kept
from ressa.keys import FRESH_OUTCOME, stages_of
from ressa.records import Outcome, TrialSpec
from ressa.spec import spec_from_mapping
from ressa.stages import Stages
from ressa.store import open_store
from ressa.store.stages import StageWriter
from ressa.sweep.plan import SweepPlan, make_plan
from ressa.sweep.shared import versions_of

GRID = {
    "ressa": 1,
    "model": "pocket-llava",
    "space": {
        "vision_sparsity": {"choices": ["0.5", "2:4"]},
        "language_sparsity": {"choices": ["0.4", "0.6"]},
    },
    "prune": {"calibration": {"samples": 16}},
    "repair": {"steps": 2, "batch_size": 16, "data": {"samples": 32}},
    "evaluate": [{"samples": 40}],
}


def plan_of(**changes: object) -> SweepPlan:
    return make_plan(spec_from_mapping(GRID | changes).spec)


def trials_of(plan: SweepPlan) -> list[TrialSpec]:
    dimensions = {d.name: d.values or () for d in plan.spec.dimensions}
    points = [{}]
    for name, values in dimensions.items():
        points = [point | {name: value} for point in points for value in values]
    return [plan.trial(point) for point in points]


def run(spec: TrialSpec, store: Path, **how: object) -> Outcome:
    steps = trial.run(spec, str(store), **how)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


TIMES = ("seconds", "examples_per_second", "peak_memory_gib")


def without_times(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TrialSpec], list[Outcome]]:
    """Two by two trials, one after the other in one process and store; two are repaired."""
    store, kept = tmp_path_factory.mktemp("shared"), Kept()
    trials = trials_of(plan_of())
    trials[:2] = [replace(one, repair=None) for one in trials[:2]]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    outcomes = [run(one, store, kept=kept) for one in trials]
    torch.set_num_threads(threads)
    return store, trials, outcomes


def test_a_grid_calibrates_once_and_prunes_each_tower_once_a_sparsity(grid):
    *_, outcomes = grid
    made = Counter(
        name.split("/")[0] for outcome in outcomes for name in outcome.summary["stages_computed"]
    )
    assert made == {
        "dense": 1, "calibration": 2, "vision-mask": 2, "language-mask": 2, "teacher": 1
    }  # fmt: skip
    found = sum(len(outcome.summary["stages_reused"]) for outcome in outcomes)
    assert found + made.total() == 2 * 5 + 2 * 6


def test_the_keys_are_known_before_a_trial_runs(grid):
    _, trials, outcomes = grid
    for spec, outcome in zip(trials, outcomes, strict=True):
        stages = stages_of(spec, versions_of(spec), plan_of().inventory)
        *known, last = (f"{stage}/{key}" for stage, key in stages)
        summary = outcome.summary
        assert {*summary["stages_computed"], *summary["stages_reused"]} == set(known)
        assert last == f"outcome/{spec.key}"


def test_a_trial_that_shares_nothing_comes_to_the_same_bits(grid, tmp_path):
    _, trials, outcomes = grid
    shared = outcomes[-1]
    assert not shared.summary["stages_computed"], "it made nothing that others had made"
    alone = run(trials[-1], tmp_path, fresh=True)
    assert len(alone.summary["stages_computed"]) == 6
    assert not alone.summary["stages_reused"]
    assert alone.summary["mask_hash"] == shared.summary["mask_hash"]
    assert alone.summary["merge_gap"] == shared.summary["merge_gap"]
    assert alone.scores == shared.scores
    assert alone.answers == shared.answers
    for rows in ("layers", "curves"):
        assert without_times(getattr(alone, rows)) == without_times(getattr(shared, rows))


def test_a_second_trial_of_the_same_key_finds_the_outcome(grid):
    store, trials, outcomes = grid
    again = run(trials[0], store)
    assert again.summary["stages_reused"] == [f"outcome/{trials[0].key}"]
    assert again.scores == outcomes[0].scores


def test_a_trial_that_shares_nothing_leaves_nothing_but_its_outcome(grid, tmp_path):
    _, trials, _ = grid
    spec = replace(trials[0], repair=None)
    run(spec, tmp_path, fresh=True)
    assert [path.name for path in (tmp_path / "stages").iterdir()] == [FRESH_OUTCOME]
    again = run(spec, tmp_path, fresh=True)  # takes the place of what was there
    files = open_store(tmp_path).stages.get(FRESH_OUTCOME, spec.key)
    assert files == {"content": again.to_json()}


@pytest.mark.parametrize("full", ["ressa-fresh-", "store"])
def test_a_machines_full_temporary_folder_is_not_a_full_store(tmp_path, monkeypatch, full):
    put = obstore.put
    (tmp_path / "store").mkdir()

    def out_of_space(store, path, content, **how):
        if full in str(store.prefix):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return put(store, path, content, **how)

    monkeypatch.setattr(obstore, "put", out_of_space)
    spec = replace(trials_of(plan_of(evaluate=[{"samples": 2}]))[0], repair=None)
    with pytest.raises(TrialError if full == "ressa-fresh-" else FullStore) as end:
        run(spec, tmp_path / "store", fresh=True)
    assert getattr(end.value, "failure", "node") == "node"


def test_what_a_process_keeps_is_not_kept_for_another_model(tmp_path):
    kept, models = Kept(), ("pocket-blip2", "pocket-llava", "pocket-blip2")
    found = []
    for number, model in enumerate(models):
        (tmp_path / str(number)).mkdir()
        spec = trials_of(plan_of(model=model, repair={"method": "none"}))[0]
        found.append(run(spec, tmp_path / str(number), kept=kept).scores)
    assert found[0] == found[2] != found[1]


def test_a_stage_that_is_removed_as_it_is_made_is_no_empty_one(tmp_path, monkeypatch):
    stages = Stages(open_store(tmp_path, create=True))
    finish = StageWriter.finish

    def finish_in_vain(writer):
        finish(writer)
        stages.store.remove("teacher", "key")

    monkeypatch.setattr(StageWriter, "finish", finish_in_vain)
    with pytest.raises(DamagedStage, match="removed as it was made"):
        next(stages.once_in_parts("teacher", "key", lambda: [b"one", b"two"]))
