"""What a sweep on GPUs will take, estimated from the list of layers."""

from pathlib import Path

import pytest

from ressa.spec import grid_points, load_spec, spec_from_mapping
from ressa.sweep.cost import cost_words, estimate, statistics_bytes
from ressa.sweep.plan import make_plan
from ressa.sweep.preview import preview

ROOT = Path(__file__).parents[2]
LARGE = "Salesforce/instructblip-vicuna-7b"
METHODS = ["wanda", "sparsegpt"]
PAPER = sorted((ROOT / "sweeps" / "paper").glob("*.yaml"))


@pytest.mark.parametrize("sweep", PAPER, ids=lambda path: path.stem)
def test_the_papers_sweeps_are_planned_here_without_weights_and_without_data(sweep):
    found = preview(load_spec(sweep).spec)
    said = dict(found.facts)
    assert len(found.points) >= 4
    assert said["data"].startswith("cannot be used here")
    assert said["estimate"].startswith("not measured")
    assert "shared work" in said


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def plan_of(**changes):
    content = {
        "ressa": 1,
        "model": "pocket-blip2",
        "space": {"sparsity": {"choices": [0.5, 0.6]}},
        "resources": {"gpus_per_worker": 1},
    }
    return make_plan(spec_from_mapping(content | changes).spec)


def cost_of(trials=2, **changes):
    plan = plan_of(**changes)
    points, _ = grid_points(plan.spec, plan.inventory)
    return estimate(plan, trials, [plan.trial(point) for point in points])


def test_repair_grows_with_its_steps_and_is_nothing_without():
    short, long = ({"steps": 10, "warmup_steps": 0}, {"steps": 20, "warmup_steps": 0})
    hours = [cost_of(repair=repair).hours["repair"] for repair in (short, long)]
    assert hours[1] == pytest.approx(2 * hours[0])
    none = cost_of(repair={"method": "none"}).hours
    assert none["repair"] == 0
    assert 0 < none["evaluation"] < cost_of(repair=short).hours["evaluation"]


def test_statistics_of_the_dense_model_are_taken_once_and_sequential_ones_by_every_trial():
    regimes = [{"calibration": {"activations": name}} for name in ("dense", "sequential")]
    dense, sequential = (cost_of(4, prune=prune).hours for prune in regimes)
    assert sequential["calibration"] == pytest.approx(4 * dense["calibration"])


BLOCK = (3 * 4096, 11008)  # inputs that differ: of q, k and v; of o; of gate and up; of down


def test_layers_that_read_one_input_count_once():
    layers = plan_of(model=LARGE).inventory.tower("language")
    moments = 32 * 16 * sum(BLOCK)
    assert statistics_bytes(layers, "moments") == moments
    grams = 32 * 4 * (3 * 4096**2 + 11008**2)
    assert statistics_bytes(layers, "gram") == moments + grams


def test_sparsegpt_stores_grams_and_weights_dsnot_on_it_grams_and_wanda_neither():
    methods = [{"method": "wanda"}, {"method": "dsnot", "from": "sparsegpt"}]
    methods += [{"method": "sparsegpt"}]
    wanda, dsnot, sparsegpt = (cost_of(model=LARGE, prune=one) for one in methods)
    inventory = plan_of(model=LARGE).inventory
    grams = sum(
        statistics_bytes(inventory.tower(tower), "gram")
        - statistics_bytes(inventory.tower(tower), "moments")
        for tower in ("vision", "language")
    )
    assert dsnot.store_bytes - wanda.store_bytes == pytest.approx(grams)
    stay = 4 * inventory.prunable() * (0.5 + 0.4)  # of two trials
    assert sparsegpt.store_bytes - dsnot.store_bytes == pytest.approx(stay)


def test_what_reads_nothing_of_a_large_model_is_not_calibrated():
    assert cost_of(model=LARGE, prune={"method": "magnitude"}).hours["calibration"] == 0
    assert cost_of(model=LARGE).hours["calibration"] > 0


def test_methods_of_a_sweep_that_read_other_statistics_are_calibrated_each():
    space = {"sparsity": {"choices": [0.5, 0.6]}, "prune.method": {"choices": METHODS}}
    alone = [cost_of(model=LARGE, prune={"method": method}) for method in METHODS]
    both = cost_of(4, model=LARGE, space=space)
    assert both.hours["calibration"] == sum(one.hours["calibration"] for one in alone)
    own = sum(one.store_bytes - one.teacher_bytes for one in alone)
    assert both.store_bytes - both.teacher_bytes == pytest.approx(own, rel=0.01)


def test_a_teacher_is_counted_once_and_by_its_vocabulary():
    data = {"split": "train", "samples": 1000}
    one, many = (cost_of(n, model=LARGE, repair={"data": data}) for n in (1, 5))
    assert one.teacher_bytes == many.teacher_bytes == 1000 * 8 * 32_001 * 4
    half = cost_of(model={"id": LARGE, "dtype": "bfloat16"}, repair={"data": data})
    assert half.teacher_bytes == one.teacher_bytes / 2
    live = {"data": data, "distillation": {"reduction": "reference"}}
    without = cost_of(model=LARGE, repair=live)
    assert without.teacher_bytes == 0
    same = cost_of(model=LARGE, repair={"data": data})
    assert same.store_bytes - without.store_bytes == one.teacher_bytes
    said = dict(cost_words(plan_of(model=LARGE, repair={"data": data}), 2, []))
    assert "1.0 GiB of it the teacher's logits" in said["estimate"]


def test_a_live_teacher_doubles_what_a_worker_holds():
    repair = {"distillation": {"reduction": "reference"}}
    assert cost_of(repair=repair).worker_bytes == 2 * cost_of().worker_bytes


def test_a_sweep_on_cpus_is_not_estimated():
    assert cost_words(plan_of(resources={"gpus_per_worker": 0}), 2, []) == []
