"""Names are known without importing what they stand for."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from ressa import registry as module
from ressa.catalog import METHODS, MODELS, TASKS
from ressa.errors import SpecError, UnknownNameError
from ressa.registry import Registry


@pytest.fixture
def shapes() -> Registry[type]:
    return Registry("shape", group="ressa.shapes", builtins={"fraction": "fractions:Fraction"})


def test_a_builtin_is_imported_when_it_is_asked_for(shapes):
    from fractions import Fraction

    assert shapes["fraction"] is Fraction
    assert "fraction" in shapes
    assert list(shapes) == ["fraction"]


def test_an_unknown_name_is_refused_with_the_nearest(shapes):
    with pytest.raises(UnknownNameError, match="unknown shape 'fractoin'"):
        shapes["fractoin"]


def test_a_registered_object_answers_to_its_name_and_a_name_is_taken_once(shapes):
    @shapes.register("mine")
    class Mine:
        pass

    assert shapes["mine"] is Mine
    with pytest.raises(SpecError, match="already registered"):
        shapes.register("fraction")(Mine)


def plugins(monkeypatch, *points: EntryPoint) -> None:
    monkeypatch.setattr(module, "entry_points", lambda group: list(points))


def test_an_installed_plugin_adds_its_name(shapes, monkeypatch):
    plugins(monkeypatch, EntryPoint("decimal", "decimal:Decimal", "ressa.shapes"))
    from decimal import Decimal

    assert list(shapes) == ["decimal", "fraction"]
    assert shapes["decimal"] is Decimal


def test_a_plugin_may_not_take_a_name_that_is_taken(shapes, monkeypatch):
    plugins(monkeypatch, EntryPoint("fraction", "decimal:Decimal", "ressa.shapes"))
    with pytest.raises(SpecError, match="offered twice"):
        list(shapes)


def test_the_catalog_names_what_a_sweep_may_use():
    assert {"random", "magnitude", "wanda"} <= set(METHODS)
    assert {"easy-vqa"} <= set(TASKS)
    assert {"pocket-blip2", "pocket-llava"} <= set(MODELS)
    for name in MODELS:
        assert MODELS[name].name == name


def test_names_and_specs_are_known_without_heavy_imports():
    code = (
        "import sys, ressa.catalog, ressa.spec; list(ressa.catalog.METHODS); "
        "print([m for m in ('torch', 'numpy', 'pandas', 'pyarrow', 'ray', 'optuna', 'duckdb')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
