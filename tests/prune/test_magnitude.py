import numpy as np
import pytest
import torch

from ressa.prune.magnitude import Magnitude
from ressa.prune.masks import keep_mask
from ressa.sparsity import Pattern
from ressa.testing import PruneMethodContract


class TestMagnitudeKeepsTheContract(PruneMethodContract):
    method = Magnitude


@pytest.mark.parametrize("removal", [np.full(12, 9), 100, Pattern(2, 4)], ids=str)
def test_the_signs_of_the_weights_do_not_matter(removal):
    weight = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    signs = torch.randint(0, 2, weight.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    masks = [
        keep_mask(Magnitude().saliency(signed, None, torch.Generator()), removal)
        for signed in (weight, -weight, weight * signs)
    ]
    assert masks[0].equal(masks[1]) and masks[0].equal(masks[2])


def test_the_smallest_magnitudes_of_the_matrix_go():
    weight = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    kept = keep_mask(Magnitude().saliency(weight, None, torch.Generator()), 100)
    assert weight[~kept].abs().max() < weight[kept].abs().min()
