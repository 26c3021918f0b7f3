"""Forward passes that stop before each block, so that all of them go through it together.

Each pass is the model's own forward pass, in a greenlet of its own: it stands still in the middle
of the model while others catch up. So whatever an architecture does between its blocks and hands to
them (masks, rotary positions, T5's position bias, what cross-attention reads) is done by its code
and is right, and nothing but the states between two blocks is kept.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

_RUN, _GO_ON = object(), object()


class Pass(greenlet):  # type: ignore[misc]  # greenlet is untyped
    """One forward pass. It begins with the first `go_on`.

    Args:
        forward: runs the model; what it returns is not kept.
    """

    def __init__(self, forward: Callable[[], object]) -> None:
        super().__init__()
        self._forward = forward
        self.block: int | None = None
        """The block that it stands before; None before it began and when it has ended."""
        self._keep = False

    def run(self, _: object) -> None:
        """Runs the model; greenlet calls this."""
        self._forward()

    def run_block(self, *, keep: bool) -> None:
        """Runs the block that it stands before, and stays there.

        Args:
            keep: whether the pass goes on with what this run puts out, and not with another.
        """
        self._keep = keep
        self.switch(_RUN)

    def go_on(self) -> None:
        """Goes on behind the block to the next one, or to the end."""
        self.block = None
        self.switch(_GO_ON)

    def end(self) -> None:
        """Leaves the model where it stands."""
        if not self.dead:
            self.throw()

    def stand_before(self, block: int, run: Callable[[], Any], home: torch.device) -> Any:
        """Waits, inside the model, to be told to run the block or to go on; returns its output."""
        self.block = block
        output = None
        while self.parent.switch() is _RUN:
            output = run()
            if not self._keep:
                output = None
        return _moved(output, home)


@contextmanager
def stopping_before(blocks: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Makes every `Pass` stop before these blocks; on leaving, they are as they were.

    Args:
        blocks: modules of the model, known to a pass by their index here.
        device: where they compute; what they hand on goes back to where they got theirs from.
    """
    before = [vars(block).get("forward") for block in blocks]
    for index, block in enumerate(blocks):
        block.forward = _stopping(block.forward, index, device)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            del block.forward  # the class's shows again
            if forward is not None:
                block.forward = forward


@contextmanager
def on_device(block: nn.Module, device: torch.device) -> Iterator[None]:
    """Holds a block on a device for as long as it is worked on: weights stream from the CPU."""
    home = next(block.parameters()).device
    block.to(device)
    try:
        yield
    finally:
        block.to(home)


def _stopping(forward: Callable[..., Any], index: int, device: torch.device) -> Callable[..., Any]:
    def stopping(*args: Any, **kwargs: Any) -> Any:
        current = getcurrent()
        if not isinstance(current, Pass):
            return forward(*args, **kwargs)
        home = next(iter(_tensors((args, kwargs)))).device

        def run() -> Any:
            return forward(*_moved(args, device), **_moved(kwargs, device))

        return current.stand_before(index, run, home)

    return stopping


def _moved(value: Any, device: torch.device) -> Any:
    """Moves the tensors of nested tuples, lists and mappings, as far as they are elsewhere."""
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) in (tuple, list):
        return type(value)(_moved(item, device) for item in value)
    if type(value) is dict:
        return {key: _moved(item, device) for key, item in value.items()}
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
