"""A stored trial becomes the model that it was, or the export says why not."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from ressa.catalog import MODELS
from ressa.errors import ConflictError, NotFoundError, SpecError, VerificationError
from ressa.export import verify
from ressa.records import Failure, Outcome, TrialSpec
from ressa.spec import SweepSpec, spec_from_mapping, spec_from_yaml
from ressa.store import SweepStore, is_null, open_store
from ressa.sweep import rows, shipping
from ressa.sweep.ledger import Attempt
from ressa.sweep.plan import SweepPlan, make_plan
from ressa.sweep.shared import collect
from ressa.sweep.shipping import export
from ressa.trial import run

CONTENT: dict[str, Any] = {
    "ressa": 1,
    "name": "small",
    "space": {"vision_sparsity": {"choices": ["2:4", "0.5"]}, "language_sparsity": 0.5},
    "prune": {"method": "sparsegpt", "calibration": {"samples": 8}},
    "repair": {"steps": 2, "batch_size": 8, "data": {"samples": 16}, "checkpoint_steps": 1},
    "evaluate": [{"samples": 24}],
}


def sweep_in(folder: Path, content: dict[str, Any]) -> tuple[SweepStore, SweepPlan]:
    spec: SweepSpec = spec_from_mapping(content).spec
    store = open_store(folder / "results", create=True)
    return store.create_sweep(spec.name, spec.to_yaml()), make_plan(spec)


def finish(sweep: SweepStore, plan: SweepPlan, point: dict[str, str], **changes: Any) -> None:
    """Runs a trial in this process, and commits its rows as a driver does."""
    attempt = propose(sweep, plan, point, **changes)
    outcome = run_through(attempt.spec, sweep.store.location)
    tables = rows.succeeded(attempt, outcome, plan, started=datetime.now(UTC))
    for table in ("scores", "trials"):
        sweep.commit(table, tables[table], epoch=1, trial=attempt.trial)


def propose(sweep: SweepStore, plan: SweepPlan, point: dict[str, str], **changes: Any) -> Attempt:
    number = len(sweep.proposals())
    spec = plan.trial(point)
    if changes and spec.repair is not None:
        spec = replace(spec, repair=spec.repair.model_copy(update=changes))
    attempt = Attempt(trial=f"t{number:03d}", attempt=0, spec=spec, number=number, point=point)
    row = {"number": number, "key": spec.key, "point": json.dumps(point), **changes}
    sweep.commit("proposals", [row], epoch=1, trial=attempt.trial)
    return attempt


def run_through(spec: TrialSpec, store: str) -> Outcome:
    steps = run(spec, store)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with two trials, one of which had to repair with a smaller micro-batch."""
    folder = tmp_path_factory.mktemp("once")
    shutil.copytree(MODELS["pocket-llava"].folder, folder / "model")
    sweep, plan = sweep_in(folder, CONTENT | {"model": str(folder / "model")})
    finish(sweep, plan, {"vision_sparsity": "2:4", "language_sparsity": "0.5"})
    finish(sweep, plan, {"vision_sparsity": "0.5", "language_sparsity": "0.5"}, micro_batch=4)
    return folder


@pytest.fixture
def sweep(once: Path, tmp_path: Path) -> SweepStore:
    """A copy of its store."""
    shutil.copytree(once / "results", tmp_path / "results")
    return open_store(tmp_path / "results").sweep("small")


@pytest.fixture
def told() -> list[str]:
    return []


def ship(sweep: SweepStore, trial: str, told: list[str], **options: Any) -> dict[str, Any]:
    return export(
        sweep, trial, Path(sweep.store.location).parent / trial, told=told.append, **options
    )


@pytest.mark.parametrize("trial", ["t000", "t001"])
def test_a_trial_is_exported_from_what_the_store_kept_of_it(
    sweep: SweepStore, told: list[str], tmp_path: Path, trial: str
) -> None:
    said = ship(sweep, trial, told)
    assert verify(tmp_path / trial) == said
    row = sweep.trials().set_index("trial").loc[trial]
    assert said["mask_hash"] == row["mask_hash"]
    assert said["merge_gap"] == pytest.approx(row["merge_gap"], rel=0.1)
    assert said["checked"]["adapters_hash"] == row["adapters_hash"]
    assert said["towers"]["language"]["pruned"] == row["language_zeros"]
    assert ("2:4" in said["towers"]["vision"]["patterns"]) == (trial == "t000")
    assert not [text for text in told if "made again" in text]
    scores = {(s["state"], s["image"], s["metric"]): s["value"] for s in said["scores"]}
    assert scores["repaired", "real", "balanced_accuracy"] == row["score"]


def test_adapters_of_a_method_that_moves_weights_bring_those_along(
    sweep: SweepStore, told: list[str], tmp_path: Path
) -> None:
    said = ship(sweep, "t000", told, form="adapters")
    assert "weights.safetensors" in said["files"]
    assert verify(tmp_path / "t000") == said


@pytest.mark.parametrize("gone", [["adapters"], ["adapters", "vision-mask", "calibration"]])
def test_what_the_store_no_longer_holds_is_made_again_to_the_same_bits(
    sweep: SweepStore, told: list[str], tmp_path: Path, gone: Sequence[str]
) -> None:
    for stage in gone:
        shutil.rmtree(tmp_path / "results" / "stages" / stage)
    said = ship(sweep, "t000", told)
    assert [text for text in told if "made again: repair" in text]
    assert "its repair was run again: the same bits" in said["checked"]["how"]
    assert not list((tmp_path / "results/stages/repair-checkpoint").glob("*"))
    told.clear()
    shutil.rmtree(tmp_path / "t000")
    assert ship(sweep, "t000", told)["matrices"] == said["matrices"]
    assert not [text for text in told if "made again" in text], "it was left for the next time"


def test_of_two_drivers_adapters_those_of_the_outcome_that_counts_are_exported(
    sweep: SweepStore, told: list[str], tmp_path: Path
) -> None:
    """A second driver ran the trial beside the first: on GPUs it comes to other bits."""
    stages, trial = sweep.store.stages, sweep.trials().set_index("trial").loc["t000"]
    (own,) = [key for key in stages.keys("adapters") if key.startswith(trial["key"])]
    tensors = safetensors.torch.load(stages.get("adapters", own)["content"])
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    second = f"{trial['key']}-{'0' * 64}"
    stages.put("adapters", second, {"content": safetensors.torch.save(other)})
    said = ship(sweep, "t000", told)
    assert said["checked"]["adapters_hash"] == trial["adapters_hash"]
    assert "read again: the same bits" in said["checked"]["how"]
    collect(sweep.store, older_than=timedelta(0))
    assert stages.keys("adapters") == []


def with_row(sweep: SweepStore, trial: str, **changes: Any) -> None:
    """Gives a trial a newer row that says otherwise."""
    (row,) = sweep.trials().query("trial == @trial").to_dict("records")
    kept = {name: value for name, value in row.items() if not is_null(value)}
    for identity in ("sweep", "trial", "attempt", "epoch", "committed"):
        kept.pop(identity)
    sweep.commit("trials", [kept | changes], epoch=2, trial=trial)


def test_without_its_hash_the_repaired_model_is_scored_again(
    sweep: SweepStore, told: list[str], tmp_path: Path
) -> None:
    """As of a sweep that an older ressa ran, or on another processor."""
    with_row(sweep, "t000", adapters_hash="another")
    said = ship(sweep, "t000", told)
    score = sweep.trials().set_index("trial").loc["t000", "score"]
    assert said["checked"]["score"] == pytest.approx(score)
    assert "not to the same bits" in said["checked"]["how"]
    shutil.rmtree(tmp_path / "t000")
    with_row(sweep, "t000", adapters_hash="another", score=score + 0.5)
    with pytest.raises(VerificationError, match="more than a standard error apart"):
        ship(sweep, "t000", told)
    assert not (tmp_path / "t000").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mask_hash": "0" * 64}, "the masks are not those of trial t000"),
        ({"vision_zeros": 5}, "the row of trial t000 says 5"),
    ],
)
def test_a_model_that_its_row_does_not_describe_is_not_exported(
    sweep: SweepStore, told: list[str], tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with_row(sweep, "t000", **changes)
    with pytest.raises(VerificationError, match=named):
        ship(sweep, "t000", told)
    assert not (tmp_path / "t000").exists()


def test_a_merge_that_changes_more_than_it_did_is_not_exported(
    sweep: SweepStore, told: list[str], monkeypatch
) -> None:
    monkeypatch.setattr(shipping, "_GAP_FACTOR", 1e-9)
    with pytest.raises(VerificationError, match="merging changes logits by up to"):
        ship(sweep, "t000", told)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_a_gap(
    sweep: SweepStore, told: list[str], tmp_path: Path, value: float
) -> None:
    scores = sweep.scores()
    own = scores[scores["trial"] == "t000"].drop(columns=["sweep", "trial", "attempt", "epoch"])
    last = own.iloc[-1:].assign(metric="perplexity", value=value, standard_error=value)
    found = [*own.to_dict("records"), *last.to_dict("records")]
    sweep.commit("scores", found, epoch=1, trial="t000")
    said = ship(sweep, "t000", told)["scores"]
    assert [(one["value"], one["standard_error"]) for one in said if one["value"] is None] == [
        (None, None)
    ]
    assert "| perplexity | " in (tmp_path / "t000" / "README.md").read_text()


def test_a_reused_trial_is_the_one_that_ran(sweep: SweepStore, told: list[str]) -> None:
    with_row(sweep, "t001", state="reused", reused_trial="t000")
    assert ship(sweep, "t001", told)["trial"] == "t000"


def test_workers_that_grew_since_do_not_matter(sweep: SweepStore, told: list[str]) -> None:
    sweep.event("grown", {"resources.workers": 2}, epoch=2)
    assert ship(sweep, "t000", told)["recipe"]["workers"] == 1


def test_a_trial_without_a_model_is_refused(
    sweep: SweepStore, told: list[str], tmp_path: Path
) -> None:
    plan = make_plan(spec_from_yaml(sweep.spec_text()))
    point = {"vision_sparsity": "2:4", "language_sparsity": "0.5"}
    attempt = propose(sweep, plan, point)
    with pytest.raises(NotFoundError, match="t002 of small has not ended"):
        ship(sweep, "t002", told)
    failure = Failure(kind="numeric", stage="repair", message="the loss is NaN.")
    failed = rows.unsuccessful(attempt, failure, plan, started=datetime.now(UTC), state="failed")
    sweep.commit("trials", failed["trials"], epoch=1, trial="t002")
    with pytest.raises(
        SpecError, match=r"no model to export: it failed at repair: the loss is NaN"
    ):
        ship(sweep, "t002", told)
    with_row(sweep, "t001", state="stopped", stopped_step=25)
    with pytest.raises(SpecError, match="early stopping ended it at step 25"):
        ship(sweep, "t001", told)
    with pytest.raises(NotFoundError, match=r"no trial 't00' in sweep small. Did you mean 't00"):
        ship(sweep, "t00", told)
    (tmp_path / "t000").mkdir()
    (tmp_path / "t000" / "mine").touch()
    with pytest.raises(ConflictError, match="is not empty"):
        ship(sweep, "t000", told)
    assert not told


def test_a_model_that_has_changed_since_is_refused(
    once: Path, sweep: SweepStore, told: list[str]
) -> None:
    card = once / "model" / "config.json"
    before = card.read_text()
    card.write_text(before + "\n")
    try:
        with pytest.raises(ConflictError, match="are no longer those that it ran with"):
            ship(sweep, "t000", told)
    finally:
        card.write_text(before)


Ressa = Callable[..., Any]


def test_the_verbs_say_what_they_did_and_exit_as_documented(
    sweep: SweepStore, tmp_path: Path, monkeypatch, capsys
) -> None:
    from ressa.cli import main

    def ressa(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["ressa", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        assert not said.out
        return stop.value.code, said.err

    monkeypatch.chdir(tmp_path)
    code, said = ressa("export", "small", "t000", "--to", "model")
    assert code == 0
    assert "all exactly zero" in said
    code, said = ressa("verify", "model")
    assert code == 0
    assert "model is what its certificate says" in said
    assert ressa("export", "small", "t000", "--to", "model")[0] == 4
    assert ressa("export", "small", "t009", "--to", "other")[0] == 3
    (tmp_path / "model" / "chat_template.jinja").unlink()
    code, said = ressa("verify", "model")
    assert code == 7
    assert "1 fault\n- a file is missing: chat_template.jinja" in said
    assert ressa("verify", "nowhere")[0] == 3
