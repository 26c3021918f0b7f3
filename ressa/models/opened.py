"""Matrices that are no linear layer of their own, opened into linear layers and closed again.

Transformers fuses the experts of a mixture into one tensor, and GPT-2's `Conv1D` holds its weight
transposed. Opened, each matrix is a plain `nn.Linear`, so that calibration, pruning and repair need
to know of linear layers alone. Closed, the model is as transformers made it, with the new weights.

Dimensions: expert = experts of one mixture; out, in = rows and columns of one expert's matrix;
token = all tokens of a batch, end to end.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_FUSED = ("gate_up_proj", "up_proj", "down_proj")


def open_matrices(model: nn.Module) -> None:
    """Turns fused experts and `Conv1D` into linear layers in place, without copying a weight."""
    for module in list(model.modules()):
        if is_mixture(module):
            _open_mixture(module)
        for name, child in list(module.named_children()):
            if type(child) is Conv1D:
                layer = _linear(child.weight.T, child.bias)
                layer.was_transposed = True
                setattr(module, name, layer)


def close_matrices(model: nn.Module) -> None:
    """Undoes `open_matrices`; the weights stay as they have become."""
    for module in list(model.modules()):
        if is_mixture(module) and isinstance(module.down_proj, nn.ModuleList):
            _close_mixture(module)
        for name, child in list(module.named_children()):
            if getattr(child, "was_transposed", False):
                layer: Any = child
                closed = Conv1D(layer.out_features, layer.in_features)
                closed.weight = nn.Parameter(layer.weight.detach().T.contiguous())
                closed.bias = layer.bias
                setattr(module, name, closed)


@contextmanager
def closed(model: nn.Module) -> Iterator[None]:
    """Closes the model's matrices for a while, to be saved."""
    close_matrices(model)
    try:
        yield
    finally:
        open_matrices(model)


def is_expert(layer: nn.Module) -> bool:
    """Whether a linear layer is a matrix of an opened mixture's expert."""
    return "routed" in vars(layer)


def tokens_of(layer: nn.Module) -> tuple[Tensor, int] | None:
    """Says which of a mixture's tokens an expert's input rows are, and of how many; while it runs.

    None of other layers.
    """
    return vars(layer).get("routed")


def is_mixture(module: nn.Module) -> bool:
    """Whether a module holds the experts of a mixture, fused or opened."""
    return (
        hasattr(module, "num_experts")
        and _matrices(module, "down_proj")
        and (_matrices(module, "gate_up_proj") or _matrices(module, "up_proj"))
    )


def _matrices(module: nn.Module, name: str) -> bool:
    found = getattr(module, name, None)
    return isinstance(found, nn.ModuleList) or (
        isinstance(found, nn.Parameter) and found.dim() == 3
    )


def _open_mixture(module: Any) -> None:
    for name in _FUSED:
        fused = module._parameters.get(name)
        if fused is None:
            continue
        bias = module._parameters.pop(f"{name}_bias", None)
        del module._parameters[name]
        layers = nn.ModuleList()
        for index in range(len(fused)):
            weight = fused[index].T if _is_transposed(module) else fused[index]
            layer = _linear(weight, None if bias is None else bias[index])
            layer.routed = None
            layers.append(layer)
        module.add_module(name, layers)
    module.forward = MethodType(_run_grouped if _is_grouped(module) else _run_routed, module)


def _close_mixture(module: Any) -> None:
    for name in _FUSED:
        layers = module._modules.pop(name, None)
        if layers is None:
            continue
        weights = [layer.weight.detach() for layer in layers]
        stack = torch.stack([w.T if _is_transposed(module) else w for w in weights])
        module.register_parameter(name, nn.Parameter(stack))
        if layers[0].bias is not None:
            biases = torch.stack([layer.bias.detach() for layer in layers])
            module.register_parameter(f"{name}_bias", nn.Parameter(biases))
    del module.forward  # the class's shows again


def _is_grouped(module: Any) -> bool:
    """Whether every expert is handed its tokens in a row, as in Llama 4, and not told which."""
    return type(module).__name__ == "Llama4TextExperts"


def _is_transposed(module: Any) -> bool:
    return bool(getattr(module, "is_transposed", _is_grouped(module)))


def _linear(weight: Tensor, bias: Tensor | None) -> Any:
    """Makes a linear layer that shares its weight's memory."""
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach())
    return layer


def _run_routed(
    self: Any,
    hidden_states: Float[Tensor, "token in"],
    top_k_index: Int[Tensor, "token chosen"],
    top_k_weights: Float[Tensor, "token chosen"],
) -> Float[Tensor, "token in"]:
    """Runs a mixture whose experts are linear layers."""
    result = torch.zeros_like(hidden_states)
    for index in _awaited(self, top_k_index):
        token, place = torch.where(top_k_index == index)
        output = _run_expert(self, index, hidden_states, token)
        if getattr(self, "has_post_expert_norm", False):
            output = self.post_expert_norm(output)
        output = output * top_k_weights[token, place, None]
        result = result.index_add(0, token, output.to(result.dtype))
    return result


def _awaited(experts: Any, top_k_index: Int[Tensor, "token chosen"]) -> Sequence[int]:
    """The experts to run: those with a token, which is all that a result depends on.

    All of them, in the same order on every worker, where gradients are taken, which ZeRO sums over
    workers, or where somebody listens, who counts calls.
    """
    listened = any(layer._forward_pre_hooks for layer in experts.down_proj)
    if torch.is_grad_enabled() or listened:
        return range(experts.num_experts)
    chosen: list[int] = top_k_index.unique().tolist()
    return chosen


def _run_grouped(self: Any, hidden_states: Float[Tensor, "row in"]) -> Float[Tensor, "row in"]:
    """Runs Llama 4's experts, each of which is handed all tokens, zero where it was not chosen."""
    groups = hidden_states.view(self.num_experts, -1, self.hidden_size)
    outputs = []
    for index, rows in enumerate(groups):
        token = torch.where(rows.detach().any(dim=1))[0]
        output = _run_expert(self, index, rows, token)
        outputs.append(torch.zeros_like(rows).index_add(0, token, output))
    return torch.cat(outputs)


def _run_expert(
    experts: Any, index: int, rows: Float[Tensor, "row in"], token: Int[Tensor, " row"]
) -> Float[Tensor, "row in"]:
    gated = hasattr(experts, "gate_up_proj")
    first = (experts.gate_up_proj if gated else experts.up_proj)[index]
    second = experts.down_proj[index]
    # Whoever listens to these layers cannot tell otherwise which tokens their rows are.
    first.routed = second.routed = token, len(rows)
    middle = first(rows[token])
    if not gated:
        middle = experts.act_fn(middle)
    elif hasattr(experts, "_apply_gate"):
        middle = experts._apply_gate(middle)
    else:
        gate, up = middle.chunk(2, dim=-1)
        middle = up * experts.act_fn(gate)
    output: Tensor = second(middle)
    first.routed = second.routed = None
    return output
