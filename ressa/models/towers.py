"""The parts of a vision-language model: vision tower, connector, language model.

Transformers says which modules the vision tower and the language model are; what connects them is
known by its name. Every parameter is claimed by a part, or the model is refused. What can be pruned
is every linear layer inside a transformer block of either tower, and every expert of a mixture.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.modeling_utils import PreTrainedModel

from ressa.errors import SpecError
from ressa.models.opened import open_matrices
from ressa.sparsity import TOWERS, Inventory, LayerShape, Tower

PARTS = ("vision", "connector", "language", "other")

# Names that transformers gives to what its `get_encoder` does not reach.
_VISION = re.compile(r"(\w+_)?(vision|image)_(model|tower|encoder)")
_CONNECTOR = re.compile(
    r"\w*(projector|connector|aligner|resampler|merger|adapter|qformer)\w*"
    r"|query_tokens|language_projection|image_to_text_projection|vision_projection"
    r"|enc_to_dec_proj|visual_embeddings_table|embed_vision|\w*_newline|view_separator"
    r"|high_res_vision_(alpha|neck|proj)"
)
_OTHER = re.compile(r"\w*(audio|speech|video)\w*|vqmodel|generation_\w+")
_NO_TOWER = (
    "there is no vision tower apart from the language model, so there is nothing to split a "
    "sparsity over. Choose a model with one, such as BLIP-2, LLaVA or Qwen-VL, or name its modules "
    "in model.towers."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Towers:
    """Which parameter belongs to which part; each belongs to exactly one."""

    vision: tuple[str, ...]
    """Qualified parameter names, in the model's order; the same for the other parts."""
    connector: tuple[str, ...]
    language: tuple[str, ...]
    other: tuple[str, ...] = ()
    """What takes no part in questions about pictures: audio, video, making pictures. Left dense."""
    projector: str
    """The connector's last module: what it puts out for a picture, the language model reads."""
    blocks: Mapping[Tower, tuple[str, ...]]
    """Module names of each tower's transformer blocks, by the number that its layers give."""
    inventory: Inventory

    def of(self, part: str) -> tuple[str, ...]:
        """Returns the parameter names of "vision", "connector", "language" or "other"."""
        names: tuple[str, ...] = getattr(self, part)
        return names


def find_towers(model: PreTrainedModel, given: Mapping[str, Sequence[str]] | None = None) -> Towers:
    """Finds the parts of any model that transformers can take apart.

    Experts of mixtures become linear layers first (`opened.py`); nothing else changes.

    Args:
        model: with weights, or on the meta device without.
        given: modules or parameters of parts, by qualified name. A tower that is given is not
            looked for; what is given of the other parts is added to what is found.

    Raises:
        SpecError: the model has no vision tower, no language model or no transformer blocks; a
            parameter is claimed by no part, or a given name is not in the model.
    """
    open_matrices(model)
    roots = _roots(model, given or {})
    part_of = {name: _part(name, roots) for name, _ in model.named_parameters()}
    _refuse_unclaimed(model, part_of)
    members = {
        part: tuple(name for name, owner in part_of.items() if owner == part) for part in PARTS
    }
    blocks: dict[Tower, tuple[str, ...]] = {
        tower: tuple(_blocks(model, roots, tower)) for tower in TOWERS
    }
    layers = [layer for tower in TOWERS for layer in _linear_layers(model, blocks[tower], tower)]
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return Towers(
        **members,
        projector=_projector(members["connector"], roots),
        blocks=blocks,
        inventory=Inventory(
            layers=tuple(layers),
            parameters={
                part: sum(sizes[name] for name in names)
                for part, names in members.items()
                if names or part != "other"
            },
            modules={part: _shown(roots, part) for part in PARTS if part in roots.values()},
            vocabulary=getattr(model.config.get_text_config(), "vocab_size", None) or 0,
        ),
    )


def _roots(model: PreTrainedModel, given: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Says which part each module of these names is, with all in it that no deeper name claims."""
    names = {name for name, _ in [*model.named_modules(), *model.named_parameters()]}
    unknown = [name for part in given.values() for name in part if name not in names]
    if unknown:
        raise SpecError(
            f"model.towers: {type(model).__name__} has no module {', '.join(map(repr, unknown))}. "
            f"Its outermost modules are {', '.join(name for name, _ in model.named_children())}."
        )
    vision = given.get("vision") or _vision_modules(model)
    roots = dict.fromkeys(given.get("language") or _language_modules(model), "language")
    roots |= dict.fromkeys(vision, "vision")
    for name in sorted(names - {""}, key=lambda name: (name.count("."), name)):
        inside, last = _part(name, roots), name.rpartition(".")[2]
        in_block = any(part.isdecimal() for part in name.split("."))
        if in_block or name in roots or inside in ("connector", "other"):
            continue
        if inside is None and _OTHER.fullmatch(last):
            roots[name] = "other"
        elif _CONNECTOR.fullmatch(last):
            roots[name] = "connector"
        elif inside is None and _VISION.fullmatch(last):
            roots[name] = "vision"
    for part, found in given.items():
        roots |= dict.fromkeys(found, part)
    owned = [name for name, _ in model.named_parameters()]
    return {root: part for root, part in roots.items() if _under(root, owned)}


def _shown(roots: Mapping[str, str], part: str) -> tuple[str, ...]:
    """Lists a part's modules without those inside another one of them."""
    own = [name for name, owner in roots.items() if owner == part]
    return tuple(name for name in own if _part(name.rpartition(".")[0], roots) != part)


def _part(name: str, roots: Mapping[str, str]) -> str | None:
    """Returns the part that a module or parameter belongs to, by the longest name above it."""
    while name:
        if name in roots:
            return roots[name]
        name = name.rpartition(".")[0]
    return roots.get("")


def _refuse_unclaimed(model: PreTrainedModel, part_of: Mapping[str, str | None]) -> None:
    unclaimed: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if part_of[name] is None:
            top = ".".join(name.split(".")[:2]) if name.startswith("model.") else name.split(".")[0]
            unclaimed[top] = unclaimed.get(top, 0) + parameter.numel()
    if unclaimed:
        found = ", ".join(f"{name} ({size:,} parameters)" for name, size in unclaimed.items())
        raise SpecError(
            f"{type(model).__name__}: what {found} belongs to is not known. Say so in the sweep "
            "file, such as model: {towers: {connector: "
            f"[{next(iter(unclaimed))}]}}}}; parts are {', '.join(PARTS)}."
        )


def _vision_modules(model: PreTrainedModel) -> list[str]:
    """Finds the vision tower by transformers' word, and whatever else is called one."""
    names = {id(module): name for name, module in model.named_modules()}
    encoder = _deepest_encoder(model)
    if encoder is None:
        known = [n for n in names.values() if _VISION.fullmatch(n.rpartition(".")[2])]
        if known:
            return known[:1]
        plain: Any = model.get_encoder()
        # Of a model that reads nothing but pictures, the one encoder is the vision tower.
        reads = getattr(plain, "main_input_name", None)
        if not _is_inside(plain, model) or reads not in ("pixel_values", "flattened_patches"):
            raise SpecError(f"{type(model).__name__}: {_NO_TOWER}")
        encoder = plain
    if not any(True for _ in encoder.parameters()):
        raise SpecError(f"{type(model).__name__}: {_NO_TOWER}")
    return [names[id(encoder)]]


def _deepest_encoder(model: PreTrainedModel) -> nn.Module | None:
    """Asks for the image encoder, and that for its own: T5Gemma2's encoder holds both towers."""
    found: nn.Module | None = None
    asked: Any = model
    while isinstance(asked, PreTrainedModel):
        asked = asked.get_encoder("image")
        if asked is found or not _is_inside(asked, model):
            break
        found = asked
    return found


def _is_inside(module: Any, model: PreTrainedModel) -> bool:
    """Whether a module is a part of the model, and not the model or what holds its decoder too."""
    decoder: Any = model.get_decoder()
    return isinstance(module, nn.Module) and module is not model and decoder not in module.modules()


def _language_modules(model: PreTrainedModel) -> list[str]:
    """Finds decoder, encoder where the language model has one, embeddings and head."""
    names = {id(module): name for name, module in model.named_modules()}
    decoder: Any = model.get_decoder()
    if decoder is model or not isinstance(decoder, nn.Module):
        raise SpecError(
            f"{type(model).__name__} names no language model (`get_decoder()`). "
            "Choose a vision-language model such as BLIP-2 or LLaVA, or name its modules in "
            "model.towers."
        )
    found: list[nn.Module | None] = [decoder]
    if has_encoder(model):
        encoder: Any = model.get_encoder()
        if encoder is not model and isinstance(encoder, nn.Module):
            found.insert(0, encoder)
    found += [model.get_output_embeddings(), _input_embeddings(model)]
    return [names[id(module)] for module in found if id(module) in names]


def _input_embeddings(model: PreTrainedModel) -> nn.Module | None:
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError:  # transformers' way to say that it does not know
        return None
    return embeddings if isinstance(embeddings, nn.Module) else None


def has_encoder(model: PreTrainedModel) -> bool:
    """Whether the language model reads with an encoder (T5) and answers with a decoder."""
    config = model.config
    return bool(config.is_encoder_decoder or config.get_text_config().is_encoder_decoder)


def _blocks(model: nn.Module, roots: Mapping[str, str], tower: Tower) -> Iterator[str]:
    """Names a tower's transformer blocks in module order, those of several stacks in a row."""
    seen: set[str] = set()
    for root in (name for name, part in roots.items() if part == tower):
        for block in _blocks_in(model.get_submodule(root), root, roots, tower):
            if block not in seen:
                seen.add(block)
                yield block


def _blocks_in(
    module: nn.Module, name: str, roots: Mapping[str, str], tower: Tower
) -> Iterator[str]:
    """Finds the outermost lists of blocks; a T5 block, say, holds a list of its own."""
    if isinstance(module, nn.ModuleList) and not _is_list_of_lists(module):
        for index, block in enumerate(module):
            if not isinstance(block, nn.Linear) and any(True for _ in _linears(block)):
                yield f"{name}.{index}"
        return
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if roots.get(path, tower) == tower:
            yield from _blocks_in(child, path, roots, tower)


def _is_list_of_lists(module: nn.ModuleList) -> bool:
    return len(module) > 0 and all(isinstance(item, nn.ModuleList) for item in module)


def _linears(block: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in block.named_modules():
        if type(module) is nn.Linear:
            yield name, module


def _linear_layers(model: PreTrainedModel, blocks: Sequence[str], tower: Tower) -> list[LayerShape]:
    """Lists a tower's prunable layers in module order; tied weights once, by their first name."""
    seen: set[int] = set()
    layers = []
    for number, block in enumerate(blocks):
        for name, layer in _linears(model.get_submodule(block)):
            if id(layer.weight) in seen:
                continue
            seen.add(id(layer.weight))
            rows, columns = layer.weight.shape
            layers.append(
                LayerShape(
                    name=f"{block}.{name}", tower=tower, block=number, rows=rows, columns=columns
                )
            )
    if not layers:
        raise SpecError(
            f"{type(model).__name__}: its {tower} tower has no linear layer inside a transformer "
            "block, so there is nothing to prune."
        )
    return layers


def _projector(connector: Sequence[str], roots: Mapping[str, str]) -> str:
    """Finds the connector's last module; "" if there is none, as in pix2struct."""
    modules = [name for name, part in roots.items() if part == "connector"]
    last = {name: max(map(connector.index, _under(name, connector))) for name in modules}
    return max(last, key=last.__getitem__, default="")


def _under(root: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if name == root or name.startswith(f"{root}.")]
