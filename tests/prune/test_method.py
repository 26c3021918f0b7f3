import numpy as np
import pytest
import torch
from layers import correlated_inputs, drawn_weight, statistics_of

from ressa.catalog import METHODS
from ressa.prune import PruneMethod
from ressa.sparsity import Pattern, Target
from ressa.spec import TowerTarget
from ressa.testing import PruneMethodContract


class Energy(PruneMethod):
    """What the README shows: a method of another package."""

    name = "energy"
    needs = "moments"

    def saliency(self, weight, statistics, generator):
        return (weight.float() * statistics.norm).square()


class TestAMethodOfAFewLinesKeepsTheContract(PruneMethodContract):
    method = Energy


class Destructive(PruneMethod):
    name = "destructive"

    def saliency(self, weight, statistics, generator):
        return weight.abs_()


class Unseeded(PruneMethod):
    name = "unseeded"

    def saliency(self, weight, statistics, generator):
        return torch.rand(weight.shape)


def test_a_method_takes_the_options_that_it_reads():
    wanted = TowerTarget(
        method="any",
        group="row",
        target=Target.parse("0.5"),
        initial="sparsegpt",
        cycles=3,
        dampening=0.2,
    )
    methods = {name: METHODS[name].from_spec(wanted) for name in METHODS}
    assert all(method.name == name for name, method in methods.items())
    assert methods["sparsegpt"].dampening == methods["dsnot"].initial.dampening == 0.2
    assert methods["dsnot"].cycles == 3
    assert METHODS["dsnot"]().initial.name == "wanda"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_layer_pruned_several_times_over_is_pruned_each_time_as_alone(name):
    weight = drawn_weight(columns=64).float()
    statistics = statistics_of(correlated_inputs(columns=64, offset=2.0).float())
    removals = [np.full(24, 20), np.full(24, 45), Pattern(2, 4), 24 * 40]

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    method = METHODS[name]()
    each = list(method.prune_each(weight, statistics, removals, seeded()))
    for removal, pruned in zip(removals, each, strict=True):
        alone = METHODS[name]().prune(weight, statistics, removal, seeded())
        assert pruned.keep_mask.equal(alone.keep_mask)
        if alone.weight is None:
            assert pruned.weight is None
        else:
            assert pruned.weight.equal(alone.weight)


def contract_of(tested: type[PruneMethod]) -> PruneMethodContract:
    return type("Contract", (PruneMethodContract,), {"method": tested})()


def test_the_contract_catches_a_method_that_changes_the_weights():
    with pytest.raises(AssertionError):
        contract_of(Destructive).test_choosing_masks_leaves_the_weights_and_statistics_alone("0.5")


def test_the_contract_catches_a_method_with_randomness_of_its_own():
    with pytest.raises(AssertionError):
        contract_of(Unseeded).test_the_same_seed_gives_the_same_masks_and_weights("0.5")
