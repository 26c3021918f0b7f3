import pytest
import torch

from ressa.catalog import METHODS
from ressa.prune import PruneMethod
from ressa.sparsity import Target
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


def contract_of(tested: type[PruneMethod]) -> PruneMethodContract:
    return type("Contract", (PruneMethodContract,), {"method": tested})()


def test_the_contract_catches_a_method_that_changes_the_weights():
    with pytest.raises(AssertionError):
        contract_of(Destructive).test_choosing_masks_leaves_the_weights_and_statistics_alone("0.5")


def test_the_contract_catches_a_method_with_randomness_of_its_own():
    with pytest.raises(AssertionError):
        contract_of(Unseeded).test_the_same_seed_gives_the_same_masks_and_weights("0.5")
