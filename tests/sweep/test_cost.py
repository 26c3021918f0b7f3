"""What a sweep on GPUs will take, estimated from the list of layers."""

from pathlib import Path

import pytest

from ressa.spec import load_spec, spec_from_mapping
from ressa.sweep.cost import cost_words, estimate
from ressa.sweep.plan import make_plan
from ressa.sweep.preview import preview

ROOT = Path(__file__).parents[2]
PAPER = sorted((ROOT / "sweeps" / "paper").glob("*.yaml"))


@pytest.mark.parametrize("sweep", PAPER, ids=lambda path: path.stem)
def test_the_papers_sweeps_are_planned_here_without_weights_and_without_data(sweep, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = preview(load_spec(sweep).spec)
    said = dict(found.facts)
    assert len(found.points) >= 4
    assert said["data"].startswith("were not read")
    assert said["estimate"].startswith("not measured")
    assert "shared work" in said


def plan_of(**changes):
    content = {
        "ressa": 1,
        "model": "pocket-blip2",
        "space": {"sparsity": {"choices": [0.5, 0.6]}},
        "resources": {"gpus_per_worker": 1},
    }
    return make_plan(spec_from_mapping(content | changes).spec)


def test_repair_grows_with_its_steps_and_is_nothing_without():
    short, long = ({"steps": 10, "warmup_steps": 0}, {"steps": 20, "warmup_steps": 0})
    hours = [estimate(plan_of(repair=repair), 2).hours["repair"] for repair in (short, long)]
    assert hours[1] == pytest.approx(2 * hours[0])
    none = estimate(plan_of(repair={"method": "none"}), 2).hours
    assert none["repair"] == 0
    assert 0 < none["evaluation"] < estimate(plan_of(repair=short), 2).hours["evaluation"]


def test_statistics_of_the_dense_model_are_taken_once_and_sequential_ones_by_every_trial():
    regimes = [{"calibration": {"activations": name}} for name in ("dense", "sequential")]
    dense, sequential = (estimate(plan_of(prune=prune), 4).hours for prune in regimes)
    assert sequential["calibration"] == pytest.approx(4 * dense["calibration"])


def test_sparsegpt_stores_grams_and_weights():
    wanda, gram = (estimate(plan_of(prune={"method": m}), 2) for m in ("wanda", "sparsegpt"))
    assert gram.store_bytes > 2 * wanda.store_bytes


def test_a_live_teacher_doubles_what_a_worker_holds():
    repair = {"distillation": {"reduction": "reference"}}
    assert (
        estimate(plan_of(repair=repair), 2).worker_bytes == 2 * estimate(plan_of(), 2).worker_bytes
    )


def test_a_sweep_on_cpus_is_not_estimated():
    assert cost_words(plan_of(resources={"gpus_per_worker": 0}), 2) == []
