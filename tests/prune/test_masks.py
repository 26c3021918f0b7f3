import hashlib
import itertools
import json

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ressa.errors import PruneError
from ressa.prune import masks as module
from ressa.prune.masks import (
    PackedMasks,
    keep_mask,
    keep_masks,
    mask_bits,
    mask_hash,
    mask_of_bits,
    zero_pruned_,
)
from ressa.sparsity import Pattern


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def tied(*shape: int, seed: int = 0) -> Tensor:
    """Saliencies of which most equal several others."""
    return torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def reference_rows(saliency: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """Prunes one weight after the other, as the definition reads."""
    kept = np.ones(saliency.shape, dtype=bool)
    for row, count in enumerate(zeros):
        order = sorted(range(saliency.shape[1]), key=lambda column: (saliency[row, column], column))
        kept[row, order[:count]] = False
    return kept


@pytest.mark.parametrize("draw", [drawn, tied])
def test_rows_agree_with_the_definition(draw):
    saliency = draw(40, 17)
    zeros = np.random.default_rng(0).integers(0, 18, size=40)
    expected = reference_rows(saliency.numpy(), zeros)
    assert (keep_mask(saliency, zeros).numpy() == expected).all()


@pytest.mark.parametrize("draw", [drawn, tied])
@pytest.mark.parametrize("zeros", [0, 1, 29, 59, 60])
def test_a_matrix_agrees_with_the_definition(draw, zeros):
    saliency = draw(6, 10)
    expected = reference_rows(saliency.reshape(1, -1).numpy(), np.array([zeros]))
    assert (keep_mask(saliency, zeros).numpy() == expected.reshape(6, 10)).all()


@pytest.mark.parametrize("draw", [drawn, tied])
@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 4), Pattern(4, 8), Pattern(5, 8)])
def test_patterns_agree_with_the_definition(draw, pattern):
    saliency = draw(6, 16)
    groups = saliency.reshape(-1, pattern.group).numpy()
    expected = reference_rows(groups, np.full(len(groups), pattern.group - pattern.kept))
    assert (keep_mask(saliency, pattern).numpy() == expected.reshape(6, 16)).all()


def test_equal_saliencies_keep_the_larger_column():
    assert keep_mask(torch.ones(2, 4), np.array([1, 3])).tolist() == [
        [False, True, True, True],
        [False, False, False, True],
    ]
    assert keep_mask(torch.ones(1, 4), Pattern(1, 4)).tolist() == [[False, False, False, True]]
    assert keep_mask(torch.ones(2, 2), 3).tolist() == [[False, False], [False, True]]


def test_zero_and_minus_zero_are_equal_saliencies():
    saliency = torch.tensor([[0.0, -0.0, 0.0, -0.0]])
    assert keep_mask(saliency, np.array([2])).tolist() == [[False, False, True, True]]


def test_two_of_four_keeps_the_pair_of_the_largest_sum():
    saliency = drawn(5, 12)
    kept = torch.where(keep_mask(saliency, Pattern(2, 4)), saliency, 0).reshape(-1, 4).sum(dim=1)
    pairs = [
        saliency.reshape(-1, 4)[:, pair].sum(dim=1) for pair in itertools.combinations(range(4), 2)
    ]
    assert torch.allclose(kept, torch.stack(pairs).amax(dim=0))


def test_two_of_four_is_four_of_eight_and_not_the_other_way_round():
    saliency = drawn(6, 32)
    narrow = keep_mask(saliency, Pattern(2, 4)).reshape(-1, 8).sum(dim=1)
    wide = keep_mask(saliency, Pattern(4, 8)).reshape(-1, 4).sum(dim=1)
    assert (narrow == 4).all()
    assert (wide != 2).any()


def test_a_narrower_choice_never_keeps_more_saliency():
    saliency = drawn(8, 32)
    removals = [8 * 16, np.full(8, 16), Pattern(4, 8), Pattern(2, 4)]
    kept = [float(saliency[keep_mask(saliency, removal)].sum()) for removal in removals]
    assert kept == sorted(kept, reverse=True)


def test_masks_of_growing_sparsity_are_nested():
    saliency = tied(10, 16)
    masks = [keep_mask(saliency, np.full(10, zeros)) for zeros in range(17)]
    assert all((denser | ~sparser).all() for denser, sparser in itertools.pairwise(masks))


def test_permuted_saliencies_give_permuted_masks():
    saliency, zeros = drawn(9, 20), np.arange(9) * 2
    rows, columns = torch.randperm(9), torch.randperm(20)
    permuted = keep_mask(saliency[rows][:, columns], zeros[rows.numpy()])
    assert permuted.equal(keep_mask(saliency, zeros)[rows][:, columns])


@pytest.mark.parametrize("draw", [drawn, tied])
@pytest.mark.parametrize("cache_values", [1, 40, 2**17])
def test_many_choices_from_one_sort_are_those_made_alone(monkeypatch, draw, cache_values):
    saliency = draw(10, 16) - 0.5
    rows = np.random.default_rng(1).integers(0, 17, size=10)
    removals = [np.full(10, 3), 0, rows, Pattern(2, 4), 77, np.full(10, 16), 160, Pattern(1, 8)]
    alone = [keep_mask(saliency, removal) for removal in removals]
    monkeypatch.setattr(module, "_CACHE_VALUES", cache_values)
    together = list(keep_masks(saliency, removals))
    assert len(together) == len(removals)
    assert all(one.equal(other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("draw", [drawn, tied])
def test_ranks_as_gpus_take_them_choose_the_same(draw, dtype):
    saliency = (draw(10, 16) - 0.5).to(dtype)
    saliency[:, 3], saliency[:, 5] = 0.0, -0.0
    rows = np.random.default_rng(1).integers(0, 17, size=10)
    removals = [rows, 0, np.full(10, 3), Pattern(2, 4), 77, np.full(10, 16), 160, Pattern(1, 8)]
    removals += [Pattern(4, 8), Pattern(15, 16)]
    ranked = module._by_rank(saliency, removals)
    for one, other in zip(keep_masks(saliency, removals), ranked, strict=True):
        assert one.equal(other)


class Operations(TorchDispatchMode):
    """Notes which operations run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_patterns_are_chosen_without_a_sort_and_without_a_word_to_the_host():
    with Operations() as seen:
        list(module._by_rank(drawn(8, 16), [Pattern(2, 4), Pattern(4, 8)]))
    assert "le" in seen.names
    assert not seen.names & {"sort", "_local_scalar_dense", "_to_copy", "nonzero"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("removal", [40_000, np.full(64, 700), Pattern(2, 4), Pattern(4, 8)])
@pytest.mark.parametrize("draw", [drawn, tied])
def test_a_gpu_chooses_as_a_cpu_does(draw, removal):
    saliency = draw(64, 1024)
    assert keep_mask(saliency.cuda(), removal).cpu().equal(keep_mask(saliency, removal))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_is_pruned_becomes_plus_zero_and_nothing_else_changes(dtype):
    weight, keep = (drawn(7, 9) - 0.5).to(dtype), drawn(7, 9, seed=1) > 0.4
    left = weight.clone()
    zero_pruned_(left, keep)
    assert left[keep].equal(weight[keep])
    assert not left[~keep].any() and not left[~keep].signbit().any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_float_type_is_ranked(dtype):
    saliency = tied(5, 8)
    zeros = np.full(5, 3)
    assert keep_mask(saliency.to(dtype), zeros).equal(keep_mask(saliency, zeros))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_saliency_that_is_not_finite_is_refused(value):
    saliency = drawn(2, 4)
    saliency[1, 2] = value
    with pytest.raises(PruneError) as caught:
        keep_mask(saliency, np.array([1, 1]))
    assert caught.value.failure == "numeric"


@pytest.fixture
def masks() -> dict[str, Tensor]:
    return {"b.fc1": tied(3, 5) > 1, "a.q": tied(4, 16) > 2}


def test_packed_masks_come_back(masks):
    for mask in masks.values():
        bits = mask_bits(mask)
        assert len(bits) == -(-mask.numel() // 8)
        assert mask_of_bits(bits, *mask.shape).equal(mask)


def test_the_hash_tells_masks_apart(masks):
    hashes = {mask_hash(masks)}
    flipped = masks["a.q"].clone()
    flipped[3, 15] ^= True
    hashes.add(mask_hash(masks | {"a.q": flipped}))
    hashes.add(mask_hash(masks | {"a.q": masks["a.q"].reshape(16, 4)}))
    hashes.add(mask_hash({"a.k": masks["a.q"], "b.fc1": masks["b.fc1"]}))
    assert len(hashes) == 4
    assert mask_hash(dict(reversed(masks.items()))) in hashes


def test_packed_masks_are_hashed_as_they_are_held(masks):
    class NeverUnpacked(PackedMasks):
        def __getitem__(self, name):
            raise AssertionError(name)

    expected = hashlib.sha256()
    for name in sorted(masks):
        expected.update(json.dumps([name, list(masks[name].shape)]).encode())
        expected.update(np.packbits(masks[name].numpy()).tobytes())
    assert mask_hash(NeverUnpacked(masks)) == mask_hash(masks) == expected.hexdigest()
