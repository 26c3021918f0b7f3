"""DeepSpeed under the repair loop: what it is told, and how the model is lent to it and given back.

DeepSpeed sees the trained parameters alone, as copies: the frozen model is neither broadcast nor
moved, and no hook of DeepSpeed's stays on the model afterwards. At ZeRO 3, which shares out what
the model computes with, it sees the trained layers whole, frozen weights too: they are most of the
model.

Tried: gloo on CPUs with one and two workers, ZeRO 0 to 3. Never run: NCCL between several GPUs.
"""

import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.utils import get_total_norm

from ressa.models.vlm import VLM, Batch
from ressa.repair.adapted import AdaptedLinear, Adapters
from ressa.repair.distillation import feature_error, loss_parts
from ressa.spec import Repair

log = logging.getLogger(__name__)

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""


def zero_stage(repair: Repair) -> int:
    """The ZeRO stage that is run: in half precision 0 is 1, for 0 has no fp32 master weights.

    Tried: DeepSpeed's bf16 at stage 0 is off by 5e-2 to 2e-1, at stages 1 to 3 by 2e-3.
    """
    return repair.zero_stage if repair.dtype == "float32" else max(1, repair.zero_stage)


def accumulation(repair: Repair, world_size: int, micro_batch: int | None) -> int:
    """Micro-batches per worker and step."""
    questions = repair.batch_size // world_size
    return math.ceil(questions / (micro_batch or questions))


def deepspeed_config(
    repair: Repair, world_size: int, weights: int, micro_batch: int | None = None
) -> dict[str, Any]:
    """Derives DeepSpeed's configuration; nobody writes it by hand.

    Args:
        weights: how many are trained.
        micro_batch: questions that a worker holds at once; None for what `repair` says.
    """
    how_many = accumulation(repair, world_size, micro_batch or repair.micro_batch)
    questions = repair.batch_size // world_size  # per worker and step
    zero: dict[str, Any] = {
        "stage": zero_stage(repair),
        # A buffer of so many numbers is made at once; DeepSpeed's 500 million take 2 GB.
        "reduce_bucket_size": min(weights, 500_000_000),
    }
    if repair.zero_stage == 3:
        # It would replace torch's linear function for good, by one that rounds otherwise.
        zero["memory_efficient_linear"] = False
    if repair.offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": math.ceil(questions / how_many),
        "gradient_accumulation_steps": how_many,
        "gradient_clipping": float(repair.clip),  # DeepSpeed's own default is 1, not none
        "zero_optimization": zero,
        # torch's AdamW instead of DeepSpeed's own, which would be compiled for minutes.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": repair.dtype == "bfloat16"},
        "fp16": {"enabled": repair.dtype == "float16"},
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
    for key, value in repair.deepspeed.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    """Mutes warnings about DeepSpeed's own use of torch, which users can do nothing about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Student(nn.Module):
    """The loss of a micro-batch, as DeepSpeed sees it: a module of what is trained alone."""

    def __init__(self, vlm: VLM, trained: nn.Module | None, repair: Repair) -> None:
        super().__init__()
        self.trained = trained
        self._vlm, self._repair = vlm, repair

    def forward(self, batch: Batch, teacher: Tensor | None, tokens: float) -> tuple[Tensor, Tensor]:
        """Returns this micro-batch's part of the global loss, and of (loss, ce, kl) to report."""
        plan, questions = self._repair.distillation, self._repair.batch_size
        if self._repair.objective == "features":
            assert teacher is not None
            features = self._vlm.vision_features(batch)
            loss = feature_error(features, teacher, batch.image_index) / questions
            return loss, torch.stack([loss, *loss.new_zeros(2)]).detach()
        ce, kl = loss_parts(self._vlm, batch, teacher, plan, tokens=tokens, questions=questions)
        if kl is None:
            return ce, torch.stack([ce, ce, ce.new_zeros(())]).detach()
        loss = torch.lerp(ce, kl, plan.weight)
        return loss, torch.stack([loss, ce, kl]).detach()


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Everything that training has moved, gathered from all workers, as it is between two steps.

    By the parameters' names in the model and not cut up, so that any number of workers at any ZeRO
    stage can go on from it.
    """

    tensors: Mapping[str, Tensor]
    """`<parameter>`, `<parameter>.exp_avg` and `<parameter>.exp_avg_sq`, fp32 or better; of each
    what can move, as the layer's `moving` says."""
    updates: int
    """How many updates AdamW has made; fewer than steps where fp16 skipped some."""
    loss_scale: float | None
    """Of fp16; None otherwise."""


class Engine:
    """A DeepSpeed engine on copies of the trained parameters, which stand in for them meanwhile.

    Every worker makes one, and calls its methods in step with the others.
    """

    def __init__(
        self, vlm: VLM, adapters: Adapters, repair: Repair, micro_batch: int | None
    ) -> None:
        self.stage = zero_stage(repair)
        self._loans = _lend(adapters, getattr(torch, repair.dtype), self.stage)
        lent = [loan.copy for loan in self._loans if loan.trained]
        weights = sum(copy.numel() for copy in lent)
        self.config = deepspeed_config(repair, distributed.get_world_size(), weights, micro_batch)
        owners = list({id(loan.owner): loan.owner for loan in self._loans}.values())
        self._student = Student(
            vlm, nn.ModuleList(owners) if self.stage == 3 else nn.ParameterList(lent), repair
        )
        self._adam = torch.optim.AdamW(lent, lr=repair.learning_rate, weight_decay=0.0)
        with _quiet():
            self._engine, *_ = _deepspeed().initialize(
                model=self._student,
                model_parameters=lent,
                optimizer=self._adam,
                config=self.config,
                dist_init_required=False,
            )
            if self.stage:  # DeepSpeed has made its fp32 masters of copies, which may be rounded
                for loan in self._trained:
                    self._put(loan.copy, None, loan.original)

    def set_learning_rate(self, rate: float) -> None:
        """Sets the rate that the next update is made with."""
        for group in self._adam.param_groups:
            group["lr"] = rate

    @_quiet()
    def forward(self, *micro_batch: Any) -> tuple[Tensor, Tensor]:
        """Returns a micro-batch's loss, and of (loss, ce, kl) to report."""
        loss, reported = self._engine(*micro_batch)
        return loss, reported

    @_quiet()
    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Adds a micro-batch's gradient."""
        # DeepSpeed takes a mean over micro-batches and workers; these are already shares of a mean
        # over the global batch. (ZeRO 3 cannot be told to take a sum.)
        shares = self._engine.gradient_accumulation_steps() * distributed.get_world_size()
        self._engine.backward(loss * shares)

    @_quiet()
    def step(self) -> float | None:
        """Ends a micro-batch, and after the step's last one moves the weights.

        Returns:
            The gradient's norm over all workers before clipping, after the last micro-batch; None
            before it, and for a step that fp16 skips to lower its scale.
        """
        is_last = self._engine.is_gradient_accumulation_boundary()
        norm = self._own_norm() if self.stage == 0 and is_last else None
        self._engine.step()
        if not is_last:
            return None
        if getattr(self._engine.optimizer, "overflow", False):  # DeepSpeed has moved nothing
            return None if self._engine.fp16_enabled() else math.inf
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def _own_norm(self) -> Tensor:
        # ZeRO measures it by itself; without ZeRO DeepSpeed measures it after clipping.
        return get_total_norm([p.grad for p in self._student.parameters() if p.grad is not None])

    @_quiet()
    def moment(self) -> Moment:
        """Gathers what training has moved so far, the same on every worker."""
        tensors = {}
        for loan in self._trained:
            for key, tensor in self._gathered(loan.copy).items():
                whole = tensor.reshape(loan.original.shape)
                tensors[loan.name + key] = loan.owner.moving(whole).cpu()
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        half = self._engine.fp16_enabled()
        return Moment(
            tensors=tensors,
            updates=self._updates(),
            loss_scale=float(scaler.cur_scale) if half and scaler is not None else None,
        )

    @property
    def _trained(self) -> list["_Loan"]:
        return [loan for loan in self._loans if loan.trained]

    def _updates(self) -> int:
        steps = {int(state["step"]) for state in self._adam.state.values() if "step" in state}
        return max(steps, default=0)

    def _gathered(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """A parameter's fp32 value and moments, by the ending of their names."""
        if self.stage == 0:
            state = self._adam.state.get(parameter, {})
            value: Tensor = parameter.detach()
            moments = [state.get(key, torch.zeros_like(value)) for key in MOMENTS]
        else:
            tools = _deepspeed().utils
            value = tools.safe_get_full_fp32_param(parameter)
            if not self._updates():
                moments = [torch.zeros_like(value) for _ in MOMENTS]
            else:
                moments = [tools.safe_get_full_optimizer_state(parameter, key) for key in MOMENTS]
        return {"": value} | {f".{key}": t for key, t in zip(MOMENTS, moments, strict=True)}

    @_quiet()
    @torch.no_grad()
    def restore(self, moment: Moment) -> None:
        """Goes back to where `moment` was taken, at whatever stage and number of workers it was."""
        optimizer = self._engine.optimizer
        if self.stage == 3:  # its groups are empty but during a step
            flat = optimizer.fp32_partitioned_groups_flat
        else:
            flat = [owner for group in self._adam.param_groups for owner in group["params"]]
        for owner in flat:
            self._adam.state[owner] = {
                # On the CPU, as torch keeps it itself.
                "step": torch.tensor(float(moment.updates)),
                **{key: torch.zeros_like(owner) for key in MOMENTS},
            }
        if self.stage in (1, 2):
            optimizer._lazy_init_hp_params_optimizer_state()
        for loan in self._trained:
            for key in ("", *MOMENTS):
                name = f"{loan.name}.{key}" if key else loan.name
                whole = loan.owner.with_still(moment.tensors[name].to(loan.copy.device))
                self._put(loan.copy, key or None, whole)
        if moment.loss_scale is not None and self._engine.fp16_enabled():
            optimizer.loss_scaler.cur_scale = moment.loss_scale

    @torch.no_grad()
    def _put(self, parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
        """Sets a parameter's value, or one of its moments, from a whole tensor."""
        if self.stage == 0:
            (self._adam.state[parameter][key] if key else parameter).copy_(value)
            return
        if self.stage < 3:
            if key is None:
                parameter.copy_(value)
                parameter.set_full_hp_param(value)  # type: ignore[attr-defined]
            else:
                parameter.set_full_hp_param(value, key)  # type: ignore[attr-defined]
            return
        shard = parameter.ds_tensor  # type: ignore[attr-defined]
        size, rank = shard.ds_numel, distributed.get_rank()
        # The last worker's part is padded.
        padded = functional.pad(value.flatten(), (0, size * distributed.get_world_size()))
        own = padded[size * rank : size * (rank + 1)]
        optimizer = parameter._z3_optimizer  # type: ignore[attr-defined]
        if key is None:
            shard.copy_(own)
            optimizer.set_local_hp_param(own, parameter)
            if parameter.numel() == value.numel():  # gathered just now, and perhaps to stay so
                parameter.copy_(value)
        else:
            optimizer.set_local_hp_param(own, parameter, key)

    @_quiet()
    @torch.no_grad()
    def give_back(self) -> None:
        """Puts the trained values, from their fp32 masters, into the model's own parameters."""
        for loan in self._loans:
            if loan.trained:
                value = self._gathered(loan.copy)[""]
                loan.original.copy_(value.reshape(loan.original.shape))
                continue
            # A step that broke off has left it in use.
            loan.copy.ds_active_sub_modules.clear()  # type: ignore[attr-defined]
            with _deepspeed().zero.GatheredParameters([loan.copy]):
                loan.original.data = loan.copy.detach().clone()

    @_quiet()
    def close(self) -> None:
        """Takes DeepSpeed off the model; a second time it does nothing.

        What was not given back before is as it was at first; frozen weights that ZeRO 3 has shared
        out are then gone, and with them the model.
        """
        if not self._loans:
            return
        self._engine.destroy()
        for loan in self._loans:
            # ZeRO 3 puts its own kind of dictionary there, which would go on gathering.
            loan.owner.__dict__["_parameters"] = dict(loan.owner._parameters.items())
        for loan in self._loans:
            loan.owner._parameters[loan.key] = loan.original
        self._loans = []


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loan:
    """A parameter that DeepSpeed works on in place of the model's own."""

    name: str
    owner: AdaptedLinear
    key: str
    original: nn.Parameter
    copy: nn.Parameter
    trained: bool


def _lend(adapters: Adapters, dtype: torch.dtype, stage: int) -> list[_Loan]:
    """Puts copies in place of the trained parameters; at ZeRO 3, of all that their layers own."""
    trained = {id(parameter) for parameter in adapters.parameters()}
    loans = []
    for path, owner in adapters.layers.items():
        for key, original in list(owner.named_parameters(recurse=False)):
            is_trained = id(original) in trained
            if not is_trained and stage < 3:
                continue
            # DeepSpeed sends rows as bytes: GPT-2's weights and some experts' lie transposed.
            whole = original.detach().contiguous()
            if is_trained:
                copy = nn.Parameter(whole.to(dtype, copy=True))
            else:
                copy = nn.Parameter(whole, requires_grad=False)
                # Its memory is DeepSpeed's now, to be shared out.
                original.data = original.data.new_empty(0)
            owner._parameters[key] = copy
            loans.append(
                _Loan(
                    name=f"{path}.{key}",
                    owner=owner,
                    key=key,
                    original=original,
                    copy=copy,
                    trained=is_trained,
                )
            )
    return loans


def stacks(module: nn.Module) -> Iterator[nn.ModuleList]:
    """Finds the outermost lists of blocks; a T5 block, say, holds a list of its own."""
    if isinstance(module, nn.ModuleList):
        yield module
        return
    for child in module.children():
        yield from stacks(child)


@contextmanager
def recomputed(vlm: VLM, *, wanted: bool) -> Iterator[None]:
    """Keeps only the inputs of transformer blocks for backward, and runs each block again there.

    A pass without gradients, such as an answer at a rung, is as it always is, cache included.
    transformers' own switch works in training mode only, where dropout is on.
    """
    blocks: Sequence[nn.Module] = (
        [block for stack in stacks(vlm.model) for block in stack] if wanted else []
    )
    for block in blocks:
        block.forward = _recomputing(block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own is seen again


def _recomputing(forward: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if "past_key_values" in kwargs:  # a block that runs twice would write its keys twice
            kwargs["past_key_values"] = None
        return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


@cache
def _deepspeed() -> Any:
    """Imports DeepSpeed so that it neither compiles, nor looks for other hosts, nor prints."""
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    # Its own folder for compiled extensions: a process killed while compiling leaves a lock there
    # that all later ones would wait for.
    extensions = f"ressa-torch-extensions-{os.getpid()}"
    os.environ["TORCH_EXTENSIONS_DIR"] = os.path.join(tempfile.gettempdir(), extensions)
    import deepspeed

    # It would compile a shared-memory all-reduce for minutes; gloo does the same work.
    deepspeed.ops.__compatible_ops__ = {}
    # Its handler writes to stdout, which belongs to results.
    deepspeed.utils.logger.handlers.clear()
    deepspeed.utils.logger.propagate = True
    deepspeed.utils.logger.setLevel(logging.WARNING)
    return deepspeed
