"""One linear layer at a time: weights, correlated inputs, and their statistics in doubles."""

import numpy as np
import torch
from torch import Tensor

from ressa.prune import LayerStatistics

NO_CHANCE = torch.Generator()


def drawn_weight(out: int = 24, columns: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(out, columns, generator=_seeded(seed), dtype=torch.float64)


def correlated_inputs(
    tokens: int = 200, columns: int = 64, seed: int = 1, offset: float = 0.0
) -> Tensor:
    """Inputs whose features go together, in scales that differ."""
    generator = _seeded(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    common = max(columns // 4, 1)
    inputs = noise(tokens, common) @ noise(common, columns) + noise(tokens, columns)
    scale = torch.rand(columns, generator=generator, dtype=torch.float64) + 0.1
    return inputs * scale + offset * noise(columns)


def statistics_of(inputs: Tensor, samples: int = 10) -> LayerStatistics:
    return LayerStatistics(
        samples=samples,
        tokens=len(inputs),
        sums=inputs.double().sum(dim=0),
        square_sums=inputs.double().square().sum(dim=0),
        gram=inputs.T @ inputs,
    )


def output_error(weight: np.ndarray, left: np.ndarray, hessian: np.ndarray) -> float:
    """tr((W − Ŵ) H (W − Ŵ)ᵀ)."""
    lost = weight - left
    return float(((lost @ hessian) * lost).sum())


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
