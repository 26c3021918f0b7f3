import dataclasses

import numpy as np
import pytest
import scipy.linalg
import torch
from layers import NO_CHANCE, correlated_inputs, drawn_weight, output_error, statistics_of
from torch import Tensor

from ressa.errors import PruneError
from ressa.prune import LayerStatistics, keep_mask
from ressa.prune import sparsegpt as module
from ressa.prune.magnitude import Magnitude
from ressa.prune.masks import Removal
from ressa.prune.sparsegpt import DAMPENING, SparseGPT
from ressa.prune.wanda import Wanda
from ressa.sparsity import Pattern
from ressa.testing import PruneMethodContract

HALF_OF_EACH_ROW, SEVEN_TENTHS = np.full(24, 32), round(24 * 64 * 0.7)
REMOVALS = [HALF_OF_EACH_ROW, SEVEN_TENTHS, Pattern(2, 4), Pattern(4, 8)]
REMOVAL_NAMES = ["rows", "matrix", "2:4", "4:8"]
any_removal = pytest.mark.parametrize("removal", REMOVALS, ids=REMOVAL_NAMES)


class TestSparseGPTKeepsTheContract(PruneMethodContract):
    method = SparseGPT


def prune(
    weight: Tensor, statistics: LayerStatistics, removal: Removal, **options: float
) -> tuple[Tensor, Tensor]:
    """The mask, and the weights with zeros where it prunes."""
    pruned = SparseGPT(**options).prune(weight, statistics, removal, NO_CHANCE)
    assert pruned.weight is not None
    return pruned.keep_mask, pruned.weight.masked_fill(~pruned.keep_mask, 0)


def dampened(gram: Tensor, dampening: float = 0.01) -> np.ndarray:
    hessian = gram.double().numpy().copy()
    hessian[np.diag_indices_from(hessian)] += dampening * hessian.diagonal().mean()
    return hessian


def reference(
    weight: Tensor,
    hessian: np.ndarray,
    removal: Removal,
    block: int = 128,
    dtype: type = np.float64,
) -> tuple[np.ndarray, np.ndarray, float]:
    """The algorithm as its authors state it: by the Cholesky factor of the inverse, blockwise.

    Returns the mask, the new weights and the sum of the squared errors.
    """
    left = weight.numpy().astype(dtype)
    rows, columns = left.shape
    lower = scipy.linalg.cholesky(hessian.astype(dtype), lower=True)
    inverse = scipy.linalg.cho_solve((lower, True), np.eye(columns, dtype=dtype))
    factor = scipy.linalg.cholesky((inverse + inverse.T) / 2)
    assert factor.dtype == dtype  # numpy's own would compute in doubles throughout
    keep, loss = np.ones(left.shape, dtype=bool), 0.0
    for start in range(0, columns, block):
        end = min(start + block, columns)
        errors = np.zeros((rows, end - start), dtype=dtype)
        for column in range(start, end):
            if isinstance(removal, Pattern):
                if column % removal.group == 0:
                    chosen = slice(column, column + removal.group)
                    keep[:, chosen] = reference_choice(left, factor, chosen, removal)
            elif column == start:
                chosen = slice(start, end)
                share = np.floor(removal * end / columns + 0.5)
                share = share - np.floor(removal * start / columns + 0.5)
                keep[:, chosen] = reference_choice(left, factor, chosen, share)
            gone = np.where(keep[:, column], 0, left[:, column])
            error = gone / factor[column, column]
            left[:, column:end] -= np.outer(error, factor[column, column:end])
            left[:, column] = np.where(keep[:, column], left[:, column], 0)
            errors[:, column - start] = error
            loss += float((error**2).sum())
        left[:, end:] -= errors @ factor[start:end, end:]
    return keep, left, loss


def reference_choice(left: np.ndarray, factor: np.ndarray, chosen: slice, share: object):
    saliency = left[:, chosen] ** 2 / factor.diagonal()[chosen] ** 2
    if isinstance(share, Pattern):
        share = np.full(len(left), share.group - share.kept)
    if isinstance(share, np.ndarray):
        rank = saliency.argsort(axis=1, kind="stable").argsort(axis=1)
        return rank >= share[:, None]
    rank = saliency.ravel().argsort(kind="stable").argsort()
    return (rank >= share).reshape(saliency.shape)


@any_removal
@pytest.mark.parametrize("block", [16, 128])
def test_it_is_the_algorithm_of_the_paper(removal, block):
    weight, statistics = drawn_weight(), statistics_of(correlated_inputs())
    keep, left = prune(weight, statistics, removal, block=block)
    expected_keep, expected, _ = reference(weight, dampened(statistics.gram), removal, block)
    assert (keep.numpy() == expected_keep).all()
    np.testing.assert_allclose(left.numpy(), expected, atol=1e-12)


@any_removal
def test_the_output_error_is_the_sum_of_the_errors_of_the_columns(removal):
    weight, statistics = drawn_weight(), statistics_of(correlated_inputs())
    hessian = dampened(statistics.gram)
    _, left = prune(weight, statistics, removal)
    _, _, loss = reference(weight, hessian, removal)
    assert output_error(weight.numpy(), left.numpy(), hessian) == pytest.approx(loss, rel=1e-12)


def test_inputs_that_do_not_go_together_leave_nothing_to_make_up_for():
    weight, inputs = drawn_weight(), torch.diag(torch.arange(1.0, 65, dtype=torch.float64))
    statistics = statistics_of(inputs)
    keep, left = prune(weight, statistics, Pattern(2, 4), dampening=0.0)
    assert left[keep].equal(weight[keep])
    assert keep.equal(keep_mask(Wanda().saliency(weight, statistics, NO_CHANCE), Pattern(2, 4)))


@pytest.mark.parametrize("block", [1, 7, 16, 64])
def test_on_a_given_mask_blocks_play_no_part(monkeypatch, block):
    weight, statistics = drawn_weight(), statistics_of(correlated_inputs())
    given = torch.rand(64, 24, generator=torch.Generator().manual_seed(5)) > 0.5
    parts = iter(())
    monkeypatch.setattr(module, "_choose", lambda *_: next(parts))
    parts = (part.T for part in given.split(128))
    _, once = prune(weight, statistics, HALF_OF_EACH_ROW, block=128)
    parts = (part.T for part in given.split(block))
    _, again = prune(weight, statistics, HALF_OF_EACH_ROW, block=block)
    assert (once - again).abs().max() < 1e-13


@any_removal
def test_it_lies_between_least_squares_on_its_mask_and_plain_masking(removal):
    for seed in range(10):
        weight = drawn_weight(seed=seed)
        statistics = statistics_of(correlated_inputs(seed=seed + 100))
        hessian = dampened(statistics.gram)
        keep, left = prune(weight, statistics, removal)
        dense, mask = weight.numpy(), keep.numpy()
        best = np.zeros_like(dense)
        for row, stays in enumerate(mask):
            wanted = hessian[stays] @ dense[row]
            best[row, stays] = np.linalg.solve(hessian[np.ix_(stays, stays)], wanted)
        errors = [output_error(dense, w, hessian) for w in (best, left.numpy(), dense * mask)]
        assert errors[0] <= errors[1] * (1 + 1e-12)
        assert errors[1] < errors[2]


@any_removal
def test_on_correlated_inputs_it_loses_less_than_wanda_and_wanda_less_than_magnitude(removal):
    for seed in range(10):
        weight = drawn_weight(seed=seed)
        statistics = statistics_of(correlated_inputs(seed=seed + 200))
        hessian = statistics.gram.numpy()
        _, left = prune(weight, statistics, removal)
        errors = [output_error(weight.numpy(), left.numpy(), hessian)]
        for method in (Wanda(), Magnitude()):
            keep = method.prune(weight, statistics, removal, NO_CHANCE).keep_mask
            errors.append(output_error(weight.numpy(), (weight * keep).numpy(), hessian))
        assert errors == sorted(errors)


@pytest.mark.parametrize("zeros", [0, 1, 777, 24 * 200 - 1, 24 * 200])
def test_a_matrix_loses_exactly_its_count_over_several_blocks(zeros):
    statistics = statistics_of(correlated_inputs(columns=200, tokens=300))
    keep, _ = prune(drawn_weight(columns=200), statistics, zeros, block=64)
    assert int((~keep).sum()) == zeros


def test_rows_lose_exactly_their_counts_over_several_blocks():
    statistics = statistics_of(correlated_inputs(columns=200, tokens=300))
    zeros = np.random.default_rng(0).integers(0, 201, size=24)
    keep, _ = prune(drawn_weight(columns=200), statistics, zeros, block=64)
    assert (~keep).sum(dim=1).tolist() == zeros.tolist()


def test_each_block_of_columns_loses_its_share():
    statistics = statistics_of(correlated_inputs(columns=200, tokens=300))
    keep, _ = prune(drawn_weight(columns=200), statistics, 2400, block=50)
    assert [int((~part).sum()) for part in keep.split(50, dim=1)] == [600] * 4


@pytest.mark.parametrize("removal", [np.full(24, 4), 24 * 4, Pattern(3, 4)], ids=str)
def test_dead_inputs_are_pruned_first_and_do_no_harm(removal):
    weight, inputs = drawn_weight(), correlated_inputs()
    inputs[:, [3, 14, 40]] = 0
    keep, left = prune(weight, statistics_of(inputs), removal)
    assert not left[:, [3, 14, 40]].any() and not keep[:, [3, 14, 40]].any()
    # Without them it is the layer without them.
    live = [column for column in range(64) if column not in (3, 14, 40)]
    if isinstance(removal, int):
        _, expected = prune(weight[:, live], statistics_of(inputs[:, live]), removal - 24 * 3)
        assert (left[:, live] - expected).abs().max() < 1e-12


def test_weights_of_a_dead_input_that_stay_keep_their_values():
    weight, inputs = drawn_weight(), correlated_inputs()
    inputs[:, :10] = 0
    keep, left = prune(weight, statistics_of(inputs), np.full(24, 5))
    assert int(keep[:, :10].sum()) == 24 * 5
    assert left[keep].equal(weight[keep])


def test_a_layer_that_never_saw_anything_is_pruned_all_the_same():
    weight = drawn_weight()
    keep, left = prune(weight, statistics_of(torch.zeros(5, 64, dtype=torch.float64)), 24 * 32)
    assert int((~keep).sum()) == 24 * 32
    assert left[keep].equal(weight[keep])


@any_removal
def test_the_same_inputs_again_change_nothing(removal):
    weight, inputs = drawn_weight(), correlated_inputs()
    once = prune(weight, statistics_of(inputs), removal)
    four_times = prune(weight, statistics_of(inputs.repeat(4, 1)), removal)
    assert four_times[0].equal(once[0])
    assert (four_times[1] - once[1]).abs().max() < 1e-12


@any_removal
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fewer_tokens_than_inputs_are_enough(removal, dtype):
    weight = drawn_weight().to(dtype)
    statistics = statistics_of(correlated_inputs(tokens=5).to(dtype))
    _, left = prune(weight, statistics, removal)
    assert left.isfinite().all()
    assert left.abs().max() < 100 * weight.abs().max()


@pytest.mark.parametrize("columns", [511, 512, 1100])
def test_a_hessian_of_several_panels_is_its_factors_square(columns):
    gram = statistics_of(correlated_inputs(columns=columns)).gram
    given = gram.clone()
    hessian = module._factorise(gram, 0.01)
    factor = (hessian.factor * hessian.scale).triu()
    expected = torch.from_numpy(dampened(gram))
    torch.testing.assert_close(
        factor @ factor.T, expected, rtol=1e-12, atol=1e-12 * float(gram.max())
    )
    assert gram.equal(given)


def test_a_hessian_that_cannot_be_factorised_says_what_helps():
    statistics = statistics_of(correlated_inputs(tokens=5))
    with pytest.raises(PruneError, match="dampening 0") as caught:
        prune(drawn_weight(), statistics, Pattern(2, 4), dampening=0.0)
    assert caught.value.failure == "numeric"


@pytest.mark.parametrize("removal", [24 * 64, Pattern(2, 4)], ids=["matrix", "2:4"])
def test_in_single_precision_it_is_fifty_times_as_exact_as_by_the_inverse(removal):
    ours, theirs = [], []
    for seed in range(3):
        weight = drawn_weight(columns=128, seed=seed).float()
        inputs = correlated_inputs(tokens=60, columns=128, seed=seed, offset=30)
        single = statistics_of(inputs.float())  # its Gram matrix, in floats, is taken as exact
        exact = dataclasses.replace(single, gram=single.gram.double())
        expected_keep, expected = prune(weight.double(), exact, removal)
        keep, left = prune(weight, single, removal)
        assert left.dtype == torch.float32
        assert keep.equal(expected_keep)
        ours.append(float((left - expected).norm() / expected.norm()))
        _, left, _ = reference(weight, dampened(single.gram), removal, dtype=np.float32)
        same_mask = ((left != 0) == expected_keep.numpy()).all(axis=1)
        lost = torch.from_numpy(left)[same_mask] - expected[same_mask]
        theirs.append(float(lost.norm() / expected[same_mask].norm()))
    assert max(ours) < 1e-6
    assert np.median(theirs) > 50 * np.median(ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_pruned_as_their_values_in_doubles(dtype):
    statistics = statistics_of(correlated_inputs())
    weight = drawn_weight().to(dtype)
    keep, left = prune(weight, statistics, HALF_OF_EACH_ROW)
    expected_keep, expected = prune(weight.double(), statistics, HALF_OF_EACH_ROW)
    assert left.dtype == dtype
    assert keep.equal(expected_keep)
    assert left.equal(expected.to(dtype))


def test_layers_of_one_input_share_its_factor(monkeypatch):
    calls = []
    factorise = module._factorise
    monkeypatch.setattr(module, "_factorise", lambda *given: calls.append(1) or factorise(*given))
    method, statistics = SparseGPT(), statistics_of(correlated_inputs())
    first = method.prune(drawn_weight(seed=1), statistics, 100, NO_CHANCE)
    method.prune(drawn_weight(seed=2), statistics, 100, NO_CHANCE)
    assert len(calls) == 1
    method.prune(drawn_weight(seed=1), statistics_of(correlated_inputs(seed=9)), 100, NO_CHANCE)
    again = method.prune(drawn_weight(seed=1), statistics, 100, NO_CHANCE)
    assert len(calls) == 3
    assert again.keep_mask.equal(first.keep_mask) and again.weight.equal(first.weight)


@pytest.mark.parametrize(("out", "columns"), [(1, 1), (3, 2), (1, 130), (5, 129)])
def test_tiny_and_ragged_layers(out, columns):
    statistics = statistics_of(correlated_inputs(columns=columns))
    keep, left = prune(drawn_weight(out, columns), statistics, out * columns // 2)
    assert int((~keep).sum()) == out * columns // 2
    assert left.isfinite().all()


def test_a_factor_is_let_go_of_with_the_statistics_that_it_was_made_of():
    statistics, method = statistics_of(correlated_inputs()), SparseGPT()
    method.prune(drawn_weight(), statistics, HALF_OF_EACH_ROW, NO_CHANCE)
    assert method._last is not None
    del statistics
    assert method._last is None


@pytest.mark.parametrize("removal", [HALF_OF_EACH_ROW, 100, Pattern(2, 4)])
def test_a_saliency_that_is_not_finite_is_refused(removal):
    statistics, weight = statistics_of(correlated_inputs()), drawn_weight()
    weight[3, 5] = float("nan")
    with pytest.raises(PruneError, match="not finite") as caught:
        SparseGPT().prune(weight, statistics, removal, NO_CHANCE)
    assert caught.value.failure == "numeric"


def test_the_saliency_is_the_papers() -> None:
    weight, statistics = drawn_weight(columns=48), statistics_of(correlated_inputs(columns=48))
    gram = statistics.gram.double()
    hessian = gram + DAMPENING * gram.diagonal().mean() * torch.eye(48)
    inverse = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True).diagonal()
    got = SparseGPT().saliency(weight, statistics, NO_CHANCE).double()
    torch.testing.assert_close(got, (weight.double() / inverse).square(), rtol=1e-3, atol=0)
