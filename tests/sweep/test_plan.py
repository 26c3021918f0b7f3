"""What a sweep asks of each tower, before anything runs, and how it is written down."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ressa.catalog import MODELS
from ressa.errors import ConflictError, SpecError, StoreError
from ressa.records import Failure, use_of
from ressa.spec import grid_points, spec_from_mapping
from ressa.store import open_store
from ressa.store.schema import DATA
from ressa.sweep.driver import continued, current_spec, run
from ressa.sweep.ledger import Attempt
from ressa.sweep.plan import SweepPlan, make_plan
from ressa.sweep.preview import preview
from ressa.sweep.rows import unsuccessful
from tests.data import published


def plan_of(**prune: object) -> SweepPlan:
    content = {"ressa": 1, "model": "pocket-llava", "space": {"sparsity": {"choices": ["0.3"]}}}
    return make_plan(spec_from_mapping(content | {"prune": prune}).spec)


def row_of(plan: SweepPlan, trial: str) -> dict[str, object]:
    point = {} if trial == "dense" else {"sparsity": "0.3"}
    spec = plan.trial(point) if point else plan.baseline("dense")
    attempt = Attempt(
        trial=trial,
        number=0 if point else None,
        attempt=0,
        point=point,
        spec=spec,
    )
    failure = Failure(kind="code", stage="prune", message="no")
    (row,) = unsuccessful(attempt, failure, plan, started=datetime.now(UTC), state="failed")[
        "trials"
    ]
    return row


def test_one_sparsity_is_asked_of_each_tower() -> None:
    plan = plan_of(layers="owl", counting="reference")
    row = row_of(plan, "t000")
    for tower in ("vision", "language"):
        assert row[f"{tower}_target"] == "0.3"
        weights = plan.inventory.prunable(tower)
        assert row[f"{tower}_zeros_requested"] == round(0.3 * weights)
        assert (row[f"{tower}_layers"], row[f"{tower}_counting"]) == ("owl", "reference")
    assert row["budget"] is None


def test_of_a_shared_sparsity_each_towers_part_is_not_known_before() -> None:
    plan = plan_of(group="all")
    row = row_of(plan, "t000")
    for tower in ("vision", "language"):
        for column in ("target", "sparsity", "zeros_requested"):
            assert row[f"{tower}_{column}"] is None
        assert (row[f"{tower}_group"], row[f"{tower}_layers"]) == ("all", "uniform")
    assert row["budget"] == 0.3
    assert plan.all_zeros(plan.trial({"sparsity": "0.3"})) == round(0.3 * plan.inventory.prunable())


def test_of_a_baseline_it_is_known_that_nothing_goes() -> None:
    row = row_of(plan_of(group="all", counting="reference", layers="uniform"), "dense")
    assert (row["vision_target"], row["vision_zeros_requested"], row["budget"]) == ("0", 0, None)


LEAST = {"ressa": 1, "model": "pocket-llava", "space": {"sparsity": "0.3"}}
SWEPT = {
    "nothing": {},
    "seeds and sizes": {
        "space": {
            "sparsity": {"choices": ["0.3", "0.4"]},
            "prune.calibration.seed": {"low": 3, "high": 5},
            "prune.calibration.samples": {"choices": [8, 16]},
            "prune.calibration.activations": {"choices": ["dense", "tower"]},
            "repair.data.seed": {"choices": [7, 9]},
        },
        "baselines": [],
    },
    "beside baselines, by replicates": {
        "space": {"sparsity": 0.3, "prune.calibration.seed": {"choices": [4, 5]}},
        "replicates": 2,
        "baselines": ["dense", "dense_repaired"],
    },
    "points": {
        "space": {
            "sparsity": {"choices": ["0.3", "0.4"]},
            "repair.data.samples": {"choices": [8, 9]},
        },
        "points": [
            {"sparsity": "0.3", "repair.data.samples": 8},
            {"sparsity": "0.4", "repair.data.samples": 9},
        ],
    },
    "whether it is repaired": {
        "space": {"sparsity": 0.3, "repair.method": {"choices": ["none", "sparselora"]}}
    },
}


@pytest.mark.parametrize("swept", SWEPT)
def test_the_examples_are_known_beforehand_that_trials_take(swept: str) -> None:
    plan = make_plan(spec_from_mapping(LEAST | SWEPT[swept]).spec)
    trials = [plan.trial(point) for point in grid_points(plan.spec, plan.inventory)[0]]
    trials += [plan.baseline(name) for name in plan.baselines]
    taken = {("calibration", use_of(trial.calibration)) for trial in trials}
    taken |= {("repair", use_of(trial.repair.data)) for trial in trials if trial.repair}
    taken |= {("evaluate", use_of(ref)) for trial in trials for ref in trial.evaluate}
    rows = [(row["purpose"], f"{row['split']} {row['samples']} {row['seed']}") for row in plan.data]
    assert sorted(rows) == sorted(taken)
    assert len({tuple(row[name] for name in DATA.key) for row in plan.data}) == len(rows)


def test_examples_that_only_some_trials_take_are_held_against_the_others(tmp_path: Path) -> None:
    published.karpathy(tmp_path, pictures=30)
    splits = {"train": "train", "calibration": "train", "validation": "test"}
    mine = {"task": "captioning", "format": "karpathy", "path": str(tmp_path), "splits": splits}
    content = {
        **LEAST,
        "data": {"mine": mine},
        "space": {"sparsity": 0.3, "prune.calibration.task": {"choices": ["easy-vqa", "mine"]}},
        "prune": {"calibration": {"samples": 16}},
        "repair": {"data": {"task": "mine", "samples": 16}},
    }
    with pytest.raises(SpecError, match=r"calibration \(mine\) and repair \(mine\) share"):
        _ = make_plan(spec_from_mapping(content).spec).data
    many = {"repair": {"data": {"task": "mine", "samples": 999}}, "space": {"sparsity": 0.3}}
    many |= {"evaluate": [{"task": "mine", "split": "validation", "samples": 999}]}
    with pytest.raises(SpecError) as refused:
        _ = make_plan(spec_from_mapping(content | many).spec).data
    assert [fault.split(":")[0] for fault in refused.value.faults] == ["repair", "evaluate"]
    few = {"sparsity": 0.3, "repair.data.samples": {"choices": [16, 32_760]}}
    with pytest.raises(SpecError, match="train split has 32759 questions; 32760 were asked for"):
        _ = make_plan(spec_from_mapping({**LEAST, "space": few}).spec).data


def own_captions(folder: Path) -> dict[str, object]:
    """One's own data, as the sweep file has them: a caption for each picture, by its path."""
    folder.mkdir(parents=True)
    names = [f"{number}.png" for number in range(8)]
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)
    rows = [json.dumps({"image": name, "caption": f"picture {name} of all"}) for name in names]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    splits = {"train": "test", "calibration": "train"}
    return {"task": "captioning", "format": "datasets", "path": str(folder), "splits": splits}


def test_pictures_are_told_apart_by_where_their_data_set_lies(tmp_path: Path) -> None:
    one, other = (own_captions(tmp_path / place / "own") for place in ("here", "there"))
    content: dict[str, Any] = {
        **LEAST,
        "space": {"sparsity": 0.3},
        "prune": {"calibration": {"task": "one", "samples": 8}},
        "repair": {"data": {"task": "other", "samples": 8}},
    }
    apart = {"data": {"one": one, "other": other}}
    assert len(make_plan(spec_from_mapping(content | apart).spec).data) == 3
    together = {"data": {"one": one, "other": one | {"path": f"{tmp_path}/there/../here/own/"}}}
    with pytest.raises(SpecError, match=r"share 8 images, such as /.*/here/own/0\.png"):
        _ = make_plan(spec_from_mapping(content | together).spec).data


@pytest.mark.parametrize("group", ["row", "all"])
def test_a_preview_counts_what_both_lose_together(group: str) -> None:
    points = preview(plan_of(group=group).spec).points
    assert points["sparsity"].item() == pytest.approx(0.3, abs=1e-5)
    assert (points["vision"].item() is None) == (group == "all")


def test_a_preview_says_when_a_sweep_ends_sooner() -> None:
    content = {
        "ressa": 1,
        "model": "pocket-llava",
        "budget": 0.5,
        "space": {"vision_sparsity": {"choices": [0.4, 0.5, 0.6]}},
        "search": {"stop_when": {"regret_points": 2, "confidence": 0.95}},
    }
    facts = preview(spec_from_mapping(content).spec).facts
    assert any(
        "95% sure to lie less than 2 points below the line's best" in one for _, one in facts
    )


def test_a_preview_needs_no_store_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(place: str) -> None:
        raise StoreError("the bucket does not answer.")

    monkeypatch.setattr("ressa.sweep.preview.open_store", unreachable)
    found = preview(plan_of().spec)
    assert len(found.points) == 1
    said = "what the store holds of it is not known: the bucket does not answer."
    assert ("shared work", said) in found.facts


def test_a_preview_says_what_is_skipped_once_for_each_reason() -> None:
    content = {
        "ressa": 1,
        "model": "pocket-llava",
        "space": {
            "vision_sparsity": {"low": 0.1, "high": 0.9, "step": 0.1},
            "language_sparsity": {"low": 0.1, "high": 0.9, "step": 0.1},
        },
        "constraints": ["sparsity <= 0.6", "vision_sparsity <= language_sparsity"],
    }
    facts = preview(spec_from_mapping(content).spec).facts
    skipped = [text for topic, text in facts if topic == "skipped"]
    assert len(skipped) == 2
    assert all(", such as vision_sparsity=" in text for text in skipped)


def test_the_preview_warns_of_pictures_that_count_as_two(tmp_path: Path) -> None:
    root = published.questions_on_one_picture(tmp_path / "saved", pictures=6)
    source = {"task": "vqa", "format": "datasets", "path": str(root)}
    source["splits"] = {"validation": "validation"}
    source["columns"] = {"image": "picture", "question": "asked", "answers": "said"}
    content = {"ressa": 1, "model": "pocket-blip2", "space": {"sparsity": {"choices": ["0.3"]}}}
    content |= {"data": {"mine": source}, "evaluate": [{"task": "mine", "samples": 12}]}
    content["repair"] = {"method": "none"}
    facts = preview(spec_from_mapping(content).spec).facts
    (said,) = [words for purpose, words in facts if purpose == "pictures"]
    assert said.startswith("mine: 12 of 12 rows show a picture that another row shows too")


def test_a_sweep_goes_on_with_the_commit_of_a_hub_model_that_it_began_with(tmp_path: Path) -> None:
    content = {
        "ressa": 1,
        "name": "hub",
        "model": "Salesforce/blip2-flan-t5-xl",
        "space": {"vision_sparsity": 0.5, "language_sparsity": 0.5},
    }
    asked = spec_from_mapping(content).spec
    sweep = open_store(tmp_path, create=True).create_sweep("hub", asked.to_yaml())
    sweep.event("grown", {"model.revision": "a" * 40}, epoch=1)
    assert current_spec(sweep).model.revision == "a" * 40
    assert continued(sweep, asked).model.revision == "a" * 40, "the file asks for the same"
    model = asked.model.model_copy(update={"revision": "v2"})
    other = asked.model_copy(update={"model": model})
    with pytest.raises(ConflictError, match="they differ in model"):
        continued(sweep, other)


def test_a_space_too_large_to_list_is_drawn_from() -> None:
    axis = {"low": 0.1, "high": 0.9, "step": 0.01}
    content = {
        "ressa": 1,
        "model": "pocket-llava",
        "space": {"vision_sparsity": axis, "language_sparsity": axis},
        "replicates": 3,
        "search": {"sampler": "tpe", "trials": 5},
        "constraints": ["sparsity >= 0.4"],
    }
    found = preview(spec_from_mapping(content).spec)
    assert found.points.empty
    said = [text for topic, text in found.facts if topic == "space"]
    assert said[0] == "19,683 points, too many to list: the sampler draws from it"
    assert said[1].startswith("of 500 points drawn from it ")


def test_a_model_that_no_trial_could_load_is_named_by_plan_and_refused_before_a_sweep_is_stored(
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(MODELS["pocket-llava"].folder, tmp_path / "model")
    (folder / "processor_config.json").unlink()
    content = {"ressa": 1, "model": str(folder), "space": {"sparsity": {"choices": ["0.3"]}}}
    spec = spec_from_mapping(content | {"name": "bare", "store": str(tmp_path / "store")}).spec
    said = dict(preview(spec).facts)
    assert said["model"].startswith("cannot be run here")
    with pytest.raises(SpecError, match="holds no processor"):
        run(spec)
    assert not (tmp_path / "store").exists()
