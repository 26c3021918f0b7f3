"""Sweep files: YAML → validated, immutable spec; every fault with its line, all at once."""

from ressa.spec.check import Problem, check_inventory
from ressa.spec.points import Effective, Point, TowerTarget, apply_point, baseline, grid_points
from ressa.spec.resolve import (
    LoadedSpec,
    load_spec,
    spec_from_mapping,
    spec_from_yaml,
)
from ressa.spec.schema import (
    Calibration,
    DataRef,
    Distillation,
    EarlyStopping,
    Ecoflap,
    ModelRef,
    Objective,
    Owl,
    Prune,
    Rank,
    Repair,
    Resources,
    Search,
    SweepSpec,
    TowerPrune,
    endings,
)
from ressa.spec.space import Choices, Dimension, Range

__all__ = [
    "Calibration",
    "Choices",
    "DataRef",
    "Dimension",
    "Distillation",
    "EarlyStopping",
    "Ecoflap",
    "Effective",
    "LoadedSpec",
    "ModelRef",
    "Objective",
    "Owl",
    "Point",
    "Problem",
    "Prune",
    "Range",
    "Rank",
    "Repair",
    "Resources",
    "Search",
    "SweepSpec",
    "TowerPrune",
    "TowerTarget",
    "apply_point",
    "baseline",
    "check_inventory",
    "endings",
    "grid_points",
    "load_spec",
    "spec_from_mapping",
    "spec_from_yaml",
]
