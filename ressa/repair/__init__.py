"""Repair: train a pruned model's layers behind their masks, and merge without losing a zero."""

from ressa.repair.adapted import AdaptedLinear, Adapters
from ressa.repair.distillation import LiveTeacher, Teacher, teacher_logits
from ressa.repair.loop import RepairStep, train
from ressa.repair.methods import REPAIR_METHODS, attach, merge

__all__ = [
    "REPAIR_METHODS",
    "AdaptedLinear",
    "Adapters",
    "LiveTeacher",
    "RepairStep",
    "Teacher",
    "attach",
    "merge",
    "teacher_logits",
    "train",
]
