"""One threshold over many layers: exact, whatever the floats, a layer at a time."""

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ressa.errors import PruneError
from ressa.prune.masks import keep_mask
from ressa.prune.threshold import zeros_by_saliency
from ressa.sparsity import LayerShape

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def shapes(sizes: list[tuple[int, int]]) -> list[LayerShape]:
    return [
        LayerShape(name=str(index), tower="vision", block=index, rows=rows, columns=columns)
        for index, (rows, columns) in enumerate(sizes)
    ]


def all_at_once(saliencies: list[Tensor], zeros: int) -> list[int]:
    """The same by one mask of all saliencies laid end to end."""
    ends = torch.cat([saliency.reshape(1, -1) for saliency in saliencies], dim=1)
    kept = keep_mask(ends, zeros).split([saliency.numel() for saliency in saliencies], dim=1)
    return [int((~part).sum()) for part in kept]


def found(saliencies: list[Tensor], zeros: int) -> list[int]:
    layers = shapes([tuple(saliency.shape) for saliency in saliencies])
    return zeros_by_saliency(layers, zeros, lambda layer: saliencies[int(layer.name)])


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    share=st.floats(0, 1),
    seed=st.integers(0, 999),
    levels=st.sampled_from([1, 3, 1000]),
)
def test_it_is_the_mask_of_all_layers_laid_end_to_end(dtype, sizes, share, seed, levels):
    drawn = np.random.default_rng(seed)
    saliencies = [
        # Few levels make many ties, of both signs.
        torch.from_numpy(drawn.integers(-levels, levels + 1, size=size) / 7).to(dtype)
        for size in sizes
    ]
    zeros = round(share * sum(saliency.numel() for saliency in saliencies))
    assert found(saliencies, zeros) == all_at_once(saliencies, zeros)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_count_of_values_over_all_magnitudes_is_met(dtype):
    span = 4 if dtype == torch.float16 else 30
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    values *= 10 ** torch.linspace(-span, span, 40, dtype=torch.float64)
    saliencies = [row.reshape(5, 8).to(dtype) for row in values]
    for zeros in range(121):
        counts = found(saliencies, zeros)
        assert sum(counts) == zeros
        assert counts == all_at_once(saliencies, zeros)


def test_minus_zero_is_zero_and_the_later_of_equal_ones_stays():
    first, second = torch.tensor([[0.0, -0.0]]), torch.tensor([[-0.0, 1.0]])
    assert found([first, second], 1) == [1, 0]
    assert found([first, second], 2) == [2, 0]
    assert found([first, second], 3) == [2, 1]


def test_layers_of_several_types_are_compared_as_numbers():
    third = 1 / 3
    saliencies = [torch.tensor([[third]], dtype=t) for t in (torch.float32, torch.float64)]
    assert float(saliencies[0]) > third  # rounded upwards, so the double is the lower one
    assert found(saliencies, 1) == [0, 1]
    assert found(saliencies[::-1], 1) == [1, 0]


def test_one_layer_is_held_at_a_time_and_asked_a_few_times():
    asked: list[str] = []
    held: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def saliency(layer: LayerShape) -> Tensor:
        assert len(held) <= 1  # the last one's, until this one takes its place
        asked.append(layer.name)
        drawn = torch.rand(4, 4, generator=torch.Generator().manual_seed(int(layer.name)))
        held.add(drawn)
        return drawn

    layers = shapes([(4, 4)] * 3)
    assert sum(zeros_by_saliency(layers, 20, saliency)) == 20
    assert asked == ["0", "1", "2"] * 3


def test_nothing_and_everything_need_no_saliency():
    layers = shapes([(2, 3), (1, 4)])
    refuse = lambda layer: pytest.fail("asked")  # noqa: E731
    assert zeros_by_saliency(layers, 0, refuse) == [0, 0]
    assert zeros_by_saliency(layers, 10, refuse) == [6, 4]


@pytest.mark.parametrize(
    ("saliency", "message"),
    [
        (torch.tensor([[1.0, torch.nan]]), "0: a saliency is not finite"),
        (torch.tensor([[1.0, torch.inf]]), "0: a saliency is not finite"),
        (torch.ones(2, 1), r"0: saliencies of shape \(2, 1\), the weight is \(1, 2\)"),
    ],
)
def test_what_cannot_be_compared_names_its_layer(saliency, message):
    with pytest.raises(PruneError, match=message):
        zeros_by_saliency(shapes([(1, 2)]), 1, lambda layer: saliency)
