"""What the catalog names is there, and the sweeps that ship run on it."""

from pathlib import Path

import pytest

from ressa.catalog import METHODS, MODELS, TASKS, CatalogModel
from ressa.errors import SpecError
from ressa.sparsity import TOWERS
from ressa.spec import grid_points, load_spec

SWEEPS = sorted((Path(__file__).parents[1] / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("name", list(MODELS))
def test_a_catalog_model_knows_its_layers_without_being_loaded(name):
    inventory = MODELS[name].inventory()
    assert {layer.tower for layer in inventory.layers} == set(TOWERS)
    for tower in TOWERS:
        assert 0 < inventory.prunable(tower) <= inventory.parameters[tower]


def test_every_name_stands_for_something():
    for registry in (METHODS, TASKS, MODELS):
        for name in registry:
            assert registry[name] is not None


def test_a_broken_installation_says_what_to_do(tmp_path):
    model = CatalogModel(name="gone", folder=tmp_path, summary="", repair_defaults={})
    with pytest.raises(SpecError, match="Install ressa again"):
        model.inventory()


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: sweep.stem)
def test_the_sweeps_that_ship_have_points_to_run(sweep):
    loaded = load_spec(sweep)
    assert loaded.inventory is not None
    feasible, _ = grid_points(loaded.spec, loaded.inventory)
    assert 1 <= loaded.spec.search.trials <= len(feasible)


def test_the_quickstart_maps_lines_of_equal_budget_with_a_dozen_trials_or_more():
    spec = load_spec(SWEEPS[0].with_name("quickstart.yaml")).spec
    assert spec.search.trials >= 12
    assert spec.budget is not None
    assert len(spec.budget) >= 2
