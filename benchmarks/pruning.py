"""Pruning one layer: ours beside the peers' own code, on the same weights and statistics.

Weights are Gaussian. Inputs are made as those of a language model's layers look: features go
together in a spectrum that falls as 1/rank, their scales differ (log-normal), a few are outliers,
and their means are not zero. "White" inputs are independent Gaussians, all of one scale.

What is timed starts at a layer's weights and statistics and ends with zeros in the weights; for
Wanda, with the masks.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.report import Row, interleaved
from ressa.prune import LayerStatistics, PruneMethod, Removal
from ressa.prune.dsnot import DSnoT
from ressa.prune.masks import zero_pruned_
from ressa.prune.sparsegpt import SparseGPT
from ressa.prune.statistics import add_weighted_gram_
from ressa.prune.wanda import Wanda
from ressa.sparsity import Pattern

WIDE = [(2048, 5632), (4096, 4096)]
LAYERS = [(1024, 1024), (2048, 2048), (2048, 5632)]
EIGHT = [0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.7, 0.8]
CYCLES = 50
NO_CHANCE = torch.Generator()


def rows(given: Namespace) -> Iterator[Row]:
    """Measures all that the peers at hand allow; says which are missing."""
    compressor = peers.LLMCompressor.installed()
    if compressor is None:
        print("llmcompressor is not installed: its rows are left out.")
    for name, path, measure in (
        ("wanda", given.wanda, _wanda),
        ("sparsegpt", given.sparsegpt, _sparsegpt),
        ("dsnot", given.dsnot, _dsnot),
    ):
        if path is None:
            print(f"{name}: no checkout given (--{name}): its rows are left out.")
        else:
            yield from measure(path, compressor)


def _wanda(path: object, compressor: peers.LLMCompressor | None) -> Iterator[Row]:
    peer = peers.Wanda.of(path)
    for out, columns in WIDE:
        weight, statistics = _weight(out, columns), _statistics(columns, gram=False)
        theirs: dict[str, Callable[[Tensor, float | None], object]]
        theirs = {"wanda": lambda w, s, known=statistics: peer.prune(w, known, s)}
        if compressor is not None:
            theirs["llmcompressor"] = lambda w, s, known=statistics: compressor.prune_wanda(
                w, known, s
            )
        _assert_equal_zeros(weight, statistics, peer)
        for name, sparsities, floor, goal in (
            ("Wanda masks, one sparsity", [0.5], 5, 8),
            ("Wanda masks, eight sparsities", EIGHT, 40, 60),
            ("Wanda masks, 2:4", [None], 5, 8),
        ):
            yield from _compare_masks(
                name, f"{out}×{columns}", weight, statistics, sparsities, theirs, floor, goal
            )


def _compare_masks(
    name: str,
    shape: str,
    weight: Tensor,
    statistics: LayerStatistics,
    sparsities: Sequence[float | None],
    theirs: dict[str, Callable[[Tensor, float | None], object]],
    floor: float,
    goal: float,
) -> Iterator[Row]:
    """Times masks: ours, and theirs as their code's time less that of zeroing by their masks."""
    removals = [_row_zeros(sparsity, *weight.shape) for sparsity in sparsities]
    each = Wanda().prune_each(weight, statistics, removals, NO_CHANCE)
    lost = [~pruned.keep_mask for pruned in each]

    def ours() -> None:
        for _ in Wanda().prune_each(weight, statistics, removals, NO_CHANCE):
            pass

    def zero(weights: list[Tensor]) -> None:
        for given, mask in zip(weights, lost, strict=True):
            given[mask] = 0

    def copies() -> list[Tensor]:
        return [weight.clone() for _ in sparsities]

    work = _peers_work(theirs, copies, sparsities)
    rounds = 3
    taken = interleaved(
        rounds,
        ours=lambda: ours,
        zero=lambda: partial(zero, copies()),
        **work,
    )
    for peer in work:
        yield Row(
            name=name, shape=shape, peer_name=peer, ours=taken["ours"],
            peer=taken[peer] - taken["zero"], unit="s", rounds=rounds, floor=floor, goal=goal,
        )  # fmt: skip


def _sparsegpt(path: object, compressor: peers.LLMCompressor | None) -> Iterator[Row]:
    peer = peers.SparseGPT.of(path)
    for out, columns in LAYERS:
        weight, statistics = _weight(out, columns), _statistics(columns)
        gram = statistics.gram
        theirs: dict[str, Callable[[Tensor, float | None], object]]
        theirs = {"sparsegpt": lambda w, s, gram=gram: peer.prune(w, gram, s)}
        if compressor is not None:
            theirs["llmcompressor"] = lambda w, s, gram=gram: compressor.prune_sparsegpt(w, gram, s)
        shape, large = f"{out}×{columns}", columns > 4096
        for name, sparsities, floor, goal in (
            ("SparseGPT, one sparsity", [0.5], 3, 5),
            ("SparseGPT, eight sparsities", EIGHT, 5, 10),
            ("SparseGPT, 2:4", [None], None, None),
        ):
            rounds = 1 if large or len(sparsities) > 1 else 3
            removals = [_matrix_zeros(s, out, columns) for s in sparsities]
            yield from _compare(
                name, shape, weight, sparsities, theirs, rounds, floor, goal,
                _ours(SparseGPT(), weight, statistics, removals),
            )  # fmt: skip
        cases = {"": statistics} if large else {"": statistics, ", white inputs": None}
        for inputs, known in cases.items():
            known = known or _statistics(columns, white=True)
            ours, lost = _sparsegpt_errors(weight, known, peer)
            yield Row(
                name=f"SparseGPT, float32 error{inputs}", shape=shape, peer_name="sparsegpt",
                ours=ours[0], peer=lost[0], unit="relative", rounds=1,
                floor=None if inputs else 50, goal=None if inputs else 1000,
            )  # fmt: skip
            yield Row(
                name=f"SparseGPT, float32 error in rows whose mask is the same{inputs}",
                shape=f"{shape} ({ours[2]:.1%} / {lost[2]:.1%} of rows)",
                peer_name="sparsegpt", ours=ours[1], peer=lost[1], unit="relative", rounds=1,
            )  # fmt: skip
        batches = [_inputs(2048, columns, seed=seed)[None] for seed in range(2)]
        ones = torch.ones(2048)

        def accumulate(batches: list[Tensor] = batches, ones: Tensor = ones) -> None:
            gram = batches[0].new_zeros(batches[0].shape[-1], batches[0].shape[-1])
            for batch in batches:
                add_weighted_gram_(gram, batch[0], ones)

        taken = interleaved(
            3 if large else 7,
            ours=lambda run=accumulate: run,
            peer=lambda given=batches: lambda: peer.hessian(given),
        )
        yield Row(
            name="Hessian of 2 × 2048 tokens", shape=str(columns), peer_name="sparsegpt",
            **taken, unit="s", rounds=3 if large else 7, floor=1.7, goal=2,
        )  # fmt: skip


def _dsnot(path: object, compressor: peers.LLMCompressor | None) -> Iterator[Row]:
    peer = peers.DSnoT.of(path)
    for out, columns in LAYERS:
        weight, statistics = _weight(out, columns), _statistics(columns, gram=False)
        for name, sparsity in (("DSnoT, masks identical", 0.5), ("DSnoT, 2:4", None)):
            if sparsity is None and columns > 4096:
                continue  # theirs takes half a minute
            method = DSnoT(cycles=CYCLES)
            ours = _ours(method, weight, statistics, [_row_zeros(sparsity, out, columns)])
            expected, left = weight.clone(), weight.clone()
            peer.prune(expected, statistics, sparsity, CYCLES)
            ours([left])
            assert left.equal(expected), "the masks of DSnoT differ"
            theirs: dict[str, Callable[[Tensor, float | None], object]]
            theirs = {
                "dsnot": lambda w, s, known=statistics: peer.prune(w, known, s, CYCLES),
            }
            rounds = 3 if columns > 4096 else 5
            floor, goal = (3, 6) if sparsity is not None else (None, None)
            yield from _compare(
                name, f"{out}×{columns}", weight, [sparsity], theirs, rounds, floor, goal, ours
            )


def _compare(
    name: str,
    shape: str,
    weight: Tensor,
    sparsities: Sequence[float | None],
    theirs: dict[str, Callable[[Tensor, float | None], object]],
    rounds: int,
    floor: float | None,
    goal: float | None,
    ours: Callable[[list[Tensor]], None],
) -> Iterator[Row]:
    """Times ours on copies of a weight, one for each sparsity, in turns with the peers."""

    def copies() -> list[Tensor]:
        return [weight.clone() for _ in sparsities]

    def run_ours() -> Callable[[], object]:
        given = copies()
        return lambda: ours(given)

    work = _peers_work(theirs, copies, sparsities)
    taken = interleaved(rounds, ours=run_ours, **work)
    for peer in work:
        yield Row(
            name=name, shape=shape, peer_name=peer, ours=taken["ours"], peer=taken[peer],
            unit="s", rounds=rounds, floor=floor, goal=goal,
        )  # fmt: skip


def _peers_work(
    theirs: dict[str, Callable[[Tensor, float | None], object]],
    copies: Callable[[], list[Tensor]],
    sparsities: Sequence[float | None],
) -> dict[str, Callable[[], Callable[[], object]]]:
    """Makes each peer's work: its code, once for each sparsity."""

    def run(prune: Callable[[Tensor, float | None], object]) -> Callable[[], object]:
        given = copies()
        return lambda: [prune(w, s) for w, s in zip(given, sparsities, strict=True)]

    return {
        peer: partial(run, prune)
        for peer, prune in theirs.items()
        # It takes one sparsity a run, as the others do; eight times its row for one sparsity.
        if len(sparsities) == 1 or peer != "llmcompressor"
    }


def _ours(
    method: PruneMethod,
    dense: Tensor,
    statistics: LayerStatistics,
    removals: Sequence[Removal],
) -> Callable[[list[Tensor]], None]:
    def prune(weights: list[Tensor]) -> None:
        if isinstance(method, SparseGPT):
            method._last = None  # the factor is part of the work
        each = method.prune_each(dense, statistics, removals, NO_CHANCE)
        for weight, pruned in zip(weights, each, strict=True):
            if pruned.weight is not None:
                weight.copy_(pruned.weight)
            zero_pruned_(weight, pruned.keep_mask)

    return prune


def _assert_equal_zeros(weight: Tensor, statistics: LayerStatistics, peer: peers.Wanda) -> None:
    """Ours and Wanda's code zero the same weights: what is timed is the same work."""
    for sparsity in (0.5, None):
        expected, left = weight.clone(), weight.clone()
        peer.prune(expected, statistics, sparsity)
        _ours(Wanda(), weight, statistics, [_row_zeros(sparsity, *weight.shape)])([left])
        assert left.equal(expected), "the masks of Wanda differ"


def _sparsegpt_errors(
    weight: Tensor, statistics: LayerStatistics, peer: peers.SparseGPT
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """How far float32 weights are from the same code's in float64, ours and theirs, relative.

    Of all rows, and of those whose choices are the same in both; and the share of those.
    """
    gram = statistics.gram
    assert gram is not None
    removal = _matrix_zeros(0.5, *weight.shape)
    left = []
    for dtype in (torch.float32, torch.float64):
        known = LayerStatistics(
            samples=statistics.samples, tokens=statistics.tokens, sums=statistics.sums,
            square_sums=statistics.square_sums, gram=gram.to(dtype),
        )  # fmt: skip
        given = weight.to(dtype).clone()
        _ours(SparseGPT(), given.clone(), known, [removal])([given])
        left.append(given.double())
    precisions = (torch.float32, torch.float64)
    theirs = [peer.prune(weight.to(p).clone(), gram.to(p), 0.5).double() for p in precisions]

    def apart(single: Tensor, double: Tensor) -> tuple[float, float, float]:
        same = ((single == 0) == (double == 0)).all(dim=1)
        lost = single - double
        return (
            float(lost.norm() / double.norm()),
            float(lost[same].norm() / double[same].norm()),
            float(same.double().mean()),
        )

    return apart(*left), apart(*theirs)


def _row_zeros(sparsity: float | None, out: int, columns: int) -> Removal:
    return Pattern(2, 4) if sparsity is None else np.full(out, int(columns * sparsity))


def _matrix_zeros(sparsity: float | None, out: int, columns: int) -> Removal:
    return Pattern(2, 4) if sparsity is None else round(out * columns * sparsity)


def _weight(out: int, columns: int) -> Tensor:
    return torch.randn(out, columns, generator=torch.Generator().manual_seed(0)) * columns**-0.5


def _inputs(tokens: int, columns: int, *, seed: int = 1, white: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(tokens, columns, generator=generator)
    if white:
        return noise
    spectrum = torch.arange(1.0, columns + 1).pow(-0.5)  # of variance: 1/rank
    mixing = torch.randn(columns, columns, generator=generator) * columns**-0.5
    scale = torch.randn(columns, generator=generator).mul_(0.5).exp_()
    scale[torch.randperm(columns, generator=generator)[: columns // 256]] *= 20
    mean = 0.1 * torch.randn(columns, generator=generator)
    return ((noise * spectrum) @ mixing * columns**0.5 / spectrum.norm() + mean) * scale


def _statistics(columns: int, *, gram: bool = True, white: bool = False) -> LayerStatistics:
    """Of 16 samples of 512 tokens."""
    inputs = _inputs(16 * 512, columns, white=white)
    return LayerStatistics(
        samples=16,
        tokens=len(inputs),
        sums=inputs.sum(dim=0, dtype=torch.float64),
        square_sums=inputs.double().square().sum(dim=0),
        gram=inputs.T @ inputs if gram else None,
    )
