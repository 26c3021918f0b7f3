"""How room is made for a picture among a prompt's tokens, so that it need not be processed too.

Nearly every processor makes the same room for a picture of one size whatever the prompt is: at a
mark in its tokens, or in front of them. Where two prompts have shown that, tokens are enough.

Dimensions: time = tokens of one prompt, with its picture.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

Texts = dict[str, Tensor]
"""What runs along one prompt, [time] each: input_ids, attention_mask and the like."""

K = TypeVar("K")
V = TypeVar("V")

_MOST = 4096  # values that are kept, of some 10 kB each


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a processor puts into prompts for pictures of one size."""

    mark: int
    """The token that may stand for a picture."""
    marks: int
    """How often it stands in a prompt: 1, and the block takes its place; or 0, and it comes first.
    """
    block: Texts
    beside: dict[str, int]
    """What stands at all other tokens, in what is no ids."""
    tokens: int
    """How many the prompt had in which this was seen."""
    is_sure: bool = False
    """Whether a prompt of another length has shown the same."""

    def made(self, ids: list[int]) -> Texts | None:
        """Returns what a prompt of these tokens becomes; None if it is marked otherwise."""
        if ids.count(self.mark) != self.marks:
            return None
        at = ids.index(self.mark) if self.marks else 0
        around = ids[:at], ids[at + self.marks :]
        texts = {}
        for name, block in self.block.items():
            before, behind = (
                block.new_tensor(part if name == "input_ids" else [self.beside[name]] * len(part))
                for part in around
            )
            texts[name] = torch.cat([before, block, behind])
        return texts

    def makes(self, texts: Texts, ids: list[int]) -> bool:
        """Whether a prompt of these tokens becomes just that."""
        made = self.made(ids)
        return made is not None and all(made[name].equal(texts[name]) for name in texts)


def room_in(texts: Texts, ids: list[int], mark: int) -> Room | None:
    """Finds the room for a picture in what a processor made of a prompt of these tokens.

    Returns:
        None if more than one block of tokens is new, or something else differs along the prompt.
    """
    time, marks = len(texts["input_ids"]), ids.count(mark)
    at = ids.index(mark) if marks else 0
    end = at + time - len(ids) + marks
    if marks > 1 or end < at or any(t.shape != (time,) for t in texts.values()):
        return None
    room = Room(
        mark=mark,
        marks=marks,
        block={name: tensor[at:end].clone() for name, tensor in texts.items()},
        beside={n: int(next(iter((*t[:at], *t[end:])), 0)) for n, t in texts.items()},
        tokens=len(ids),
    )
    return room if room.makes(texts, ids) else None


class Recent(Generic[K, V]):
    """The values that were used last; threads may share them."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """Returns a value that is still here."""
        value = self._values.pop(key, None)
        if value is not None:
            self._values[key] = value  # it was used last
        return value

    def put(self, key: K, value: V) -> None:
        """Keeps a value, and lets go of those that were used before all others."""
        self._values[key] = value
        if len(self._values) > self._most:
            self._values.popitem(last=False)
