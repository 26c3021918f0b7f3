"""What a module made of an input, kept for the next time that it is asked with equal weights."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ressa.memory import bytes_of

_WEIGHTS = 2  # a trial before repair and after it


@contextmanager
def asked_once(module: nn.Module, seen: dict[bytes, Any], most_bytes: int) -> Iterator[None]:
    """Within, a module gives again what it, or one of equal weights, put out before.

    Args:
        module: always asked about the same input, without gradients.
        seen: what was put out, by a digest of the weights; the last used ones are kept.
        most_bytes: an output that is larger is not kept.
    """
    weights, ask = _digest(module), module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = seen.pop(weights) if weights in seen else ask(*args, **kwargs)
        if _size(output) <= most_bytes:
            seen[weights] = output
            while len(seen) > _WEIGHTS:
                del seen[next(iter(seen))]
        return output

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def _digest(module: nn.Module) -> bytes:
    """Tells a module's weights, adapters' among them, from any others."""
    digest = hashlib.blake2b()
    for tensor in (*module.parameters(), *module.buffers()):
        digest.update(bytes_of(tensor))
    return digest.digest()


def _size(output: Any) -> int:
    if isinstance(output, Tensor):
        return output.nbytes
    parts = output.values() if isinstance(output, Mapping) else output
    return sum(map(_size, parts)) if isinstance(output, Mapping | tuple | list) else 0
