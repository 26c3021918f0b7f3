"""Tasks over files, through the real pipeline: calibrated, repaired and scored."""

import json
from pathlib import Path
from typing import Any

import pytest

from ressa import trial
from ressa.errors import SpecError
from ressa.records import Outcome, TrialSpec
from ressa.spec import SweepSpec, spec_from_mapping
from ressa.stages import Stages
from ressa.store import open_store
from ressa.sweep.plan import make_plan
from tests.data import published

POINT = {"vision_sparsity": "0.5", "language_sparsity": "0.5"}
ASKED = {"prompt": "{}", "clean_text": False}
FEW = {"on_bad_item": "fail", "batch_size": 16}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("files")
    published.vqav2(root / "vqav2", pictures=12)
    published.gqa(root / "gqa")
    published.karpathy(root / "coco", pictures=30)
    published.aokvqa(root / "aokvqa")
    return root


def sections(root: Path) -> dict[str, Any]:
    """Calibrates and repairs on captions, and scores questions, choices and captions."""
    half = {"train": "train[50%:]", "calibration": "train[:50%]"}
    return {
        "ressa": 1,
        "model": "pocket-blip2",
        "data": {
            "captions": {
                "task": "captioning",
                "format": "karpathy",
                "path": str(root / "coco"),
                "splits": half | {"validation": "test"},
                "prompt": "what is in the image ?",
                "decoding": {"beams": 2, "max_new_tokens": 6, "min_new_tokens": 2},
            },
            "vqav2": {
                "task": "vqa",
                "format": "vqav2",
                "path": str(root / "vqav2"),
                "decoding": {"beams": 3, "max_new_tokens": 3, "length_penalty": 0.0},
                **ASKED,
            },
            "gqa": {"task": "vqa", "format": "gqa", "path": str(root / "gqa"), **ASKED},
            "choices": {
                "task": "multiple_choice",
                "format": "aokvqa",
                "path": str(root / "aokvqa"),
                **ASKED,
            },
            "texts": {
                "task": "perplexity",
                "format": "karpathy",
                "path": str(root / "coco"),
                "splits": {"validation": "test"},
            },
        },
        "space": {"vision_sparsity": 0.5, "language_sparsity": 0.5},
        "prune": {"calibration": {"task": "captions", "samples": 12}},
        "repair": {"steps": 2, "batch_size": 8, "data": {"task": "captions", "samples": 16}},
        "evaluate": [
            {"task": name, "samples": 12}
            for name in ("vqav2", "gqa", "choices", "captions", "texts")
        ],
    }


def specify(root: Path, **changes: Any) -> SweepSpec:
    return spec_from_mapping(sections(root) | changes).spec


def run(spec: TrialSpec, store: Path) -> Outcome:
    steps = trial.run(spec, str(store))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@pytest.fixture(scope="module")
def finished(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    plan = make_plan(specify(files))
    spec = plan.trial(POINT)
    return plan, spec, run(spec, tmp_path_factory.mktemp("store"))


def scores(outcome: Outcome, state: str, image: str = "real") -> dict[str, float]:
    return {
        f"{row['task']}.{row['metric']}": row["value"]
        for row in outcome.scores
        if (row["state"], row["image"]) == (state, image)
    }


def test_repair_on_captions_is_scored_on_questions(finished):
    _, _, outcome = finished
    dense, repaired = scores(outcome, "dense"), scores(outcome, "repaired")
    # The pocket model knows these questions, whichever way they lie on disk.
    assert dense["vqav2.accuracy"] > 0.9
    assert dense["gqa.accuracy"] > 0.9
    assert dense["choices.accuracy"] > 0.9
    assert dense["vqav2.accuracy"] >= dense["vqav2.exact_match"] - 0.1
    assert scores(outcome, "dense", "blank")["vqav2.accuracy"] < dense["vqav2.accuracy"]
    assert dense["texts.perplexity"] == pytest.approx(1 / dense["texts.likelihood"])
    assert {name for name in dense if not name.startswith("vqav2.accuracy/")} <= set(repaired)
    assert outcome.summary["pruned_nonzero"] == 0
    assert outcome.summary["merge_gap"] < 1e-3


def test_means_over_tasks_stand_beside_the_tasks(finished):
    plan, _, outcome = finished
    assert plan.objective == ("all", "validation", "macro")
    found = scores(outcome, "repaired")
    main = [
        found[name]
        for name in (
            "vqav2.accuracy",
            "gqa.accuracy",
            "choices.accuracy",
            "captions.cider",
            "texts.likelihood",
        )
    ]
    assert found["all.macro"] == pytest.approx(sum(main) / 5)
    relative = "all.mean_relative" in found
    assert relative == all(
        scores(outcome, "dense")[name] > 0 for name in ("captions.cider", "texts.likelihood")
    )


def test_every_answer_is_kept_with_its_own_score(finished):
    _, _, outcome = finished
    answers = [row for row in outcome.answers if row["state"] == "repaired"]
    assert len(answers) == 5 * 12
    mean = {
        task: sum(row["value"] for row in answers if row["task"] == task) / 12
        for task in ("vqav2", "gqa", "choices", "captions")
    }
    found = scores(outcome, "repaired")
    for task, metric in (("vqav2", "accuracy"), ("choices", "accuracy"), ("captions", "cider")):
        assert mean[task] == pytest.approx(found[f"{task}.{metric}"])


def test_a_rung_asks_no_more_questions_than_there_are(files, tmp_path):
    asked = {"evaluate": [{"task": "vqav2", "samples": None}], "early_stopping": {"rungs": [0, 1]}}
    spec = make_plan(specify(files, **asked)).trial(POINT)
    rung = next(step.rung for step in trial.run(spec, str(tmp_path)) if step.stage == "rung")
    found = json.loads(Stages(open_store(tmp_path)).find("rung", spec.rung_key(0)))
    pruned = scores(Outcome.of(found["outcome"]), "pruned")
    assert rung["vqav2.accuracy"] == pytest.approx(pruned["vqav2.accuracy"])
    assert pruned["vqav2.accuracy"] > 0, "or no answer was counted"


def test_the_trials_key_does_not_depend_on_where_the_files_lie(finished, files, tmp_path):
    _, spec, _ = finished
    link = tmp_path / "elsewhere"
    link.symlink_to(files, target_is_directory=True)
    assert make_plan(specify(link)).trial(POINT).key == spec.key
    assert specify(link).identity == specify(files).identity
    other = sections(files)
    other["data"]["vqav2"]["prompt"] = "{} ?"
    assert make_plan(spec_from_mapping(other).spec).trial(POINT).key != spec.key


def test_purposes_that_share_pictures_across_data_sets_are_refused(files):
    """COCO's pictures have one name in VQAv2 and in Karpathy's captions."""
    content = sections(files)
    content["data"]["captions"]["splits"]["train"] = "test"
    content["repair"]["data"]["samples"] = 60
    with pytest.raises(SpecError, match=r"repair \(captions\) and evaluate .* share \d+ images"):
        _ = make_plan(spec_from_mapping(content).spec).data


def test_cocos_pictures_are_known_by_their_numbers_in_2014_and_2017(files):
    """The training pictures of 2017 are A-OKVQA's, and most of VQAv2's validation."""
    content = sections(files)
    content["evaluate"] = [{"task": "vqav2", "samples": 12}]
    content["repair"]["data"] = {"task": "choices", "split": "train", "samples": 16}
    with pytest.raises(SpecError, match=r"share \d+ images, such as coco/000000000"):
        _ = make_plan(spec_from_mapping(content).spec).data


def test_what_was_left_out_is_in_the_rows_of_the_data(files, tmp_path):
    root = published.vqav2(tmp_path, pictures=4, per_picture=2)
    (root / "val2014" / "COCO_val2014_000000000002.jpg").write_bytes(b"")
    content = sections(files)
    content["data"]["vqav2"] |= {"path": str(root), "on_bad_item": "skip"}
    content["evaluate"] = [{"task": "vqav2", "samples": None}]
    plan = make_plan(spec_from_mapping(content).spec)
    row = next(row for row in plan.data if row["purpose"] == "evaluate")
    assert (row["samples"], row["left_out"]) == (6, 2)
    assert row["left_out_ids"] == ["2000: damaged picture", "2001: damaged picture"]


def test_llava_answers_open_questions_by_beams_as_well(files, tmp_path):
    content = sections(files) | {"model": "pocket-llava"}
    content["repair"] = {"method": "none"}
    content["evaluate"] = [{"task": "vqav2", "samples": 12}]
    spec = make_plan(spec_from_mapping(content).spec).trial(POINT)
    outcome = run(spec, tmp_path)
    assert scores(outcome, "dense")["vqav2.accuracy"] > 0.9
    assert "all.macro" not in scores(outcome, "dense")
