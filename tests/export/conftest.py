"""Exports that are written once for all tests, which spoil copies."""

import shutil
from pathlib import Path

import pytest

from ressa.spec import ModelRef
from tests.export.shop import export, pruned

BLIP2 = ModelRef(id="pocket-blip2")


@pytest.fixture(scope="session")
def merged_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in files of 500 KB, its vision tower 2:4."""
    target = tmp_path_factory.mktemp("merged") / "model"
    export(target, pruned(BLIP2), shard="500KB")
    return target


@pytest.fixture(scope="session")
def adapters_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Masks and adapters of the same model, in a folder."""
    target = tmp_path_factory.mktemp("adapters") / "model"
    export(target, pruned(BLIP2), form="adapters")
    return target


@pytest.fixture
def folder(merged_once: Path, tmp_path: Path) -> Path:
    """A copy of the merged model."""
    return Path(shutil.copytree(merged_once, tmp_path / "copy"))


@pytest.fixture
def small_folder(adapters_once: Path, tmp_path: Path) -> Path:
    """A copy of masks and adapters."""
    return Path(shutil.copytree(adapters_once, tmp_path / "adapters"))
