"""Agreement with `llmcompressor`, where it is installed: in no environment of this project.

It pins an older transformers (≤ 5.17 in 0.14.0.1) and so cannot be an extra; without its own
dependencies it imports all the same. In an environment of its own, beside this project's:

    pip install --no-deps llmcompressor==0.14.0.1 compressed-tensors==0.20.0 auto-round==0.16.1
    pip install -c constraints.txt loguru datasets accelerate nvidia-ml-py
"""

import numpy as np
import pytest
import torch
from layers import NO_CHANCE, correlated_inputs, drawn_weight, statistics_of
from torch import Tensor, nn

from ressa.prune import LayerStatistics
from ressa.prune.masks import zero_pruned_
from ressa.prune.method import PruneMethod
from ressa.prune.sparsegpt import SparseGPT
from ressa.prune.wanda import Wanda
from ressa.sparsity import Pattern

pytestmark = [
    pytest.mark.filterwarnings("default"),  # its imports are not ours to keep quiet
]
wanda = pytest.importorskip("llmcompressor.modifiers.pruning.wanda.wanda_sparsify")
sparsegpt = pytest.importorskip("llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify")

OUT, IN = 48, 256
INPUTS = {
    "random": lambda: torch.randn(600, IN, generator=torch.Generator().manual_seed(1)).double(),
    "correlated": lambda: correlated_inputs(tokens=600, columns=IN),
    "few tokens": lambda: correlated_inputs(tokens=20, columns=IN),
    "dead columns": lambda: correlated_inputs(tokens=600, columns=IN) * (torch.arange(IN) % 9 > 0),
}
any_inputs = pytest.mark.parametrize("inputs", INPUTS)
any_type = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def layer_of(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return layer


def pruned(method: PruneMethod, weight: Tensor, statistics: LayerStatistics, removal) -> Tensor:
    result = method.prune(weight, statistics, removal, NO_CHANCE)
    left = (weight if result.weight is None else result.weight).clone()
    zero_pruned_(left, result.keep_mask)
    return left


@any_inputs
@any_type
@pytest.mark.parametrize("pattern", [None, Pattern(2, 4), Pattern(4, 8)], ids=str)
@pytest.mark.parametrize("shape", [(OUT, IN), (1, 8), (5, 24)], ids=str)
def test_wanda_leaves_the_weights_that_it_leaves(inputs, dtype, pattern, shape):
    weight = drawn_weight(*shape).to(dtype)
    known = INPUTS[inputs]()[:, : shape[1]]
    statistics = statistics_of(known.float())
    layer = layer_of(weight)
    n, m = (pattern.group - pattern.kept, pattern.group) if pattern else (0, 0)
    theirs = wanda.sparsify_weight(layer, {layer: statistics.norm.square()}, 0.5, n, m)
    removal = pattern or np.full(shape[0], shape[1] // 2)
    ours = pruned(Wanda(), weight, statistics, removal)
    if inputs == "dead columns" and pattern:
        # Equal saliencies, all zero: which of them goes is left open by theirs.
        alive = (known != 0).any(dim=0)
        assert ours[:, alive].equal(theirs[:, alive])
    else:
        # Among zeros, the dead columns, ours and theirs both take those on the left first.
        assert ours.equal(theirs)


@any_inputs
@any_type
def test_sparsegpt_moves_the_weights_where_it_moves_them(inputs, dtype):
    weight = drawn_weight(OUT, IN).to(dtype)
    statistics = statistics_of(INPUTS[inputs]().float())
    # Half and half: dead columns are gone in theirs from the start and damp the others by less.
    if inputs == "dead columns":
        pytest.skip("theirs counts a dead column as an input of variance 1 when it dampens")
    layer, gram = layer_of(weight), statistics.gram.clone()
    _, theirs = sparsegpt.sparsify_weight(layer, {layer: gram}, 0.5, 2, 4, 128, 0.01, False)
    ours = pruned(SparseGPT(), weight, statistics, Pattern(2, 4))
    same_mask = ((ours != 0) == (theirs != 0)).all(dim=1)
    assert same_mask.float().mean() > 0.9  # floats tip a few choices, and a row with them
    apart = (ours - theirs)[same_mask].float().norm() / ours[same_mask].float().norm()
    assert apart < {torch.float32: 1e-3, torch.float16: 1e-3, torch.bfloat16: 5e-3}[dtype]
