r"""SparseGPT: prune column by column, and let the weights that stay make up for each loss.

Frantar and Alistarh, arXiv:2301.00774. With the layer's Hessian :math:`H = X^T X + \lambda I`,
the paper prunes a weight of column j by its saliency :math:`w_{ij}^2 / [H^{-1}_F]_{jj}`, where F
are the columns not yet visited, and moves the weights of later columns so that
:math:`\lVert X (W - \hat W)^T \rVert^2` grows least. It does so with the Cholesky factor of
:math:`H^{-1}`.

Here the inverse is never formed. With :math:`H = R R^T`, R upper triangular, and the change made so
far :math:`D = W - \hat W`, the same algorithm reads: at column j a weight that goes has
:math:`D_{ij} = W_{ij}`, one that stays has

.. math:: D_{ij} = -\frac{1}{R_{jj}} \sum_{k<j} D_{ik} R_{kj} ,

and the saliency is :math:`(R_{jj} w_{ij})^2` of the weight as moved so far. A third of the work of
the inverse.

Dimensions: out, in = weight rows and columns of one linear layer. Columns are visited one by one,
so matrices are kept transposed, [in out].
"""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ressa.catalog import Need
from ressa.errors import PruneError
from ressa.prune.masks import Removal, check_finite, keep_mask
from ressa.prune.method import Pruned, PruneMethod
from ressa.prune.statistics import LayerStatistics
from ressa.sparsity import Pattern
from ressa.spec import TowerTarget

DAMPENING = 0.01
BLOCK = 128
_COLUMNS = 32  # of a block, that are made up for at a time: what they read stays in the cache
_PANEL = 4  # blocks that one large product serves


class SparseGPT(PruneMethod):
    """Prunes and compensates by second-order statistics of the layer's inputs.

    Unstructured, the weights of a block of columns are chosen at once, as in the paper; a matrix's
    (or row's) count is shared out over the blocks so that it is met exactly. A pattern N:M is
    chosen group by group, on the weights as moved so far. The weights of a dead input, one that was
    zero on every calibration token, go first; those that the count spares are not changed.

    Args:
        dampening: λ, as a fraction of the mean diagonal of XᵀX over live inputs. It is always
            added: calibration sets have fewer independent tokens than wide layers have inputs.
        block: how many columns are chosen at once.
    """

    name = "sparsegpt"
    version = 4
    needs: Need = "gram"

    def __init__(self, dampening: float = DAMPENING, block: int = BLOCK) -> None:
        self.dampening, self.block = dampening, block
        # Layers that share an input share its Gram matrix, and so the work on it; once nobody else
        # holds the matrix, what was made of it goes too.
        self._last: tuple[weakref.ref[Tensor], _Hessian] | None = None

    @classmethod
    def from_spec(cls, wanted: TowerTarget) -> "SparseGPT":
        """Makes the method with the spec's dampening."""
        return cls(DAMPENING if wanted.dampening is None else wanted.dampening)

    def saliency(
        self,
        weight: Float[Tensor, "out in"],
        statistics: LayerStatistics | None,
        generator: torch.Generator,
    ) -> Float[Tensor, "out in"]:
        """Returns each dense weight's saliency, as if nothing had been pruned before it."""
        hessian = self._hessian(statistics, weight.device)
        dense = weight.detach().to(hessian.scale.dtype)
        return (dense * hessian.scale).square()

    def prune(
        self,
        weight: Float[Tensor, "out in"],
        statistics: LayerStatistics | None,
        removal: Removal,
        generator: torch.Generator,
    ) -> Pruned:
        """Chooses which weights stay, and moves them.

        Raises:
            PruneError: the dampened Hessian is not positive definite in its precision.
        """
        return next(self.prune_each(weight, statistics, [removal], generator))

    def prune_each(
        self,
        weight: Float[Tensor, "out in"],
        statistics: LayerStatistics | None,
        removals: Sequence[Removal],
        generator: torch.Generator,
    ) -> Iterator[Pruned]:
        """Prunes one layer several times over; what is large is allocated once."""
        hessian = self._hessian(statistics, weight.device)
        dense = weight.detach().T.contiguous()  # [in out]
        change = torch.empty(dense.shape, dtype=hessian.scale.dtype, device=dense.device)
        for removal in removals:
            keep = torch.empty(weight.shape, dtype=torch.bool, device=dense.device)
            for start, end, moved in self._blocks(hessian, change, self._width(removal)):
                cut, share = slice(start, end), _share(removal, start, end, len(dense))
                # Transposed, so that what column j takes of those before it lies together.
                own = hessian.factor[cut, cut].T.contiguous()
                change[cut] = dense[cut]  # what goes changes by itself
                keep[:, cut] = _prune_block(change[cut], moved, own, hessian.scale[cut], share)
            left = torch.sub(dense, change, out=change)
            yield Pruned(keep, torch.empty_like(weight).copy_(left.T))

    def _blocks(
        self, hessian: "_Hessian", change: Float[Tensor, "in out"], width: int
    ) -> Iterator[tuple[int, int, Float[Tensor, "block out"]]]:
        """Yields blocks of columns, and how far the changes of all columns before move each."""
        moved = change.new_empty(_PANEL * width, change.shape[1])
        for begin, stop in _cuts(0, len(change), _PANEL * width):
            # What has changed before is read once for several blocks: it is more than caches hold.
            panel = moved[: stop - begin]
            torch.mm(hessian.factor[:begin, begin:stop].T, change[:begin], out=panel)
            for start, end in _cuts(begin, stop, width):
                block = hessian.factor[begin:start, start:end].T
                yield (
                    start,
                    end,
                    panel[start - begin : end - begin].addmm_(block, change[begin:start]),
                )

    def _width(self, removal: Removal) -> int:
        """The columns of a block: whole groups of a pattern."""
        if isinstance(removal, Pattern):
            return max(self.block // removal.group, 1) * removal.group
        return self.block

    def _hessian(self, statistics: LayerStatistics | None, device: torch.device) -> "_Hessian":
        assert statistics is not None and statistics.gram is not None  # see `needs`
        gram = statistics.gram
        if self._last is not None:
            known, hessian = self._last
            if known() is gram and hessian.scale.device == device:
                return hessian
            self._last = None  # gone before the next one is made
        hessian = _factorise(gram.to(device), self.dampening)
        self._last = weakref.ref(gram, self._forget), hessian
        return hessian

    def _forget(self, gram: "weakref.ref[Tensor]") -> None:
        if self._last is not None and self._last[0] is gram:
            self._last = None


@dataclass(frozen=True, slots=True)
class _Hessian:
    """The dampened Hessian H = R Rᵀ, as the walk over its columns needs it."""

    factor: Float[Tensor, "in in"]
    """R with each column divided by its diagonal element; what lies below is not R's."""
    scale: Float[Tensor, " in"]
    """The diagonal of R, and 0 for a dead input."""


def _factorise(gram: Float[Tensor, "in in"], dampening: float) -> _Hessian:
    diagonal = gram.diagonal().double()
    live = diagonal > 0
    mean = diagonal[live].mean() if live.any() else torch.ones_like(diagonal[0])
    diagonal = torch.where(live, diagonal + dampening * mean, mean)
    panels = _factor(gram, diagonal)
    if panels is None:
        raise PruneError(
            f"the Hessian is not positive definite at dampening {dampening:g}. More calibration "
            f"samples help, or prune.dampening ≥ {max(DAMPENING, 10 * dampening):g}.",
            "numeric",
        )
    factor, scale = torch.empty_like(gram), torch.empty_like(diagonal)
    while panels:  # each is let go of as its floats are made
        columns = panels.pop()
        stop, width = columns.shape
        cut = slice(stop - width, stop)
        scale[cut] = columns[cut].diagonal()
        factor[:stop, cut] = columns.div_(scale[cut])
        del columns
    return _Hessian(factor, (scale * live).to(gram.dtype))


def _factor(
    gram: Float[Tensor, "in in"], diagonal: Float64[Tensor, " in"]
) -> list[Float64[Tensor, "above panel"]] | None:
    """Returns R with H = R Rᵀ, H a Gram matrix of another diagonal; None if it is not definite.

    In doubles, because this is where precision is lost: with a factor of floats the weights come
    out a hundred times less exact. All in doubles would take a third more time.

    R is made block by block from the last columns to the first, in panels of several blocks, whose
    products are the larger and so the faster. A panel ends with the rows of its last block, since R
    is zero below, so that all of them hold half a matrix; the last columns come first. What lies
    below the diagonal is not R's.
    """
    identity = torch.eye(BLOCK, dtype=diagonal.dtype, device=gram.device)
    panels: list[Tensor] = []
    for stop in range(len(gram), 0, -_PANEL * BLOCK):
        begin = max(stop - _PANEL * BLOCK, 0)
        panel = gram.new_empty(stop, stop - begin, dtype=diagonal.dtype)
        panel.copy_(gram[:stop, begin:stop])
        panel[begin:].diagonal().copy_(diagonal[begin:stop])
        for later in panels:
            panel[:begin].addmm_(later[:begin], later[begin:stop].T, alpha=-1)
        for last in range(stop, begin, -BLOCK):
            first = max(last - BLOCK, begin)
            columns = panel[:last, first - begin : last - begin]
            for later in panels:
                columns[begin:].addmm_(later[begin:last], later[first:last].T, alpha=-1)
            done = panel[:last, last - begin :]
            columns.addmm_(done, done[first:].T, alpha=-1)
            # The lower factor of a flipped matrix, flipped, is its upper one.
            flipped, failed = torch.linalg.cholesky_ex(columns[first:].flip(0, 1))
            if failed:
                return None
            own = flipped.flip(0, 1)
            unit = identity[: last - first, : last - first]
            inverse = torch.linalg.solve_triangular(own, unit, upper=True)
            columns[first:] = own
            columns[:first] = columns[:first] @ inverse.T
        panels.append(panel)
    return panels


def _cuts(start: int, end: int, width: int) -> Iterator[tuple[int, int]]:
    for first in range(start, end, width):
        yield first, min(first + width, end)


def _share(removal: Removal, first: int, last: int, columns: int) -> Removal:
    """The part of a count that falls to some columns, such that all parts make up the count."""
    if isinstance(removal, Pattern):
        return removal

    def before(column: int) -> Removal:
        return cast(Removal, (2 * removal * column + columns) // (2 * columns))  # halves up

    return before(last) - before(first)  # type: ignore[operator]  # both integers, or both arrays


def _prune_block(
    change: Float[Tensor, "block out"],
    moved: Float[Tensor, "block out"],
    own: Float[Tensor, "block block"],
    scale: Float[Tensor, " block"],
    share: Removal,
) -> Bool[Tensor, "out block"]:
    """Prunes a block of columns and returns what stays of them.

    Args:
        change: their dense weights; becomes how much each of them changes.
        moved: how far all columns before have moved them; it is used up.
        own: the block's part of the factor, transposed.
        scale: the block's part of the Hessian's scale.
        share: what the block loses.
    """
    step = share.group if isinstance(share, Pattern) else len(change)
    cuts = [slice(*ends) for ends in _cuts(0, len(change), step)]
    before = own.tril(-1)  # zeros where columns come later, so that runs of them are read whole
    each = torch.stack([own[cut, cut] for cut in cuts])  # a block is whole groups of a pattern
    unit = torch.eye(step, dtype=own.dtype, device=own.device).expand_as(each)
    inverses = torch.linalg.solve_triangular(each, unit, upper=False, unitriangular=True)
    masks, saliency = [], torch.empty_like(change)
    for cut, inverse in zip(cuts, inverses, strict=True):
        offset = moved[cut]
        if cut.start:
            offset.addmm_(own[cut, : cut.start], change[: cut.start])
        mask = _choose(saliency[cut].copy_(change[cut]), offset, inverse, scale[cut], share)
        _make_up(change[cut], mask, offset, before[cut, cut])
        masks.append(mask)
    check_finite(saliency)  # of all groups of a pattern at once: a GPU is waited for
    return torch.cat(masks, dim=1) if len(masks) > 1 else masks[0]


def _choose(
    dense: Float[Tensor, "choice out"],
    offset: Float[Tensor, "choice out"],
    inverse: Float[Tensor, "choice choice"],
    scale: Float[Tensor, " choice"],
    share: Removal,
) -> Bool[Tensor, "out choice"]:
    """Chooses among some columns, by their weights as all columns before have moved them.

    The dense weights become the saliencies, which may not be finite. The inverse is that of the
    columns' own part of the factor: a product with it takes half the time of a triangular solve
    with so many right sides.
    """
    for cut in (slice(*ends) for ends in _cuts(0, len(inverse), BLOCK // 2)):  # it is triangular
        dense[cut].addmm_(inverse[cut, : cut.stop], offset[: cut.stop])
    return keep_mask(dense.mul_(scale[:, None]).square_().T, share, check=False)


def _make_up(
    change: Float[Tensor, "choice out"],
    stays: Bool[Tensor, "out choice"],
    offset: Float[Tensor, "choice out"],
    before: Float[Tensor, "choice choice"],
) -> None:
    """Lets the weights that stay make up for what went before, by minus their offset."""
    # −1 for what stays, 0 for what goes and keeps its change: calls are what this takes time for.
    sign = stays.T.to(change.dtype, memory_format=torch.contiguous_format).neg_()
    change.addcmul_(change, sign)
    for cut in (slice(*ends) for ends in _cuts(0, len(change), _COLUMNS)):
        if cut.start:
            offset[cut].addmm_(before[cut, : cut.start], change[: cut.start])
        run = change[cut].T
        rows = zip(before[cut, cut], offset[cut], sign[cut], change[cut], strict=True)
        for factor, moved, either, new in rows:
            new.addcmul_(moved.addmv_(run, factor), either)
