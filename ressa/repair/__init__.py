"""Repair: train a pruned model's layers behind their masks, and merge without losing a zero."""

from ressa.repair.adapted import AdaptedLinear, Adapters
from ressa.repair.checkpoint import Checkpoints, remove_checkpoints
from ressa.repair.curve import RepairStep
from ressa.repair.distillation import (
    AnyTeacher,
    FeatureTeacher,
    LiveTeacher,
    StoredTeacher,
    Teacher,
    teacher_parts,
)
from ressa.repair.loop import train
from ressa.repair.methods import REPAIR_METHODS, attach, merge, trained_layers

__all__ = [
    "REPAIR_METHODS",
    "AdaptedLinear",
    "Adapters",
    "AnyTeacher",
    "Checkpoints",
    "FeatureTeacher",
    "LiveTeacher",
    "RepairStep",
    "StoredTeacher",
    "Teacher",
    "attach",
    "merge",
    "remove_checkpoints",
    "teacher_parts",
    "train",
    "trained_layers",
]
