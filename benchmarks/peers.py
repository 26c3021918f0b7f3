"""The peers' own code, called as it is: from local checkouts whose paths are given, and from PyPI.

None of it is part of this repository. What it needs in order to run here, and what has nothing to
do with pruning, is replaced at run time:

- while a checkout is imported, `datasets` (its text corpora) is an empty module if not installed;
- the functions that prune whole models get a model of one layer and no calibration samples: the
  layer's wrapper holds the statistics that it would have gathered;
- `torch.cuda.synchronize` does nothing without a GPU, and what the code prints is thrown away;
- SparseGPT's "float64 self" is its own code while `Tensor.float` means `Tensor.double`.
"""

import contextlib
import importlib
import io
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ressa.prune import LayerStatistics


@dataclass(frozen=True, slots=True)
class Wanda:
    """Masks and zeroed weights by `prune_wanda` of a checkout of locuslab/wanda."""

    module: ModuleType

    @classmethod
    def of(cls, checkout: Path) -> "Wanda":
        """Imports it."""
        return cls(_imported(checkout, "lib.prune"))

    def prune(self, weight: Tensor, statistics: LayerStatistics, sparsity: float | None) -> None:
        """Zeroes weights in place: a share of each row, or 2:4."""
        _prune_model(self.module, "prune_wanda", weight, statistics, sparsity)


@dataclass(frozen=True, slots=True)
class DSnoT:
    """Zeroed weights by `prune_DSnoT` of a checkout of zyxxmu/DSnoT, from Wanda's mask."""

    module: ModuleType

    @classmethod
    def of(cls, checkout: Path) -> "DSnoT":
        """Imports it."""
        return cls(_imported(checkout, "lib.prune"))

    def prune(
        self, weight: Tensor, statistics: LayerStatistics, sparsity: float | None, cycles: int
    ) -> None:
        """Zeroes weights in place; threshold, power and sign rule are its defaults."""
        options = {"initial_method": "wanda", "max_cycle_time": cycles, "update_threshold": 0.1}
        options |= {"pow_of_var_regrowing": 1.0, "without_same_sign": True, "without_DSnoT": False}
        options |= {"skip_layer": "no_skip", "skip_sub_layer": "no_skip"}
        options |= {"get_time_overhead": False}
        _prune_model(self.module, "prune_DSnoT", weight, statistics, sparsity, **options)


@dataclass(frozen=True, slots=True)
class SparseGPT:
    """New weights by `SparseGPT.fasterprune` of a checkout of IST-DASLab/sparsegpt."""

    module: ModuleType

    @classmethod
    def of(cls, checkout: Path) -> "SparseGPT":
        """Imports it."""
        return cls(_imported(checkout, "sparsegpt"))

    def prune(self, weight: Tensor, gram: Tensor, sparsity: float | None) -> Tensor:
        """Returns the new weights: a share of each block of columns goes, or 2:4.

        In doubles if the Gram matrix is.
        """
        layer = _linear(weight)
        with _quiet(), contextlib.ExitStack() as stack:
            if gram.dtype == torch.float64:
                stack.enter_context(mock.patch.object(Tensor, "float", Tensor.double))
            pruner = self.module.SparseGPT(layer)
            pruner.H = gram.clone()
            two_of_four = {} if sparsity is not None else {"prunen": 2, "prunem": 4}
            pruner.fasterprune(sparsity or 0.0, **two_of_four)
        return layer.weight.data

    def hessian(self, batches: list[Tensor]) -> Tensor:
        """Accumulates its Hessian of inputs [1 token in]."""
        pruner = self.module.SparseGPT(_linear(batches[0].new_zeros(1, batches[0].shape[-1])))
        for batch in batches:
            pruner.add_batch(batch, None)
        hessian: Tensor = pruner.H
        return hessian


@dataclass(frozen=True, slots=True)
class LLMCompressor:
    """What `llmcompressor` does with one layer, where it is installed."""

    wanda: ModuleType
    sparsegpt: ModuleType

    @classmethod
    def installed(cls) -> "LLMCompressor | None":
        """Imports it; None where it is not installed."""
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                folder = "llmcompressor.modifiers.pruning"
                return cls(
                    importlib.import_module(f"{folder}.wanda.wanda_sparsify"),
                    importlib.import_module(f"{folder}.sparsegpt.sgpt_sparsify"),
                )
        except ImportError:
            return None

    def prune_wanda(
        self, weight: Tensor, statistics: LayerStatistics, sparsity: float | None
    ) -> Tensor:
        """Returns the weights with zeros: a share of each row, or 2:4."""
        layer = _linear(weight)
        scalars = {layer: statistics.norm.square()}
        left: Tensor = self.wanda.sparsify_weight(layer, scalars, *_sparsity(sparsity))
        return left

    def prune_sparsegpt(self, weight: Tensor, gram: Tensor, sparsity: float | None) -> Tensor:
        """Returns the new weights: a share of each block of columns goes, or 2:4."""
        layer = _linear(weight)
        options = {"block_size": 128, "dampening_frac": 0.01, "preserve_sparsity_mask": False}
        share, n, m = _sparsity(sparsity)
        left: Tensor
        _, left = self.sparsegpt.sparsify_weight(
            layer, {layer: gram.clone()}, share, n, m, **options
        )
        return left


def _sparsity(sparsity: float | None) -> tuple[float, int, int]:
    return (0.5, 2, 4) if sparsity is None else (sparsity, 0, 0)


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _imported(checkout: Path, name: str) -> ModuleType:
    """Imports a module of a checkout, and forgets its name, which another checkout has as well."""
    if not (checkout / f"{name.replace('.', '/')}.py").is_file():
        raise FileNotFoundError(f"{checkout} has no module {name}: is it the peer's checkout?")
    corpora = ModuleType("datasets")
    corpora.load_dataset = None  # type: ignore[attr-defined]
    known = dict(sys.modules)
    sys.modules.setdefault("datasets", corpora)
    try:
        with mock.patch.object(sys, "path", [str(checkout.resolve()), *sys.path]):
            return importlib.import_module(name)
    finally:
        for added, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None) or ""
            if added not in known and file.startswith(str(checkout.resolve())):
                del sys.modules[added]
        for added in ("lib", "datasets"):
            if added not in known:
                sys.modules.pop(added, None)


def _prune_model(
    module: ModuleType,
    function: str,
    weight: Tensor,
    statistics: LayerStatistics,
    sparsity: float | None,
    **options: Any,
) -> None:
    """Runs a function that prunes a model on one that has this layer alone."""
    block = nn.Module()
    block.self_attn = nn.Module()
    block.self_attn.q_proj = _linear(weight)
    model = nn.Module()
    model.config, model.seqlen = Namespace(use_cache=False), 0
    model.hf_device_map = {}
    model.model = nn.Module()
    model.model.layers = nn.ModuleList([block])
    known = Namespace(
        # The square root of a float's square is the float: its norm is ours to the last bit.
        scaler_row=statistics.norm.square(),
        sum_metric_row=(statistics.sums / statistics.samples).float(),
        var=statistics.variance.float(),
    )
    share, n, m = _sparsity(sparsity)
    given = Namespace(nsamples=0, seed=0, sparsity_ratio=share, use_variant=False, **options)
    with (
        _quiet(),
        mock.patch.multiple(
            module,
            get_loaders=lambda *_, **__: (None, None),
            prepare_calibration_input=lambda *_: (None, None, None, None),
            WrappedGPT=lambda *_, **__: known,
        ),
    ):
        getattr(module, function)(given, model, None, torch.device("cpu"), prune_n=n, prune_m=m)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with (
        contextlib.redirect_stdout(io.StringIO()),
        mock.patch.object(torch.cuda, "synchronize", return_value=None),
        mock.patch.object(torch.cuda, "empty_cache", return_value=None),
        torch.no_grad(),
    ):
        yield
