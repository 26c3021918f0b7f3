"""The repair methods by name, and how one is put on a pruned model and taken off again.

| method           | a layer computes                  | it trains           | zeros in the merge |
|------------------|-----------------------------------|---------------------|--------------------|
| sparselora       | M⊙(W + s·BA)                      | rank · (in + out)   | kept               |
| straight_through | the same; gradient as if unmasked | rank · (in + out)   | kept               |
| lora             | W + s·BA                          | rank · (in + out)   | pruned again       |
| masked_finetune  | W, trained where it is kept       | the kept weights    | kept               |
| spp              | W⊙(1 + s·αβ)                      | rank · (in + out) ¹ | kept               |

¹ As near as whole row vectors come to it: `spp.row_vectors`.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ressa.errors import RepairError
from ressa.models.towers import Towers
from ressa.repair.adapted import AdaptedLinear, Adapters, generator_of
from ressa.repair.lora import LoRALinear
from ressa.repair.masked import MaskedLinear
from ressa.repair.sparselora import SparseLoRALinear, StraightThroughLinear
from ressa.repair.spp import SPPLinear
from ressa.sparsity import TOWERS
from ressa.spec import Repair, endings

REPAIR_METHODS: Mapping[str, type[AdaptedLinear]] = MappingProxyType(
    {
        "sparselora": SparseLoRALinear,
        "lora": LoRALinear,
        "masked_finetune": MaskedLinear,
        "spp": SPPLinear,
        "straight_through": StraightThroughLinear,
    }
)


def attach(
    model: nn.Module,
    masks: Mapping[str, Bool[Tensor, "_ _"]] | None,
    towers: Towers,
    repair: Repair,
    *,
    seed: int,
) -> Adapters:
    """Freezes a pruned model and puts `repair.method` on the parts that `repair.train` lists.

    Vision and language are trained in their prunable layers that `repair.targets` names, behind
    the keep masks; the connector, which is not pruned, in all its linear layers: by ordinary LoRA
    where the method is SparseLoRA. Everything else stays as it is, bit for bit.

    Args:
        masks: keep mask of every prunable layer of the trained towers, by layer name; None for a
            dense model, which is then repaired by ordinary LoRA throughout. A mask that prunes
            nothing gives the same, so sparsity 0 and dense agree to the bit.
        seed: a layer's initial values follow from this and its name, whatever the layers' order.

    Raises:
        RepairError: a layer has no mask though others have; or as of `trained_layers`.
    """
    method = REPAIR_METHODS[repair.method]
    chosen = trained_layers(model, towers, repair)
    model.requires_grad_(False)
    layers: dict[str, AdaptedLinear] = {}
    parts: dict[str, str] = {}
    for part, linears in chosen.items():
        rank = getattr(repair.rank, part)
        for name, linear in linears.items():
            parts[name] = part
            layers[name] = method.adopt(
                linear,
                None if masks is None or part not in TOWERS else _pruning_mask(masks, name),
                rank=rank,
                scale=repair.alpha / rank,
                dropout=repair.dropout,
                generator=generator_of(seed, name),
            )
    return Adapters(layers, parts)


def merge(adapters: Adapters) -> None:
    """Merges every update into its weights; the model is then a plain transformers model again."""
    for layer in adapters.layers.values():
        layer.merge()
    adapters.layers.clear()


def trained_layers(
    model: nn.Module, towers: Towers, repair: Repair
) -> dict[str, dict[str, nn.Linear]]:
    """Returns the layers that `attach` would put something on, by part and name.

    Raises:
        RepairError: a layer is not a plain `nn.Linear`; a trained tower has no layer of the
            targets; or a layer is of a type that ZeRO 3 cannot share out with the others.
    """
    found: dict[str, dict[str, nn.Linear]] = {}
    for part in repair.train:
        names = _names(model, towers, repair, part)
        found[part] = {name: _plain_linear(model, name) for name in names}
    if repair.zero_stage == 3:
        _refuse_other_types(found, repair)
    return found


def _refuse_other_types(found: Mapping[str, Mapping[str, nn.Linear]], repair: Repair) -> None:
    wanted = getattr(torch, repair.dtype)
    others = [
        (name, layer.weight.dtype)
        for own in found.values()
        for name, layer in own.items()
        if layer.weight.dtype != wanted
    ]
    if others:
        name, dtype = others[0]
        raise RepairError(
            f"repair.zero_stage 3 shares out weights of one type, {repair.dtype}, and {name} is "
            f"{str(dtype).removeprefix('torch.')} (of {len(others)} such layers that repair would "
            "train): transformers keeps some so. Set zero_stage to 2, or model.dtype and "
            "repair.dtype to float32."
        )


def _names(model: nn.Module, towers: Towers, repair: Repair, part: str) -> list[str]:
    if part not in TOWERS:
        return [
            name
            for name, module in model.named_modules()
            # torch's MultiheadAttention computes with its own kind's weight and never calls it.
            if type(module) is nn.Linear and f"{name}.weight" in towers.connector
        ]
    names = [layer.name for layer in towers.inventory.tower(part)]
    found = [name for name in names if repair.reaches(name)]
    if not found:
        raise RepairError(
            f"no target of repair ({', '.join(repair.targets)}) is a layer of {part}. "
            f"Its layers end in {', '.join(endings(names))}."
        )
    return found


def _plain_linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    if type(module) is not nn.Linear:
        raise RepairError(f"{name}: repair needs a plain nn.Linear, got {type(module).__name__}")
    return module


def _pruning_mask(
    masks: Mapping[str, Bool[Tensor, "_ _"]], name: str
) -> Bool[Tensor, "_ _"] | None:
    if name not in masks:
        raise RepairError(f"{name}: is repaired but has no keep mask; its zeros would be lost")
    return None if bool(masks[name].all()) else masks[name]
