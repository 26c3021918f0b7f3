"""Repair: train masked low-rank updates on a pruned model, and merge them without losing a zero."""

from ressa.repair.checkpoint import Checkpoints, remove_checkpoints
from ressa.repair.curve import RepairStep
from ressa.repair.distillation import Teacher, teacher_logits
from ressa.repair.loop import train
from ressa.repair.sparselora import Adapters, attach, merge

__all__ = [
    "Adapters",
    "Checkpoints",
    "RepairStep",
    "Teacher",
    "attach",
    "merge",
    "remove_checkpoints",
    "teacher_logits",
    "train",
]
