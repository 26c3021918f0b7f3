"""Checkpoints of a repair: what a killed one goes on from, at any number of workers and ZeRO stage.

A checkpoint holds what training has moved, whole, in fp32: the trained parameters and AdamW's two
moments of each; and in JSON the step, the curve up to it, the micro-batch, the mask's hash and the
recipe's. The data's order and the random numbers of a step follow from the seed and the step, so
the step is their position. Nothing of the frozen model is in it, and nothing is pickled.

It takes 12 bytes a trained weight: of a low-rank method a few per cent of the model. Of masked
fine-tuning, which trains every kept weight and leaves the pruned ones out, that is (1 − sparsity)
times three of its layers' fp32 bytes: 1.5 times at 50 %.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import safetensors
import safetensors.torch

from ressa.records import Example, content_key
from ressa.repair.curve import RepairStep
from ressa.repair.engine import Moment
from ressa.spec import Repair
from ressa.store import StageStore
from ressa.workers import agree, rank_and_world_size

log = logging.getLogger(__name__)

VERSION = 1
KEPT = 2
"""So that one which turns out to be damaged has another before it."""

_STAGE = "repair-checkpoint"
_CONFIG = "repair-deepspeed"
_HOW = frozenset(
    {
        "checkpoint_steps",
        "deepspeed",
        "dtype",
        "gradient_checkpointing",
        "micro_batch",
        "offload",
        "zero_stage",
    }
)
"""Fields of `repair` that say how a step is computed, not which one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A repair between two steps."""

    curve: tuple[RepairStep, ...]
    """All steps that are done."""
    micro_batch: int
    moment: Moment

    @property
    def step(self) -> int:
        """How many steps are done."""
        return len(self.curve)


def recipe_hash(repair: Repair, model: str, examples: Sequence[Example], seed: int) -> str:
    """Hashes all that decides which steps a repair takes, up to rounding."""
    how = repair.model_dump(mode="json", exclude=set(_HOW))
    return content_key("repair recipe", how, model, [example.id for example in examples], seed)


class Checkpoints:
    """The checkpoints of one trial's repair, in the store: `stages/repair-checkpoint/<trial>-…`.

    Every worker calls these in step; rank 0 reads and writes.

    Args:
        trial: the trial's key.
        mask_hash: of the keep masks that the repair began with.
        earlier: keys that the trial had with another number of workers or micro-batch; their
            checkpoints are gone on from as well.
    """

    def __init__(
        self, stages: StageStore, trial: str, *, mask_hash: str, earlier: Sequence[str] = ()
    ) -> None:
        self._stages, self._trial, self._mask_hash = stages, trial, mask_hash
        self._trials = (trial, *earlier)

    def note_config(self, config: Mapping[str, Any]) -> None:
        """Leaves what DeepSpeed was told, for a user to read."""
        if rank_and_world_size()[0] == 0:
            text = json.dumps(config, indent=2, sort_keys=True) + "\n"
            self._stages.put(_CONFIG, self._trial, {"deepspeed.json": text.encode()})

    def save(self, checkpoint: Checkpoint, recipe: str) -> None:
        """Stores a checkpoint, all of it or nothing, and drops those that are no longer needed."""
        if rank_and_world_size()[0] != 0:
            return
        moment = checkpoint.moment
        header = {
            "version": VERSION,
            "recipe": recipe,
            "mask_hash": self._mask_hash,
            "updates": moment.updates,
            "loss_scale": moment.loss_scale,
            "micro_batch": checkpoint.micro_batch,
            "curve": [asdict(step) for step in checkpoint.curve],
        }
        files = {
            "training.safetensors": safetensors.torch.save(dict(moment.tensors)),
            "training.json": json.dumps(header).encode(),
        }
        self._stages.put(_STAGE, _key(self._trial, checkpoint.step), files)
        for old in _steps(self._stages, self._trial)[:-KEPT]:
            self._stages.remove(_STAGE, _key(self._trial, old))

    def newest(self, recipe: str) -> Checkpoint | None:
        """Returns the newest sound checkpoint of this mask and recipe; names those it refuses."""
        return agree(self._newest(recipe) if rank_and_world_size()[0] == 0 else None)

    def _newest(self, recipe: str) -> Checkpoint | None:
        found = [(step, key) for key in self._trials for step in _steps(self._stages, key)]
        # Of equals the trial's own comes first.
        for step, trial in sorted(found, key=lambda one: one[0], reverse=True):
            key = _key(trial, step)
            try:
                checkpoint = self._read(key, recipe)
            except _Refused as reason:
                log.warning(
                    "trial %s: the repair checkpoint of step %d is refused: %s",
                    self._trial[:8],
                    step,
                    reason,
                )
                # It is of no use to this trial, and would keep a sound one from its place.
                self._stages.remove(_STAGE, key)
            else:
                return checkpoint
        return None

    def _read(self, key: str, recipe: str) -> Checkpoint:
        files = self._stages.get(_STAGE, key)
        if files is None:
            raise _Refused("it is truncated or damaged")
        try:
            header = json.loads(files["training.json"])
            found = {name: header[name] for name in ("version", "mask_hash", "recipe")}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _Refused("it is truncated or damaged") from error
        wanted = {"version": VERSION, "mask_hash": self._mask_hash, "recipe": recipe}
        names = {"version": "version", "mask_hash": "mask", "recipe": "recipe"}
        for name, value in wanted.items():
            if found[name] != value:
                raise _Refused(f"it is of another {names[name]} ({found[name]}, not {value})")
        try:
            curve = tuple(RepairStep(**row) for row in header["curve"])
            moment = Moment(
                tensors=safetensors.torch.load(files["training.safetensors"]),
                updates=header["updates"],
                loss_scale=header["loss_scale"],
            )
            return Checkpoint(curve=curve, micro_batch=header["micro_batch"], moment=moment)
        except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise _Refused("it is truncated or damaged") from error


def remove_checkpoints(stages: StageStore, *trials: str) -> None:
    """Removes the checkpoints under a trial's keys: its outcome is stored, nobody needs them."""
    if rank_and_world_size()[0] == 0:
        for trial in trials:
            for step in _steps(stages, trial):
                stages.remove(_STAGE, _key(trial, step))


def _steps(stages: StageStore, trial: str) -> list[int]:
    """After which steps a trial left, or began to leave, a checkpoint; sorted."""
    mark = f"{trial}-"
    found = (key.removeprefix(mark) for key in stages.keys(_STAGE) if key.startswith(mark))
    return [int(step) for step in found if step.isdecimal() and len(step) == 8]


def _key(trial: str, step: int) -> str:
    return f"{trial}-{step:08d}"


class _Refused(Exception):
    """Why a checkpoint is not gone on from."""
