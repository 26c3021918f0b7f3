"""How much the loss depends on each layer: ECoFLaP's zeroth-order estimate (arXiv:2310.02998).

Dimensions: batch = questions of a chunk; token = their answer tokens, end to end.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from ressa.errors import CalibrationError
from ressa.memory import in_batches
from ressa.models.vlm import NO_LABEL, VLM, Batch, evaluating
from ressa.prune.layers import layer_generator
from ressa.records import Example
from ressa.sparsity import LayerShape
from ressa.workers import rank_and_world_size, total


@torch.no_grad()
def importances(
    vlm: VLM,
    examples: Sequence[Example],
    images: Callable[[str], Image],
    layers: Sequence[LayerShape],
    *,
    epsilon: float,
    seed: int,
    chunk: int = 16,
) -> dict[str, float]:
    r"""Measures the importance of each layer from the loss on both sides of its weights.

    .. math:: I = \sum_x \frac{|L_x(W + εz) - L_x(W - εz)|}{2ε}, \quad z \sim N(0, 1)

    with L the mean cross-entropy of a question's answer tokens through the whole model, x over the
    questions. The noise of a layer is one draw for all questions, seeded by `seed` and the layer's
    name, so that neither the order of layers nor the number of workers plays a part. Takes two
    forward passes for each layer and chunk, no gradient and no memory beyond a layer's weights,
    which are put back bit for bit. In a torch.distributed group the layers are dealt to the
    workers, and all get the same numbers.

    Args:
        vlm: the dense model.
        examples: questions with their answers, the same on every worker.
        images: gives an image by its id.
        layers: those to measure, of one tower or both.
        epsilon: ε, the size of the noise.
        seed: of the noise.
        chunk: how many questions the model sees at a time, fewer where memory is short. It moves
            the sums by rounding only.

    Returns:
        The importance of each layer by its name, ≥ 0; the noise reaches more of a larger layer.

    Raises:
        CalibrationError: a loss is not finite.
    """
    rank, workers = rank_and_world_size()

    def measured(chunk: int) -> dict[str, float]:
        found = {layer.name: 0.0 for layer in layers}
        for first in range(0, len(examples), chunk):
            batch = vlm.encode(examples[first : first + chunk], images, answers=True)
            for layer in layers[rank::workers]:
                above, below = _losses_around(vlm, batch, layer, epsilon, seed)
                found[layer.name] += float((above - below).abs().sum()) / (2 * epsilon)
        return found

    with evaluating(vlm.model):
        found = in_batches(measured, chunk)
    found = {name: total(value) for name, value in found.items()}  # all but one add nothing
    broken = [name for name, value in found.items() if not value < float("inf")]
    if broken:
        raise CalibrationError(
            f"ecoflap: the loss is not finite with noise on {broken[0]}. A smaller "
            "prune.ecoflap.epsilon may help.",
            "numeric",
        )
    return found


def _losses_around(
    vlm: VLM, batch: Batch, layer: LayerShape, epsilon: float, seed: int
) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, " batch"]]:
    """Returns each question's loss with noise added to a layer's weights, and with it taken off."""
    weight = vlm.model.get_parameter(f"{layer.name}.weight")
    dense = weight.detach().clone()
    generator = layer_generator(seed, layer.name)
    # In single precision: half of it would round much of W ± εz back to W.
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
    noise = epsilon * noise.to(weight.device)
    try:
        weight.copy_(dense + noise)
        above = _losses(vlm, batch)
        weight.copy_(dense - noise)
        return above, _losses(vlm, batch)
    finally:
        weight.copy_(dense)  # not by taking the noise off: that would leave roundings behind


def _losses(vlm: VLM, batch: Batch) -> Float64[Tensor, " batch"]:
    """Returns the mean cross-entropy of each question's answer tokens."""
    logits, tokens = vlm.answer_logits(batch)
    assert batch.labels is not None  # encoded with answers
    losses = functional.cross_entropy(logits.double(), tokens, reduction="none")  # [token]
    lengths = (batch.labels != NO_LABEL).sum(dim=1).tolist()
    return torch.stack([answer.mean() for answer in losses.split(lengths)])
