"""Planted files: what would run code when unpickled is never unpickled, wherever it lies."""

import io
import json
import pickle
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from ressa.errors import DamagedStage, RessaError
from ressa.prune.layers import PrunedLayers
from ressa.prune.packing import pack
from ressa.prune.statistics import Statistics
from ressa.records import Outcome
from ressa.repair.adapted import Adapters
from ressa.repair.checkpoint import VERSION, Checkpoints
from ressa.repair.distillation import Teacher
from ressa.stages import Stages
from ressa.store import Store, SweepStore, acquire, open_store, query
from ressa.store.parts import merged_name

RAN = "ran"


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> Any:
        return (Path.touch, (self._folder / RAN,))


def headed(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of that header, or one that says it is of another length."""
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def planted(folder: Path) -> dict[str, bytes]:
    """What a stranger may leave, by what it is."""
    array, archive = io.BytesIO(), io.BytesIO()
    np.save(array, np.array([Bomb(folder)], dtype=object), allow_pickle=True)
    torch.save({"logits": Bomb(folder)}, archive)
    layer = {"name": "a", "rows": 10**12, "columns": 10**12}
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return {
        "a pickle": pickle.dumps(Bomb(folder)),
        "an array of objects": array.getvalue(),
        "a pickle of torch": archive.getvalue(),
        "nothing": b"",
        "noise": bytes(range(256)),
        "a header longer than the file": headed(b"{}", length=2**63),
        "a header that is no JSON": headed(b"\x80\x04."),
        "a deep header": headed(b"[" * 200_000),
        "a type that there is not": headed(
            json.dumps({"x": {**tensor, "dtype": "OBJECT"}}).encode(), bytes(8)
        ),
        "a shape of more than there is": headed(
            json.dumps({"x": {**tensor, "shape": [2**40]}}).encode(), bytes(8)
        ),
        "offsets outside": headed(
            json.dumps({"x": {**tensor, "data_offsets": [0, 2**60]}}).encode(), bytes(8)
        ),
        "tensors of other names": safetensors.torch.save({"x": torch.zeros(2)}),
        "a note of another kind": pack({"x": torch.zeros(2)}, 7),
        "a layer of any size": pack({"mask/a": torch.zeros(2, dtype=torch.uint8)}, [layer]),
        "statistics without sums": pack({}, {"counts": {"a": [1, 1]}, "shares": [["a", "a"]]}),
        "JSON of another shape": b'[{"x": 1}]',
        "deep JSON": b"[" * 200_000,
        "ids that are no JSON": safetensors.torch.save(
            {"example_ids": torch.tensor([128, 4], dtype=torch.uint8), "logits": torch.zeros(1)}
        ),
    }


KINDS = tuple(planted(Path("/nowhere")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "read",
    [PrunedLayers.from_bytes, Statistics.from_bytes, Teacher.from_bytes, Outcome.from_json],
    ids=lambda read: read.__self__.__name__,
)
def test_a_planted_stage_is_refused_and_never_unpickled(
    store: Store, tmp_path: Path, kind: str, read: Callable[[bytes], object]
) -> None:
    store.stages.put("planted", "k", {"content": planted(tmp_path)[kind]})
    found = Stages(store).find("planted", "k")
    assert found is not None
    with pytest.raises(DamagedStage, match="not what ressa writes there"):
        read(found)
    assert not (tmp_path / RAN).exists()


@pytest.mark.parametrize("kind", KINDS)
def test_planted_adapters_and_checkpoints_are_refused_and_never_unpickled(
    store: Store, tmp_path: Path, kind: str
) -> None:
    content = planted(tmp_path)[kind]
    with suppress(RessaError):  # a file without tensors is as good as these adapters, of no layer
        Adapters({}, {}).load(content)
    store.stages.put("repair-checkpoint", "k-newest", {"training.json": content})
    header = {"version": VERSION, "mask_hash": "m", "recipe": "r", "curve": [], "updates": 0}
    header |= {"loss_scale": None, "micro_batch": 1}
    whole = safetensors.torch.save({"x": torch.zeros(1)})
    for files in (
        {"training.json": content, "training.safetensors": whole},
        {"training.json": json.dumps(header).encode(), "training.safetensors": content},
        {"training.safetensors": content},
    ):
        store.stages.put("repair-checkpoint", "k-00000001", files)
        found = Checkpoints(store.stages, "k", mask_hash="m").newest("r")
        assert found is None or set(found.moment.tensors) <= {
            "x",
            "mask/a",
            "example_ids",
            "logits",
        }
        store.stages.remove("repair-checkpoint", "k-00000001")
    assert not (tmp_path / RAN).exists()


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"\x80\x04.",
        b"[" * 200_000,
        b"[]",
        b'{"files": []}',
        b'{"files": {"content": 7}}',
        b'{"files": {"content": {"object": "x"}}}',
        b'{"files": {"content": {"object": "../../../../private", "size": 7, "sha256": ""}}}',
    ],
)
def test_a_planted_manifest_opens_nothing(store: Store, tmp_path: Path, manifest: bytes) -> None:
    (tmp_path / "private").write_bytes(b"private")
    store.objects.put("stages/planted/k/manifest.json", manifest)
    try:
        found = Stages(store).find("planted", "k")
    except RessaError:
        found = None
    assert found is None
    assert (tmp_path / "private").exists()


def test_planted_files_in_every_folder_of_a_sweep_are_named_and_never_unpickled(
    sweep: SweepStore, tmp_path: Path
) -> None:
    sweep.commit("trials", [{"number": 0, "state": "succeeded"}], trial="t000", epoch=1)
    names = ("t001-a0-e1-0123456789ab.parquet", merged_name(1, 1, "0" * 12), "x.npy", "x.pkl")
    for table in sweep.files:
        for number, content in enumerate(planted(tmp_path).values()):
            for name in names:
                path = f"{sweep.prefix}/{table}/{number}{name}"
                sweep.store.objects.put(path, content)
    sweep.store.objects.put(f"{sweep.prefix}/lease/00000001", pickle.dumps(Bomb(tmp_path)))
    reader = open_store(sweep.store.location).sweep(sweep.name)
    assert reader.read("trials")["trial"].to_pylist() == ["t000"]
    assert all(reader.read(table) is not None for table in sweep.files)
    assert len(reader.skipped) == len(sweep.files) * len(names) * len(KINDS)
    assert reader.status().done == 1
    assert query(reader.store, "SELECT count(*) AS n FROM attempts")["n"].tolist() == [1]
    with acquire(reader):
        pass
    assert not (tmp_path / RAN).exists()
