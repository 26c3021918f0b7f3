"""An export's 2:4 matrices on a GPU's kernels for them."""

from pathlib import Path

import torch
from torch import nn
from torch.sparse import to_sparse_semi_structured

from ressa.errors import SpecError
from ressa.export import certificate

PATTERN = "2:4"


def to_semi_structured(model: nn.Module, folder: Path | str) -> list[str]:
    """Hands an export's 2:4 matrices to torch's semi-structured kernels, in place.

    Each takes 9/16 of its bytes from then on, and is multiplied without its zeros. Whether that is
    faster depends on how many tokens a product has: docs/export.md says what was measured.

    Args:
        model: the export as transformers or `load` loads it, on a GPU, of 16-bit weights; one with
            a mixture of experts as `load` does, since transformers fuses these matrices.
        folder: the export, whose certificate says which matrices are 2:4.

    Returns:
        The names of the matrices; none has another pattern than 2:4.

    Raises:
        SpecError: no matrix is 2:4, a 2:4 one is no linear layer of this model, or the model's
            weights are of another type or not on a GPU.
        VerificationError: the folder is no export of ressa.
    """
    names = [
        one["name"]
        for one in certificate.read(Path(folder))["matrices"]
        if one["pattern"] == PATTERN
    ]
    if not names:
        raise SpecError(
            f"{folder}: no matrix is {PATTERN}, and there are kernels for nothing else."
        )
    modules = dict(model.named_modules())
    other = [name for name in names if not isinstance(modules.get(name), nn.Linear)]
    if other:
        raise SpecError(
            f"{other[0]} is no linear layer of this model (of {len(other)} such matrices): "
            "transformers fuses experts, and holds GPT-2's weights transposed. Load the export by "
            "ressa.export.load, which takes them apart."
        )
    weights = [modules[name].get_parameter("weight") for name in names]
    kinds = {weight.dtype for weight in weights}
    if not kinds <= {torch.bfloat16, torch.float16}:
        raise SpecError(
            f"the weights are {', '.join(map(str, sorted(kinds, key=str)))}; the {PATTERN} kernels "
            "want torch.bfloat16 or torch.float16: model.to(torch.bfloat16)."
        )
    if any(weight.device.type != "cuda" for weight in weights):
        raise SpecError(f'the {PATTERN} kernels run on GPUs alone: model.to("cuda") first.')
    for name, weight in zip(names, weights, strict=True):
        packed = to_sparse_semi_structured(weight.detach())
        modules[name].weight = nn.Parameter(packed, requires_grad=False)
    return names
