import numpy as np
import pytest
import torch
from layers import NO_CHANCE, correlated_inputs, drawn_weight, statistics_of
from torch import Tensor

from ressa.prune import LayerStatistics, PruneMethod, keep_mask
from ressa.prune.dsnot import DSnoT
from ressa.prune.magnitude import Magnitude
from ressa.prune.masks import Removal
from ressa.prune.random import Random
from ressa.prune.sparsegpt import SparseGPT
from ressa.prune.wanda import Wanda
from ressa.sparsity import Pattern
from ressa.testing import PruneMethodContract

HALF, PATTERNS = np.full(24, 64), [Pattern(2, 4), Pattern(4, 8)]
REMOVALS = [HALF, 24 * 90, *PATTERNS]
any_removal = pytest.mark.parametrize("removal", REMOVALS, ids=["rows", "matrix", "2:4", "4:8"])


class TestDSnoTKeepsTheContract(PruneMethodContract):
    method = DSnoT


class DSnoTOfSparseGPT(DSnoT):
    def __init__(self) -> None:
        super().__init__(SparseGPT())


class TestDSnoTOfSparseGPTKeepsTheContract(PruneMethodContract):
    method = DSnoTOfSparseGPT


@pytest.fixture
def weight() -> Tensor:
    return drawn_weight(columns=128)


@pytest.fixture
def statistics() -> LayerStatistics:
    """Of inputs whose means are far from zero."""
    return statistics_of(correlated_inputs(columns=128, offset=2.0))


def refine(
    weight: Tensor, statistics: LayerStatistics, removal: Removal, **options: object
) -> tuple[Tensor, Tensor]:
    """The initial mask, and what DSnoT makes of it."""
    method = DSnoT(**options)
    initial = keep_mask(method.saliency(weight, statistics, NO_CHANCE), removal)
    return initial, method.prune(weight, statistics, removal, NO_CHANCE).keep_mask


def expected_error(weight: Tensor, statistics: LayerStatistics, keep: Tensor) -> Tensor:
    """What each row's output lacks, on average over samples."""
    return (weight * statistics.sums / statistics.samples).masked_fill(keep, 0).sum(dim=1)


def reference(
    weight: Tensor, statistics: LayerStatistics, initial: Tensor, group: int | None, cycles: int
) -> np.ndarray:
    """The algorithm as its authors' code runs it: one row after the other, all candidates sorted.

    Two pointers run over each sorted list; nothing stops them at the end of one.
    """
    mean = (statistics.sums / statistics.samples).numpy()
    variance = statistics.square_sums.numpy() / statistics.tokens
    variance = variance - (statistics.sums.numpy() / statistics.tokens) ** 2
    norm = np.sqrt(statistics.square_sums.numpy())
    keep = initial.numpy().copy()
    for row, values in enumerate(weight.numpy()):
        contribution, wanda, kept = values * mean, np.abs(values) * norm, initial.numpy()[row]
        error = contribution[~kept].sum()
        sign = np.sign(error)
        growing = np.argsort(np.where(kept, 0, contribution) / variance, kind="stable")
        by_wanda = np.argsort(np.where(kept, wanda, np.inf), kind="stable")[: kept.sum()]
        negative, positive = (by_wanda[contribution[by_wanda] * s > 0] for s in (-1, 1))
        pruning = np.concatenate([negative, positive[::-1]])
        grow_head, grow_tail, prune_head, prune_tail = 0, len(growing) - 1, 0, len(pruning) - 1
        left = np.where(kept, wanda, np.inf)
        for _ in range(cycles):
            if abs(error) <= 0.1:
                break
            if error > 0:
                grow, grow_tail = growing[grow_tail], grow_tail - 1
            else:
                grow, grow_head = growing[grow_head], grow_head + 1
            if group is not None:
                start = grow // group * group
                prune = start + np.argmin(left[start : start + group])
            elif error < 0:
                prune, prune_tail = pruning[prune_tail], prune_tail - 1
            else:
                prune, prune_head = pruning[prune_head], prune_head + 1
            after = error + contribution[prune] - contribution[grow]
            if group is not None and np.sign(after) != sign:
                break
            left[prune] = np.inf
            keep[row, prune], keep[row, grow] = False, True
            error = after
    return keep


@pytest.mark.parametrize("removal", [HALF, 24 * 90, Pattern(2, 4)], ids=["rows", "matrix", "2:4"])
@pytest.mark.parametrize("cycles", [1, 5, 12])
@pytest.mark.parametrize(("seed", "initial"), [(0, Wanda()), (1, Wanda()), (2, Magnitude())])
def test_it_is_the_algorithm_of_the_authors(removal, cycles, seed, initial: PruneMethod):
    # Of so few cycles no list of candidates comes to its end.
    weight = drawn_weight(columns=128, seed=seed)
    statistics = statistics_of(correlated_inputs(columns=128, offset=2.0, seed=seed))
    start, keep = refine(weight, statistics, removal, initial=initial, cycles=cycles)
    group = removal.group if isinstance(removal, Pattern) else None
    expected = reference(weight, statistics, start, group, cycles)
    assert (keep.numpy() == expected).all()
    assert not keep.equal(start)


@any_removal
@pytest.mark.parametrize("initial", [Wanda(), Magnitude(), SparseGPT(), Random()])
def test_rows_keep_their_counts_and_the_expected_error_shrinks(
    weight, statistics, removal, initial: PruneMethod
):
    method = DSnoT(initial, cycles=50)
    before = keep_mask(
        initial.saliency(weight, statistics, torch.Generator().manual_seed(0)), removal
    )
    after = method.prune(weight, statistics, removal, torch.Generator().manual_seed(0)).keep_mask
    assert (after.sum(dim=1) == before.sum(dim=1)).all()
    assert not after.equal(before)
    errors = [expected_error(weight, statistics, mask).abs().mean() for mask in (before, after)]
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("removal", PATTERNS, ids=str)
def test_a_pattern_stays_one(weight, statistics, removal):
    _, keep = refine(weight, statistics, removal, cycles=1000)
    assert (keep.reshape(-1, removal.group).sum(dim=1) == removal.kept).all()


@any_removal
def test_where_inputs_average_to_nothing_nothing_changes(weight, removal):
    inputs = correlated_inputs(columns=128)
    initial, keep = refine(weight, statistics_of(torch.cat([inputs, -inputs])), removal)
    assert keep.equal(initial)


@any_removal
def test_weights_keep_their_values(weight, statistics, removal):
    assert DSnoT().prune(weight, statistics, removal, NO_CHANCE).weight is None


@pytest.mark.parametrize("columns", [1, 2, 4, 8])
@pytest.mark.parametrize("rows", [1, 5])
def test_layers_with_fewer_inputs_than_cycles(rows, columns):
    weight = drawn_weight(rows, columns)
    statistics = statistics_of(correlated_inputs(columns=columns, offset=5.0))
    for zeros in range(columns + 1):
        initial, keep = refine(weight, statistics, np.full(rows, zeros))
        assert (keep.sum(dim=1) == initial.sum(dim=1)).all()
    if columns % 4 == 0:
        for pattern in (Pattern(1, 4), Pattern(2, 4), Pattern(3, 4)):
            _, keep = refine(weight, statistics, pattern)
            assert (keep.reshape(-1, 4).sum(dim=1) == pattern.kept).all()


@pytest.mark.parametrize("removal", [np.full(24, 120), np.full(24, 3), Pattern(1, 8)], ids=str)
def test_when_candidates_run_out_counts_still_hold(weight, statistics, removal):
    initial, keep = refine(weight, statistics, removal, cycles=500, threshold=0.0)
    assert (keep.sum(dim=1) == initial.sum(dim=1)).all()
    if isinstance(removal, Pattern):
        assert (keep.reshape(-1, 8).sum(dim=1) == 1).all()


@any_removal
def test_dead_and_constant_inputs_do_no_harm(weight, removal):
    inputs = correlated_inputs(columns=128, offset=2.0)
    inputs[:, [5, 77]] = 0
    inputs[:, [8, 90]] = 3.5
    initial, keep = refine(weight, statistics_of(inputs), removal)
    assert (keep.sum(dim=1) == initial.sum(dim=1)).all()
    assert keep[:, [5, 77]].equal(initial[:, [5, 77]])  # they contribute to no error


@any_removal
def test_the_scale_of_the_weights_moves_only_the_threshold(weight, statistics, removal):
    _, keep = refine(weight, statistics, removal, threshold=0.1)
    _, scaled = refine(8 * weight, statistics, removal, threshold=0.8)
    assert scaled.equal(keep)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_lower_precision_is_refined_in_floats(statistics, dtype):
    weight = drawn_weight(columns=128).to(dtype)
    _, keep = refine(weight, statistics, HALF)
    _, exact = refine(weight.float(), statistics, HALF)
    assert keep.equal(exact)


def test_narrow_layers_take_fewer_cycles_than_the_paper():
    for columns, cycles in ((4096, 50), (1000, 50), (64, 3), (4, 1)):
        weight = drawn_weight(2, columns)
        statistics = statistics_of(correlated_inputs(columns=columns, tokens=50, offset=2.0))
        removal = np.full(2, columns // 2)
        _, keep = refine(weight, statistics, removal)
        assert keep.equal(refine(weight, statistics, removal, cycles=cycles)[1])


def test_it_needs_what_its_initial_method_needs():
    assert DSnoT().needs == "moments"
    assert DSnoT(SparseGPT()).needs == "gram"
    assert DSnoT(Random()).needs == "moments"
    assert DSnoT(SparseGPT()).versions == (DSnoT.version, SparseGPT.version)
