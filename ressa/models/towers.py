"""The parts of a vision-language model: vision tower, connector, language model.

Transformers says which modules the vision tower and the language model are; all the rest connects
them. What can be pruned is every linear layer inside a transformer block of either tower.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers.modeling_utils import PreTrainedModel

from ressa.errors import SpecError
from ressa.sparsity import Inventory, LayerShape, Tower


@dataclass(frozen=True, slots=True, kw_only=True)
class Towers:
    """Which parameter belongs to which part; each belongs to exactly one."""

    vision: tuple[str, ...]
    """Qualified parameter names, in the model's order; the same for the other two parts."""
    connector: tuple[str, ...]
    language: tuple[str, ...]
    projector: str
    """The connector's last module: what it puts out for a picture, the language model reads."""
    blocks: Mapping[Tower, tuple[str, ...]]
    """Module names of each tower's transformer blocks, by the number that its layers give."""
    inventory: Inventory

    def of(self, part: str) -> tuple[str, ...]:
        """Returns the parameter names of "vision", "connector" or "language"."""
        return {"vision": self.vision, "connector": self.connector, "language": self.language}[part]


def find_towers(model: PreTrainedModel) -> Towers:
    """Finds the parts of any model that transformers can take apart, without changing it.

    Raises:
        SpecError: if the model has no vision tower, no connector or no transformer blocks, or if
            its vision tower and its language model share a parameter.
    """
    kind = type(model).__name__
    vision, language = _vision_modules(model), _language_modules(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen_by = {id(p) for module in vision for p in module.parameters()}
    read_by = {id(p) for module in language for p in module.parameters()}
    if seen_by & read_by:
        shared = ", ".join(names[key] for key in names if key in seen_by & read_by)
        raise SpecError(f"{kind}: vision tower and language model share parameters: {shared}.")
    rest = {key for key in names if key not in seen_by | read_by}
    if not rest:
        raise SpecError(f"{kind} has no connector between its vision tower and language model.")
    parts = {"vision": seen_by, "connector": rest, "language": read_by}
    members = {
        part: tuple(name for key, name in names.items() if key in keys)
        for part, keys in parts.items()
    }
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    blocks: dict[Tower, tuple[str, ...]] = {
        "vision": _blocks(model, vision),
        "language": _blocks(model, language),
    }
    layers = [layer for tower in blocks for layer in _linear_layers(model, blocks[tower], tower)]
    return Towers(
        **members,
        projector=_projector(model, rest),
        blocks=blocks,
        inventory=Inventory(
            layers=tuple(layers),
            parameters={part: sum(sizes[n] for n in names) for part, names in members.items()},
        ),
    )


def _vision_modules(model: PreTrainedModel) -> list[nn.Module]:
    encoder = model.get_encoder("image")
    # Transformers answers with the model itself where it knows of no such part.
    if encoder is model or not isinstance(encoder, nn.Module):
        raise SpecError(
            f"{type(model).__name__} names no vision tower (`get_encoder('image')`). "
            "Choose a vision-language model such as BLIP-2 or LLaVA."
        )
    return [encoder]


def _language_modules(model: PreTrainedModel) -> list[nn.Module]:
    decoder = model.get_decoder()
    if decoder is model or not isinstance(decoder, nn.Module):
        raise SpecError(
            f"{type(model).__name__} names no language model (`get_decoder()`). "
            "Choose a vision-language model such as BLIP-2 or LLaVA."
        )
    head = model.get_output_embeddings()
    return [decoder] if head is None else [decoder, head]


def _blocks(model: PreTrainedModel, modules: Iterable[nn.Module]) -> tuple[str, ...]:
    """Names a tower's transformer blocks in module order, those of several stacks in a row."""
    names = {id(module): name for name, module in model.named_modules()}
    stacks = [stack for module in modules for stack in _stacks(module)]
    return tuple(names[id(block)] for stack in stacks for block in stack)


def _linear_layers(model: PreTrainedModel, blocks: Sequence[str], tower: Tower) -> list[LayerShape]:
    """Lists a tower's prunable layers in module order."""
    layers = [
        LayerShape(
            name=f"{block}.{name}",
            tower=tower,
            block=number,
            rows=layer.out_features,
            columns=layer.in_features,
        )
        for number, block in enumerate(blocks)
        for name, layer in model.get_submodule(block).named_modules()
        if isinstance(layer, nn.Linear)
    ]
    if not layers:
        raise SpecError(
            f"{type(model).__name__}: its {tower} tower has no linear layer inside a transformer "
            "block, so there is nothing to prune."
        )
    return layers


def _stacks(module: nn.Module) -> Iterator[nn.ModuleList]:
    """Finds the outermost lists of blocks; a T5 block, say, holds a list of its own."""
    if isinstance(module, nn.ModuleList):
        yield module
        return
    for child in module.children():
        yield from _stacks(child)


def _projector(model: PreTrainedModel, connector: set[int]) -> str:
    """Finds the last of the outermost modules that consist of connector parameters alone."""
    outermost: list[str] = []
    for name, module in model.named_modules():
        keys = {id(parameter) for parameter in module.parameters()}
        inside = any(name.startswith(f"{parent}.") for parent in outermost)
        if keys and keys <= connector and not inside:
            outermost.append(name)
    if not outermost:
        raise SpecError(f"{type(model).__name__}: its connector has no module of its own.")
    return outermost[-1]
