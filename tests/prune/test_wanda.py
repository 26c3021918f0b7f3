import numpy as np
import pytest
import torch
from torch import Tensor

from ressa.prune import LayerStatistics
from ressa.prune.magnitude import Magnitude
from ressa.prune.masks import Removal, keep_mask
from ressa.prune.wanda import Wanda
from ressa.sparsity import Pattern
from ressa.testing import PruneMethodContract

REMOVALS = [np.full(16, 12), 16 * 12, Pattern(2, 4), Pattern(4, 8)]


class TestWandaKeepsTheContract(PruneMethodContract):
    method = Wanda


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(16, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def inputs() -> Tensor:
    """Calibration inputs, [token in]."""
    return torch.randn(50, 24, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 25)


def of_norm(norm: Tensor) -> LayerStatistics:
    square_sums = norm.double().square()
    return LayerStatistics(samples=1, tokens=1, sums=0 * square_sums, square_sums=square_sums)


def wanda(weight: Tensor, norm: Tensor, removal: Removal) -> Tensor:
    return keep_mask(Wanda().saliency(weight, of_norm(norm), torch.Generator()), removal)


def magnitude(weight: Tensor, removal: Removal) -> Tensor:
    return keep_mask(Magnitude().saliency(weight, None, torch.Generator()), removal)


def test_saliency_is_magnitude_times_input_norm(weight, inputs):
    saliency = Wanda().saliency(weight, of_norm(inputs.norm(dim=0)), torch.Generator())
    expected = np.abs(weight.numpy().astype(float)) * np.linalg.norm(
        inputs.double().numpy(), axis=0
    )
    np.testing.assert_allclose(saliency.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("removal", REMOVALS, ids=str)
def test_equal_norms_make_it_magnitude(weight, removal):
    norm = torch.full((24,), 4.0)
    assert wanda(weight, norm, removal).equal(magnitude(weight, removal))


@pytest.mark.parametrize("removal", REMOVALS, ids=str)
def test_the_scale_of_the_inputs_does_not_matter(weight, inputs, removal):
    expected = wanda(weight, inputs.norm(dim=0), removal)
    assert wanda(weight, (3.7 * inputs).norm(dim=0), removal).equal(expected)


@pytest.mark.parametrize("removal", REMOVALS, ids=str)
def test_a_scale_moved_from_inputs_to_weights_does_not_matter(weight, inputs, removal):
    scale = torch.rand(24, generator=torch.Generator().manual_seed(2)) + 0.1
    expected = wanda(weight, inputs.norm(dim=0), removal)
    assert wanda(weight / scale, (inputs * scale).norm(dim=0), removal).equal(expected)


@pytest.mark.parametrize("removal", REMOVALS, ids=str)
def test_the_signs_of_the_weights_do_not_matter(weight, inputs, removal):
    norm = inputs.norm(dim=0)
    assert wanda(-weight, norm, removal).equal(wanda(weight, norm, removal))


def test_permuted_rows_and_inputs_permute_the_mask(weight, inputs):
    removal, norm = np.full(16, 12), inputs.norm(dim=0)
    rows, columns = torch.randperm(16), torch.randperm(24)
    permuted = wanda(weight[rows][:, columns], norm[columns], removal)
    assert permuted.equal(wanda(weight, norm, removal)[rows][:, columns])


@pytest.mark.parametrize("removal", [np.full(16, 1), 16, Pattern(3, 4)], ids=str)
def test_a_dead_input_is_pruned_first(weight, inputs, removal):
    norm = inputs.norm(dim=0)
    norm[6] = 0
    assert not wanda(weight, norm, removal)[:, 6].any()


def test_half_precision_weights_are_not_rounded_to_ties():
    weight = torch.tensor([[1.0, 1.0, 1.0, 1.0]], dtype=torch.bfloat16)
    norm = torch.tensor([1.003, 1.001, 1.002, 1.0])  # all 1.0 in bfloat16
    assert wanda(weight, norm, np.array([2])).tolist() == [[True, False, True, False]]
