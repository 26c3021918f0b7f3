"""A catalog model with a list of layers made by hand, and sweep files on the fly."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ressa.catalog import CatalogModel
from ressa.errors import SpecError
from ressa.sparsity import Inventory, LayerShape
from ressa.spec import LoadedSpec, load_spec

LEAST = "ressa: 1\nmodel: pocket-blip2\nspace: {vision_sparsity: 0.5, language_sparsity: 0.5}\n"


def tower(name: str, shapes: list[tuple[int, int]]) -> tuple[LayerShape, ...]:
    return tuple(
        LayerShape(name=f"{name}.{index}.weight", tower=name, block=index, rows=r, columns=c)
        for index, (r, c) in enumerate(shapes)
    )


@pytest.fixture
def inventory() -> Inventory:
    """Towers as large as pocket-blip2's: 147,456 and 196,608 prunable weights."""
    layers = tower("vision", [(192, 64), (64, 64), (256, 64), (64, 256)] * 3)
    return Inventory(
        layers=layers + tower("language", [(64, 64)] * 40 + [(128, 64)] * 4),
        parameters={"vision": 167_000, "connector": 105_000, "language": 200_000},
    )


@pytest.fixture(autouse=True)
def known_layers(monkeypatch: pytest.MonkeyPatch, inventory: Inventory) -> None:
    """The catalog knows these layers, whatever model is named."""
    monkeypatch.setattr(CatalogModel, "inventory", lambda self: inventory)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LoadedSpec]:
    """Writes text as sweep.yaml into a folder of its own and loads it."""
    monkeypatch.chdir(tmp_path)

    def load(text: str, *sets: str) -> LoadedSpec:
        Path("sweep.yaml").write_text(text, encoding="utf-8")
        return load_spec("sweep.yaml", sets)

    return load


@pytest.fixture
def faults(load: Callable[..., LoadedSpec]) -> Callable[..., list[str]]:
    """Returns the faults of a sweep file, each as a line of text."""

    def faults(text: str, *sets: str) -> list[str]:
        with pytest.raises(SpecError) as error:
            load(text, *sets)
        assert str(error.value) == "\n".join(error.value.faults)
        assert error.value.exit_code == 2
        return list(error.value.faults)

    return faults


@pytest.fixture
def least() -> str:
    """The shortest sweep file that runs."""
    return LEAST
