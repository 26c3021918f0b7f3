"""Tensors with a note beside them, as the bytes of one safetensors file."""

import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load, save
from torch import Tensor


def pack(tensors: Mapping[str, Tensor], note: Any) -> bytes:
    """Writes tensors and a note of plain values; equal content gives equal bytes."""
    # One entry, because safetensors writes several in no fixed order.
    content: bytes = save(dict(tensors), metadata={"ressa": json.dumps(note, sort_keys=True)})
    return content


def unpack(content: bytes) -> tuple[dict[str, Tensor], Any]:
    """Reads what `pack` wrote: the tensors, and the note."""
    # safetensors reads metadata from files only; its first eight bytes are the header's length.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return load(content), json.loads(header["__metadata__"]["ressa"])
