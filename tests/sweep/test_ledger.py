"""Which attempt comes next: what is tried again, how often, and what a new driver makes of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ressa.catalog import MODELS
from ressa.cli.app import client
from ressa.cli.running import board
from ressa.errors import ConflictError, NotFoundError, SpecError
from ressa.models import identity
from ressa.records import Progress
from ressa.spec import spec_from_mapping
from ressa.store import SweepStore, open_store
from ressa.sweep.driver import _check_contents, current_spec, resume
from ressa.sweep.ledger import Attempt, Ledger, Redo
from ressa.sweep.plan import SweepPlan, make_plan
from ressa.sweep.rows import reused

CONTENT = {
    "ressa": 1,
    "name": "small",
    "model": "pocket-blip2",
    "space": {"vision_sparsity": {"choices": ["0.2", "0.3", "0.4"]}, "language_sparsity": "0.5"},
    "repair": {"batch_size": 32, "steps": 20},
    "baselines": [],
    "search": {"parallel": 2},
}


class Sweep:
    """A stored sweep whose drivers come and go; no trial is really run."""

    def __init__(self, folder: Path, **content: Any) -> None:
        spec = spec_from_mapping(CONTENT | content).spec
        self.plan: SweepPlan = make_plan(spec)
        self.rows: SweepStore = open_store(folder, create=True).create_sweep(
            "small", spec.to_yaml()
        )
        self.epoch = 0

    def driver(self, redo: Redo | None = None) -> Ledger:
        self.epoch += 1
        return Ledger(self.rows, self.plan, epoch=self.epoch, redo=redo)


def end(ledger: Ledger, attempt: Attempt, kind: str | None = None, **row: Any) -> None:
    told = {"failure_class": kind, "failure_stage": "repair", "error": "no"} if kind else {}
    lost = kind in ("node", "preempted")
    state = "succeeded" if kind is None else "lost" if lost else "failed"
    values = {"easy-vqa.balanced_accuracy": 0.5}
    result = {"state": state, "score": 0.5, "objectives": values, "role": "search"}
    ledger.finish(attempt, {"trials": [result | told | row]})


def begin(ledger: Ledger) -> Attempt:
    attempt = ledger.next()
    assert isinstance(attempt, Attempt)
    return attempt


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


def test_a_client_is_not_told_that_a_finished_sweep_runs(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(client, "taken", lambda: told.append("taken"))
    ledger = sweep.driver()
    for _ in range(3):
        end(ledger, begin(ledger))
    with board(sweep.plan.spec) as watcher:
        resume(sweep.rows.store, "small", watcher)
    assert told == []


def test_a_sweep_whose_driver_died_before_its_last_word_is_finished_by_the_next(
    sweep: Sweep,
) -> None:
    ledger = sweep.driver()
    sweep.rows.event("started", {"planned": 3}, epoch=1)
    for _ in range(3):
        end(ledger, begin(ledger))
    assert sweep.rows.status().state == "interrupted"
    with board(sweep.plan.spec) as watcher:
        resume(sweep.rows.store, "small", watcher)
    assert sweep.rows.status().state == "finished"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that a user wrote a model into, by a path from where he is."""
    shutil.copytree(MODELS["pocket-blip2"].folder, tmp_path / "mine" / "model")
    monkeypatch.chdir(tmp_path)
    return Path("mine/model")


def test_a_sweep_of_a_models_folder_goes_on_from_elsewhere(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(model.parent.absolute() / "results", model=str(model))
    key = begin(sweep.driver()).spec.key
    monkeypatch.chdir("/")
    plan = make_plan(current_spec(sweep.rows))
    assert plan.spec.model.id == sweep.plan.spec.model.id
    assert plan.trial(json.loads(sweep.rows.proposals()["point"][0])).key == key


def test_a_model_whose_files_changed_is_not_mixed_with_what_it_was(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_READ_WHOLE", 1000)  # as if its weights were many
    sweep = Sweep(model.parent.absolute() / "results", model=str(model))
    sweep.rows.event("started", {"contents": sweep.plan.contents}, epoch=1)
    weights = model / "model.safetensors"
    _check_contents(sweep.rows, make_plan(sweep.plan.spec))
    content = weights.read_bytes()
    weights.write_bytes(content)  # a copy of another time
    _check_contents(sweep.rows, make_plan(sweep.plan.spec))
    weights.write_bytes(content[:-100_000] + bytes(100_000))
    with pytest.raises(ConflictError, match=r"the files of model .*/mine/model have changed"):
        resume(sweep.rows.store, "small", None)


@pytest.mark.parametrize("kind", ["node", "preempted"])
def test_an_attempt_that_went_away_is_made_again_until_its_tries_are_spent(
    sweep: Sweep, kind: str
) -> None:
    ledger = sweep.driver()
    for number in range(3):
        attempt = begin(ledger)
        assert (attempt.trial, attempt.attempt) == ("t000", number)
        assert (attempt.reason is None) == (number == 0)
        end(ledger, attempt, kind)
    assert ledger.failed == ["t000"]
    assert begin(ledger).trial == "t001"
    assert list(sweep.rows.attempts()["attempt"]) == [0, 1, 2]
    (newest,) = sweep.rows.trials().to_dict("records")
    assert newest["attempt"] == 2


@pytest.mark.parametrize("kind", ["code", "numeric", "data", "timeout"])
def test_what_would_fail_again_is_not_tried_again(sweep: Sweep, kind: str) -> None:
    ledger = sweep.driver()
    end(ledger, begin(ledger), kind)
    assert ledger.failed == ["t000"]
    assert begin(ledger).trial == "t001"


def test_only_what_the_spec_names_is_tried_again(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, retry={"on": ["oom"]})
    ledger = sweep.driver()
    end(ledger, begin(ledger), "node")
    assert begin(ledger).trial == "t001"


def test_after_out_of_memory_the_micro_batch_is_halved_and_the_batch_kept(sweep: Sweep) -> None:
    ledger = sweep.driver()
    for expected in (32, 16, 8):
        attempt = begin(ledger)
        assert attempt.spec.repair is not None
        assert attempt.spec.repair.micro_batch == expected
        assert attempt.spec.repair.batch_size == 32
        end(ledger, attempt, "oom", micro_batch=expected)
    first, *later = sweep.rows.proposals().to_dict("records")
    assert attempt.earlier == (first["key"], later[0]["key"]), "whose checkpoints it goes on from"
    assert [row["micro_batch"] for row in later] == [16, 8]


def test_memory_that_ran_out_beside_the_steps_of_repair_changes_nothing(sweep: Sweep) -> None:
    ledger = sweep.driver()
    first = begin(ledger)
    end(ledger, first, "oom", failure_stage="repair, outside its steps", micro_batch=32)
    again = begin(ledger)
    assert again.attempt == 1
    assert again.spec == first.spec


def test_a_driver_in_between_changes_neither_the_count_nor_the_micro_batch(sweep: Sweep) -> None:
    ledger = sweep.driver()
    end(ledger, begin(ledger), "oom")
    sweep.driver()  # killed before the second try began
    ledger = sweep.driver()
    begin(ledger)  # killed while it ran: that was no fault of the trial
    ledger = sweep.driver()
    attempt = begin(ledger)
    assert attempt.attempt == 2
    assert attempt.reason == "the driver ended before the trial did"
    assert attempt.spec.repair is not None
    assert attempt.spec.repair.micro_batch == 16
    end(ledger, attempt, "node")
    third = begin(ledger)
    assert third.reason is not None
    assert "try 3 of 3" in third.reason
    end(ledger, third, "node")
    assert ledger.failed == ["t000"]
    assert [again.trial for again in sweep.driver().left_over] == []


def test_one_question_at_a_time_that_does_not_fit_is_the_end(sweep: Sweep) -> None:
    ledger = sweep.driver()
    end(ledger, begin(ledger), "oom", micro_batch=1)
    assert ledger.failed == ["t000"]


def test_a_sampler_that_looks_at_no_result_waits_for_none(tmp_path: Path) -> None:
    ledger = Sweep(tmp_path / "grid", search={"parallel": 1, "window": 1}).driver()
    assert [begin(ledger).trial for _ in range(3)] == ["t000", "t001", "t002"]
    stopping = {"rungs": [5], "reduction": 2}  # looks at results whatever the sampler does
    search = {"parallel": 1, "window": 1}
    ledger = Sweep(tmp_path / "stops", search=search, early_stopping=stopping).driver()
    assert begin(ledger).trial == "t000"
    assert ledger.next() == "wait"


def test_a_trial_that_is_tried_again_keeps_the_window_shut(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, search={"sampler": "tpe", "parallel": 1, "window": 1})
    ledger = sweep.driver()
    attempt = begin(ledger)
    assert ledger.next() == "wait"
    end(ledger, attempt, "node")
    again = begin(ledger)
    assert (again.trial, ledger.next()) == ("t000", "wait")
    end(ledger, again)
    assert begin(ledger).trial == "t001"


def test_what_failed_is_redone_when_the_user_asks_for_it(sweep: Sweep) -> None:
    ledger = sweep.driver()
    for kind in ("code", "code", None):
        end(ledger, begin(ledger), kind)
    assert not sweep.driver().left_over
    assert [a.trial for a in sweep.driver(Redo(all=True)).left_over] == ["t000", "t001"]
    ledger = sweep.driver(Redo(trials=frozenset({"t001"})))
    (again,) = ledger.left_over
    assert (again.trial, again.reason, again.tries) == ("t001", "redone: it was failed", 1)
    begin(ledger)  # and the driver is killed: a redo that was begun is gone on with
    assert [a.trial for a in sweep.driver().left_over] == ["t001"]


def test_what_cannot_be_redone_is_refused_by_name(sweep: Sweep) -> None:
    ledger = sweep.driver()
    end(ledger, begin(ledger))
    with pytest.raises(SpecError, match="t000 succeeded"):
        sweep.driver(Redo(trials=frozenset({"t000"})))
    with pytest.raises(NotFoundError, match=r"no trial 't00'. Did you mean 't000'"):
        sweep.driver(Redo(trials=frozenset({"t00"})))


def test_a_cancelled_trial_runs_again_when_the_sweep_goes_on(sweep: Sweep) -> None:
    ledger = sweep.driver()
    ledger.finish(begin(ledger), {"trials": [{"state": "cancelled", "role": "search"}]})
    assert not ledger.failed
    ledger = sweep.driver()
    assert [again.reason for again in ledger.left_over] == ["it was cancelled"]
    assert "t000" not in ledger.results


def test_a_hopeless_sweep_starts_nothing_more(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, limits={"failed_trials": 2})
    ledger = sweep.driver()
    one, other = begin(ledger), begin(ledger)
    end(ledger, one, "code")
    assert not ledger.is_hopeless
    end(ledger, other, "code")
    assert ledger.is_hopeless
    assert ledger.next() == "finished"
    assert sweep.driver().is_hopeless, "nor when it is resumed as it is"
    assert not sweep.driver(Redo(all=True)).is_hopeless


def test_the_row_that_makes_an_attempt_count_is_written_last(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = sweep.driver()
    attempt = begin(ledger)
    written = []
    monkeypatch.setattr(SweepStore, "commit", lambda self, table, rows, **_: written.append(table))
    row = {"state": "succeeded", "score": 0.5, "objectives": {"easy-vqa.balanced_accuracy": 0.5}}
    ledger.finish(attempt, {"trials": [row], "scores": [{}], "answers": [{}]})
    assert written == ["scores", "answers", "trials"]


def test_what_was_stopped_is_seen_with_its_last_rung(tmp_path: Path) -> None:
    ledger = Sweep(tmp_path).driver()
    end(ledger, begin(ledger), state="stopped", objectives={"easy-vqa.balanced_accuracy": 0.4})
    seen = ledger._as_seen(0, visible=True)
    assert (seen.values, seen.failed) == ((0.4,), False)


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_stored_result_that_is_no_number_is_seen_as_a_failure_and_the_search_goes_on(
    tmp_path: Path, value: float | None
) -> None:
    search = {"sampler": "tpe", "trials": 3, "parallel": 1, "window": 1}
    sweep = Sweep(tmp_path, search=search)
    first = sweep.driver()
    end(first, begin(first), objectives={"easy-vqa.balanced_accuracy": value})
    second = sweep.driver()
    seen = second._as_seen(0, visible=True)
    assert (seen.values, seen.failed) == (None, True)
    assert begin(second).trial == "t001"


def test_early_stopping_compares_trials_of_one_budget(tmp_path: Path) -> None:
    """Each line has a better and a worse half, and all of the sparser line lies below the other."""
    content = {
        "space": {"vision_sparsity": {"choices": ["0.2", "0.3", "0.4", "0.5"]}},
        "budget": [0.4, 0.6],
        "search": {"sampler": "grid", "parallel": 1, "window": 1},
        "early_stopping": {"rungs": [10], "reduction": 2},
    }
    ledger = Sweep(tmp_path, **content).driver()
    goes_on: dict[str, list[str]] = {"0.4": [], "0.6": []}
    scores = {"0.4": iter([0.9, 0.8, 0.95, 0.7]), "0.6": iter([0.5, 0.4, 0.6, 0.3])}
    for _ in range(8):
        attempt = begin(ledger)
        line = attempt.point["budget"]
        rung = Progress(
            stage="rung", step=10, rung={"easy-vqa.balanced_accuracy": next(scores[line])}
        )
        if not ledger.reach(attempt, rung):
            goes_on[line].append(attempt.trial)
        end(ledger, attempt)
    assert [len(trials) for trials in goes_on.values()] == [3, 3]


def test_a_score_that_is_no_number_ends_nothing_at_a_rung(tmp_path: Path) -> None:
    ledger = Sweep(tmp_path, early_stopping={"rungs": [10], "reduction": 2}).driver()
    nan = Progress(stage="rung", step=10, rung={"easy-vqa.balanced_accuracy": float("nan")})
    assert not ledger.reach(begin(ledger), nan)
    assert not ledger.reach(begin(ledger), replace(nan, rung={}))
    assert not ledger._rungs


def test_an_attempt_whose_proposal_is_damaged_counts_by_its_row(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, baselines=["dense"])
    ledger = sweep.driver()
    attempt = begin(ledger)
    end(ledger, attempt, "code", role="baseline")
    for file in tmp_path.glob("sweeps/small/proposals/dense-*"):
        file.write_bytes(b"")  # as a power cut may leave it
    assert begin(sweep.driver()).trial == "t000"
    again = begin(sweep.driver(Redo(all=True)))
    assert (again.trial, again.attempt) == ("dense", attempt.attempt + 1)


def test_what_a_later_ressa_wrote_of_a_trial_does_not_hinder_its_repeat(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    ledger = sweep.driver()
    first = begin(ledger)
    end(ledger, first)
    row = ledger.results[first.trial] | {"joules": 3.0}
    made = reused(first, row, sweep.plan, trial=first.trial)
    assert (made["state"], made["score"]) == ("reused", 0.5)
    assert "joules" not in made
    assert sweep.rows.commit("trials", [made], epoch=1, trial="t001")
