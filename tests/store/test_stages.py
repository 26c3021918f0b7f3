"""Stages exist whole or not at all, and the first one counts."""

from pathlib import Path

import pytest

from ressa.errors import DamagedStage
from ressa.store import Store


def test_a_stage_is_read_as_it_was_written(store: Store) -> None:
    assert store.stages.get("calibration", "k") is None
    assert store.stages.put("calibration", "k", {"norms.safetensors": b"\0" * 9})
    assert store.stages.get("calibration", "k") == {"norms.safetensors": b"\0" * 9}


def test_the_first_commit_of_a_stage_wins(store: Store) -> None:
    assert store.stages.put("teacher", "k", {"logits": b"first"})
    assert not store.stages.put("teacher", "k", {"logits": b"second"})
    assert store.stages.get("teacher", "k") == {"logits": b"first"}


def test_a_stage_without_a_manifest_does_not_exist(store: Store) -> None:
    store.stages.put("teacher", "k", {"logits": b"content"})
    Path(store.location, "stages/teacher/k/manifest.json").unlink()
    assert store.stages.get("teacher", "k") is None
    assert store.stages.put("teacher", "k", {"logits": b"content"})


@pytest.mark.parametrize("damage", ["shortened", "changed", "gone", "manifest"])
def test_a_damaged_stage_is_made_again(store: Store, damage: str) -> None:
    store.stages.put("mask", "k", {"masks": b"content"})
    folder = Path(store.location, "stages/mask/k")
    (file,) = folder.glob("*-masks")
    match damage:
        case "shortened":
            file.write_bytes(b"cont")
        case "changed":
            file.write_bytes(b"CONTENT")
        case "gone":
            file.unlink()
        case "manifest":
            (folder / "manifest.json").write_text('{"files"')
    assert store.stages.get("mask", "k") is None
    assert store.stages.put("mask", "k", {"masks": b"content"})
    assert store.stages.get("mask", "k") == {"masks": b"content"}


def test_files_are_written_and_read_one_by_one(store: Store) -> None:
    writer = store.stages.writer("mask", "k")
    writer.add("a", b"first")
    assert store.stages.open("mask", "k") is None
    writer.add("b", b"second")
    assert writer.finish()
    files = store.stages.open("mask", "k")
    assert files is not None
    assert dict(files) == {"a": b"first", "b": b"second"}


def test_a_file_changed_after_the_stage_was_opened_is_noticed_when_read(store: Store) -> None:
    store.stages.put("mask", "k", {"a": b"content"})
    files = store.stages.open("mask", "k")
    assert files is not None
    (file,) = Path(store.location, "stages/mask/k").glob("*-a")
    file.write_bytes(b"CONTENT")
    with pytest.raises(DamagedStage, match="mask k: a is damaged"):
        files["a"]
    assert store.stages.open("mask", "k") is None
