"""A trial's identity: what changes its key and what does not."""

import json
import pickle
from dataclasses import replace

import pytest

from ressa.keys import (
    NO_VERSIONS,
    mask_keys,
    outliers_key,
    stage_key,
    teacher_key,
    threshold_key,
)
from ressa.models.identity import fingerprint
from ressa.records import Failure, Outcome, TaskData, TrialSpec, content_key, use_of
from ressa.sparsity import Target
from ressa.spec import (
    Calibration,
    DataRef,
    DataSource,
    Decoding,
    ModelRef,
    Owl,
    Repair,
    TowerTarget,
)


@pytest.fixture
def trial() -> TrialSpec:
    half = TowerTarget(method="wanda", group="row", target=Target.parse("0.5"))
    return TrialSpec(
        model=ModelRef(id="pocket-blip2"),
        fingerprint="f00d",
        vision=half,
        language=half,
        calibration=Calibration(),
        repair=Repair(),
        evaluate=(DataRef(split="validation", samples=2000),),
    )


def test_equal_trials_have_equal_keys(trial: TrialSpec) -> None:
    assert replace(trial).key == trial.key
    assert pickle.loads(pickle.dumps(trial)).key == trial.key


def test_everything_that_can_change_the_result_changes_the_key(trial: TrialSpec) -> None:
    other_target = TowerTarget(method="wanda", group="row", target=Target.parse("0.6"))
    changed = [
        replace(trial, fingerprint="beef"),
        replace(trial, vision=other_target),
        replace(trial, language=other_target),
        replace(trial, language=TowerTarget(**{**fields(trial.language), "method": "magnitude"})),
        replace(trial, language=TowerTarget(**{**fields(trial.language), "group": "matrix"})),
        replace(trial, calibration=Calibration(seed=1)),
        replace(trial, repair=None),
        replace(trial, repair=Repair(steps=7)),
        replace(trial, evaluate=(DataRef(split="validation", samples=100),)),
        replace(trial, workers=2),
        replace(trial, cpus_per_worker=2),
        replace(trial, model=ModelRef(id="pocket-blip2", dtype="bfloat16")),
    ]
    assert len({trial.key, *(one.key for one in changed)}) == len(changed) + 1


MODELS = {
    "dtype": ModelRef(id="pocket-blip2", dtype="bfloat16"),
    "image_size": ModelRef(id="pocket-blip2", image_size=64),
    "towers": ModelRef.model_validate({"id": "pocket-blip2", "towers": {"connector": "resampler"}}),
    "trust_remote_code": ModelRef(id="pocket-blip2", trust_remote_code=True),
}


@pytest.mark.parametrize("field", sorted(ModelRef.model_fields.keys() - {"id", "revision"}))
def test_whatever_is_made_of_the_models_files_changes_all_keys(
    trial: TrialSpec, field: str
) -> None:
    other = replace(trial, model=MODELS[field])
    assert other.key != trial.key
    assert other.rung_key(1) != trial.rung_key(1)
    assert stage_key(other, "mask") != stage_key(trial, "mask")


def test_results_of_pocket_models_are_found_under_the_keys_that_they_had(trial: TrialSpec) -> None:
    # As version 1 of `ASKED` made them, which asked these models just so.
    keys = {
        "pocket-blip2": ("d02eea6602e79e05678309be06b398ee", "be85a2085ac38cb48eb8ce990290e089"),
        "pocket-llava": ("a58b8875432b1ed4f05156f118d58c6a", "dfbb3c4ff35d257c62d6771c263c8c85"),
    }
    for name, wanted in keys.items():
        ref = ModelRef(id=name)
        one = replace(trial, model=ref, fingerprint=fingerprint(ref))
        assert (one.key, stage_key(one, "mask")) == wanted


def test_a_penalty_counts_where_a_decoders_repetition_does(trial: TrialSpec) -> None:
    plain = DataSource(task="captioning", format="nocaps", path="x")
    other = plain.model_copy(update={"decoding": Decoding(repetition_penalty=1.5)})
    changes = []
    for name in ("pocket-blip2", "pocket-llava"):
        ref = ModelRef(id=name)
        for source in (plain, other):
            data = TaskData(name="x", source=source, contents=())
            one = replace(trial, model=ref, fingerprint=fingerprint(ref), data=(data,))
            changes.append("asked" in one.model_options)
    assert changes == [False, False, False, True]


def test_options_written_out_as_they_are_by_default_change_nothing(trial: TrialSpec) -> None:
    names: dict[str, list[str]] = {"vision": [], "connector": []}
    written = ModelRef.model_validate({"id": "x", "image_size": None, "towers": names})
    assert replace(trial, model=written).key == trial.key


def fields(target: TowerTarget) -> dict[str, object]:
    return {name: getattr(target, name) for name in ("method", "group", "target")}


def test_half_of_the_weights_and_2_of_4_are_different_trials(trial: TrialSpec) -> None:
    pattern = TowerTarget(method="wanda", group="row", target=Target.parse("2:4"))
    assert replace(trial, vision=pattern).key != trial.key


def test_where_the_models_folder_lies_changes_nothing(trial: TrialSpec) -> None:
    assert replace(trial, model=ModelRef(id="/elsewhere/pocket-blip2")).key == trial.key


def test_a_key_depends_on_every_value_and_not_on_their_order() -> None:
    assert content_key({"a": 1, "b": [1, 2]}) == content_key({"b": [1, 2], "a": 1})
    assert len({content_key(value) for value in (1, 1.0, "1", None, True, [1])}) == 6
    with pytest.raises(ValueError, match="not JSON compliant"):
        content_key(float("nan"))


def test_an_outcome_survives_json() -> None:
    outcome = Outcome(summary={"sparsity": 0.1 + 0.2, "merge_gap": None}, layers=[{"zeros": 3}])
    assert Outcome.from_json(outcome.to_json()) == outcome


def test_a_failure_survives_the_way_between_processes() -> None:
    failure = Failure(kind="numeric", stage="repair", message="diverged")
    assert pickle.loads(pickle.dumps(failure)) == failure


def test_whatever_a_stage_reads_changes_its_key(trial):
    reseeded = replace(trial, calibration=Calibration(seed=1))
    assert threshold_key(reseeded, "vision", ()) != threshold_key(trial, "vision", ())
    assert outliers_key(trial, "vision", Owl(threshold=7)) != outliers_key(trial, "vision", Owl())
    blind = replace(trial, repair=Repair(objective="text", train=("language",)))
    assert teacher_key(blind) != teacher_key(trial)


@pytest.mark.parametrize(
    ("activations", "behind"), [("dense", False), ("tower", False), ("sequential", True)]
)
def test_masks_of_a_method_that_has_changed_are_made_anew(trial, activations, behind):
    one = replace(trial, calibration=Calibration(activations=activations))
    plain, raised = mask_keys(one, NO_VERSIONS), mask_keys(one, {"vision": (2,), "language": ()})
    assert raised["vision"] != plain["vision"]
    assert (raised["language"] != plain["language"]) == behind, "those made behind them, too"


def test_other_contents_of_its_data_make_another_trial(trial):
    use = trial.evaluate[0]
    source = DataSource(task="vqa", format="vqav2", path="/here")

    def key(contents, path="/here"):
        moved = source.model_copy(update={"path": path})
        data = TaskData(name=use.task, source=moved, contents=((use_of(use), contents),))
        return replace(trial, data=(data,)).key

    assert key("1") != key("2")
    assert key("1") == key("1", "/there")


def test_an_outcome_of_an_older_version_is_read_without_what_it_had_more() -> None:
    outcome = Outcome(summary={"sparsity": 0.5}, scores=[{"value": 0.9}])
    older = {**json.loads(outcome.to_json()), "data": []}
    assert Outcome.from_json(json.dumps(older).encode()) == outcome
