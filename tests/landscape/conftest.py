"""A sweep as the quickstart leaves it.

Scores before repair are those of `pocket-blip2` under Wanda (the spike's 7×7 grid on 1,000
questions), interpolated; scores after repair follow its repaired cells.
"""

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ressa.spec import spec_from_mapping
from ressa.store import Store, SweepStore, open_store

VISION, LANGUAGE, WHOLE = 147_456, 196_608, 471_000
SPARSITIES = [0.0, 0.3, 0.5, 0.6, 0.7, 0.8]
# rows: vision sparsity; columns: language sparsity
PRUNED = [
    [98.6, 98.4, 95.4, 86.9, 68.5, 0.7],
    [98.6, 98.5, 95.1, 86.0, 68.9, 0.6],
    [96.9, 96.1, 94.0, 85.8, 68.3, 0.6],
    [91.7, 91.3, 89.1, 83.2, 68.7, 0.4],
    [83.0, 83.1, 80.7, 77.8, 66.9, 0.3],
    [73.0, 73.0, 71.5, 74.0, 63.7, 0.1],
]
REPAIRED = [
    [98.8, 98.8, 98.6, 98.3, 97.6, 85.2],
    [98.8, 98.7, 98.5, 98.2, 97.5, 84.8],
    [98.6, 98.5, 98.3, 98.0, 97.4, 84.0],
    [98.0, 97.9, 97.6, 96.6, 96.3, 83.6],
    [96.4, 96.2, 95.4, 95.5, 95.9, 82.9],
    [93.2, 92.8, 91.0, 89.1, 87.0, 81.8],
]
COST_2_4 = {"vision": 5.0, "language": 13.0}


def _at(grid: list[list[float]], vision: float, language: float) -> float:
    rows = [np.interp(min(language, 0.8), SPARSITIES, row) for row in grid]
    value = float(np.interp(min(vision, 0.8), SPARSITIES, rows))
    return value * max(0.0, 1 - 4 * max(0.0, language - 0.8))


def begin(store: Store, name: str, **fields: Any) -> SweepStore:
    """Creates a sweep over both sparsities whose file has some fields."""
    axis = {"low": 0.1, "high": 0.9}
    space = {"vision_sparsity": axis, "language_sparsity": axis}
    content = {"ressa": 1, "name": name, "model": "pocket-blip2", "space": space, **fields}
    return store.create_sweep(name, spec_from_mapping(content).spec.to_yaml())


def commit(
    sweep: SweepStore,
    trial: str,
    vision: str,
    language: str,
    *,
    budget: float | None = None,
    repair: bool = True,
    point: dict[str, object] | None = None,
    shared: float | None = None,
) -> None:
    """Commits one finished trial of the sample; `shared` is what both towers were to lose."""
    sparsity = {"vision": _sparsity(vision), "language": _sparsity(language)}
    zeros = {
        "vision": round(sparsity["vision"] * VISION),
        "language": round(sparsity["language"] * LANGUAGE),
    }
    places = float(sparsity["vision"]), float(sparsity["language"])
    extra = sum(
        COST_2_4[tower]
        for tower, text in (("vision", vision), ("language", language))
        if ":" in text
    )
    pruned = max(0.0, _at(PRUNED, *places) - extra) / 100
    repaired = (_at(REPAIRED, *places) - extra / 20) / 100 if repair else None
    number = int(trial[1:]) if trial[0] == "t" else None
    row = {
        "role": "baseline" if number is None else "search",
        "number": number,
        "state": "succeeded",
        "model": "pocket-blip2",
        "vision_target": vision,
        "language_target": language,
        "vision_sparsity": places[0],
        "language_sparsity": places[1],
        "budget": budget,
        "vision_zeros": zeros["vision"],
        "language_zeros": zeros["language"],
        "vision_prunable": VISION,
        "language_prunable": LANGUAGE,
        "sparsity": sum(zeros.values()) / (VISION + LANGUAGE),
        "whole_parameters": WHOLE,
        "whole_sparsity": sum(zeros.values()) / WHOLE,
        "vision_method": "wanda",
        "language_method": "wanda",
        "vision_group": "row",
        "language_group": "row",
        "metric": "easy-vqa.balanced_accuracy",
        "items": 2000,
        "score": pruned if repaired is None else repaired,
        "score_pruned": pruned,
        "score_repaired": repaired,
        "score_pruned_se": 0.011,
        "score_repaired_se": 0.007 if repair else None,
        "blank_pruned": 0.38,
        "blank_repaired": 0.39 if repair else None,
        "floor_majority": 0.41,
        "floor_dense_blank": 0.385,
        "total_seconds": 14.2,
        "point": point or {"vision_sparsity": vision},
    }
    if shared is not None:
        row |= {"budget": shared}
        for tower in ("vision", "language"):
            row |= {f"{tower}_target": None, f"{tower}_sparsity": None, f"{tower}_group": "all"}
    sweep.commit("trials", [row], trial=trial, epoch=1)


def _sparsity(text: str) -> Fraction:
    if ":" in text:
        kept, of = text.split(":")
        return 1 - Fraction(int(kept), int(of))
    return Fraction(text)


@pytest.fixture
def empty_sweep(tmp_path: Path) -> SweepStore:
    """A sweep without rows."""
    return open_store(tmp_path / "results", create=True).create_sweep("empty", "name: empty\n")


@pytest.fixture
def sweep(tmp_path: Path) -> SweepStore:
    """Three budgets, each with the language model solved, and both baselines."""
    return quickstart(tmp_path)


def quickstart(folder: Path) -> SweepStore:
    """Makes `sweep` in a folder."""
    made = begin(open_store(folder / "results", create=True), "quickstart")
    commit(made, "dense", "0", "0", repair=False)
    commit(made, "dense-repaired", "0", "0")
    number = itertools.count()
    for budget in ("0.5", "0.6", "0.7"):
        for vision in ("0.3", "0.5", "0.6", "0.7", "0.8", "2:4"):
            total = Fraction(budget) * (VISION + LANGUAGE)
            language = round(total - _sparsity(vision) * VISION)
            if language <= LANGUAGE:
                text = f"{language}/{LANGUAGE}"
                commit(made, f"t{next(number):03d}", vision, text, budget=float(budget))
    return made


@pytest.fixture
def grid_sweep(tmp_path: Path) -> SweepStore:
    """A grid over both towers with 2:4, without repair and without baselines."""
    made = open_store(tmp_path / "results", create=True).create_sweep("grid", "")
    for at, (vision, language) in enumerate(itertools.product(("0", "0.5", "2:4"), repeat=2)):
        commit(made, f"t{at:03d}", vision, language, repair=False)
    return made
