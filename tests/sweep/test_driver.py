"""What a driver looks at before its trials start, without a Ray."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ressa.errors import ClusterError
from ressa.spec import spec_from_mapping
from ressa.store import open_store
from ressa.sweep import driver, local_ray


def test_in_a_bucket_a_driver_looks_at_no_other_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path, create=True)
    sweep, *others = (store.create_sweep(name, "ressa: 1") for name in "abc")
    looked: list[str] = []
    monkeypatch.setattr(driver, "holder", lambda one: looked.append(one.name))
    driver._tidy(sweep)
    assert looked == [one.name for one in others]
    looked.clear()
    monkeypatch.setattr(store.objects, "folder", None)
    driver._tidy(sweep)
    assert not looked


def test_a_process_that_uses_a_ray_keeps_it_and_runs_no_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"ressa": 1, "model": "pocket-blip2", "store": str(tmp_path / "store")}
    content["space"] = {"vision_sparsity": 0.5, "language_sparsity": 0.5}
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    with pytest.raises(ClusterError, match=r"uses a Ray already.*ray\.shutdown\(\)"):
        driver.start(spec_from_mapping(content).spec, None)
    assert not (tmp_path / "store").exists()


def test_what_a_ray_is_told_by_the_environment_does_not_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    before = dict(os.environ)
    tokens = []
    for _ in range(2):
        with local_ray.environment_kept():
            local_ray.prepare()
            tokens.append(os.environ["RAY_AUTH_TOKEN"])
            assert "RAY_AUTH_MODE" not in os.environ
        assert dict(os.environ) == before
    assert tokens[0] == tokens[1], "Ray reads it once in a process"
