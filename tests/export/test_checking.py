"""An export is what its certificate says, or each fault is named."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ressa.catalog import MODELS
from ressa.errors import VerificationError
from ressa.export import certificate, checking, load, verify
from ressa.models import load_vlm
from ressa.prune import mask_hash
from ressa.sparsity import TOWERS
from tests.export.conftest import BLIP2
from tests.export.shop import change, logits, pruned, reseal

Q_PROJ = "language_model.encoder.block.0.layer.0.SelfAttention.q"


def a_file_with(folder: Path, name: str) -> tuple[Path, str]:
    """The file that holds a layer's weight, and the tensor's name there."""
    for path in sorted(folder.glob("model*.safetensors")):
        for tensor, _ in certificate.tensors_of(path):
            if tensor.endswith(f"{name}.weight"):
                return path, tensor
    raise AssertionError(f"no {name}")


def place_of(folder: Path, *, pruned: bool) -> tuple[int, int]:
    """A place of the layer that is pruned, or that stays."""
    path, name = a_file_with(folder, Q_PROJ)
    return tuple(((load_file(path)[name] == 0) == pruned).nonzero()[0].tolist())


def set_weight(folder: Path, *, pruned: bool, value: float) -> None:
    path, name = a_file_with(folder, Q_PROJ)
    at = place_of(folder, pruned=pruned)
    change(path, lambda tensors: tensors[name].__setitem__(at, value))


def one_weight(folder: Path) -> None:
    set_weight(folder, pruned=False, value=0.125)


def one_pruned_weight(folder: Path) -> None:
    set_weight(folder, pruned=True, value=1e-30)


def a_negative_zero(folder: Path) -> None:
    set_weight(folder, pruned=True, value=-0.0)


def one_mask_bit(folder: Path) -> None:
    def flip(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q_PROJ][3] ^= 1

    change(folder / "masks.safetensors", flip)


def two_shards_swapped(folder: Path) -> None:
    one, other = sorted(folder.glob("model-*.safetensors"))[:2]
    one.rename(folder / "x")
    other.rename(one)
    (folder / "x").rename(other)


def another_tokenizer(folder: Path) -> None:
    shutil.copy(MODELS["pocket-llava"].folder / "tokenizer.json", folder)


def a_truncated_shard(folder: Path) -> None:
    path = sorted(folder.glob("model-*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-100])


def another_base_model(folder: Path) -> None:
    """The dense model's own weights in place of those that were exported."""
    dense = load_vlm(BLIP2).model.state_dict()
    for path in folder.glob("model-*.safetensors"):
        change(path, lambda tensors: tensors.update({n: dense[n].clone() for n in tensors}))


def an_extra_tensor(folder: Path) -> None:
    path = sorted(folder.glob("model-*.safetensors"))[0]
    change(path, lambda tensors: tensors.update(extra=torch.zeros(1)))


def a_missing_tensor(folder: Path) -> None:
    path, name = a_file_with(folder, Q_PROJ)
    change(path, lambda tensors: tensors.__delitem__(name))


def a_missing_file(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def an_extra_file(folder: Path) -> None:
    (folder / "modeling.py").write_text("")


def an_edited_certificate(folder: Path) -> None:
    said = certificate.read(folder)
    said["scores"] = [{"metric": "accuracy", "value": 1.0}]
    certificate.write(folder, said)


def a_certificate_that_prunes_more(folder: Path) -> None:
    said = certificate.read(folder)
    said["towers"]["vision"]["pruned"] += 1
    certificate.write(folder, said)


def a_link_to_nothing(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/nowhere/config.json")


def a_pipe_for_masks(folder: Path) -> None:
    (folder / "masks.safetensors").unlink()
    os.mkfifo(folder / "masks.safetensors")


def a_truncated_index(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text()[:500])


def a_config_of_another_kind(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"text_config": {"d_model": "x"}}))


def masks_with_a_deep_header(folder: Path) -> None:
    header = b"[" * 100_000
    (folder / "masks.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def said_of(folder: Path, **options: str) -> str:
    with pytest.raises(VerificationError) as error:
        verify(folder, **options)
    return str(error.value)


Plant = Callable[[Path], None]

FAULTS: list[tuple[Plant, str]] = [
    (one_weight, f"{Q_PROJ}: its weights are not those that were exported"),
    (one_pruned_weight, f"{Q_PROJ}: 1 pruned weights are not exactly zero, 0 of them -0.0"),
    (a_negative_zero, f"{Q_PROJ}: 1 pruned weights are not exactly zero, 1 of them -0.0"),
    (one_mask_bit, f"{Q_PROJ}: its mask is not the one that it was pruned by"),
    (two_shards_swapped, "model-00001-of-"),
    (another_tokenizer, "tokenizer.json"),
    (a_truncated_shard, "cannot be read"),
    (another_base_model, "pruned weights are not exactly zero"),
    (an_extra_tensor, "has a tensor too many: extra"),
    (a_missing_tensor, "lacks a tensor: "),
    (a_missing_file, "a file is missing: chat_template.jinja"),
    (an_extra_file, "a file is too many: modeling.py"),
    (an_edited_certificate, "certificate.json was edited"),
    (a_certificate_that_prunes_more, "vision: certificate.json says pruned"),
    (a_link_to_nothing, "config.json is no file, or a link to none"),
    (a_pipe_for_masks, "masks.safetensors is no file"),
    (a_truncated_index, "model.safetensors.index.json has 500 bytes"),
    (a_config_of_another_kind, "transformers cannot load it"),
    (masks_with_a_deep_header, "masks.safetensors cannot be read"),
]


def test_what_was_written_is_what_its_certificate_says(folder: Path) -> None:
    said = verify(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert said["towers"]["vision"]["patterns"] == ["2:4"]
    assert {one["stray"] for one in said["matrices"]} == {0}
    assert {one.get("pattern_broken", 0) for one in said["matrices"]} == {0}
    assert all(one["zeros_before_merge"] == one["pruned"] for one in said["matrices"])
    # What a download from the hub, a clone and a file manager leave there is no fault.
    for name in (".cache", ".git"):
        (folder / name).mkdir()
        (folder / name / "x").touch()
    (folder / ".DS_Store").touch()
    assert verify(folder) == said


@pytest.mark.parametrize(("plant", "named"), FAULTS, ids=lambda one: getattr(one, "__name__", ""))
def test_a_planted_fault_is_named(folder: Path, plant: Plant, named: str) -> None:
    plant(folder)
    assert named in said_of(folder)


FORGED = [
    fault
    for fault in FAULTS  # nothing in the folder contradicts the others once hashes are made anew
    if fault[0]
    in (
        *(one_weight, one_pruned_weight, a_negative_zero, one_mask_bit, another_base_model),
        a_certificate_that_prunes_more,
    )
]


@pytest.mark.parametrize(("plant", "named"), FORGED, ids=lambda one: getattr(one, "__name__", ""))
def test_a_fault_is_named_whose_planter_made_the_hashes_of_files_anew(
    folder: Path, plant: Plant, named: str
) -> None:
    plant(folder)
    reseal(folder)
    found = said_of(folder)
    assert named in found
    assert "is not the file that was exported" not in found


def test_a_file_that_may_not_be_read_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hash_of = certificate.file_hash

    def denied(path: Path) -> str:
        if path.name == "config.json":
            raise PermissionError(13, "Permission denied", str(path))
        return hash_of(path)

    monkeypatch.setattr(certificate, "file_hash", denied)
    assert said_of(folder).endswith("1 fault\n- config.json cannot be read: Permission denied")


def weights_that_are_not_finite(folder: Path) -> None:
    set_weight(folder, pruned=False, value=math.nan)
    reseal(folder)
    path, name = a_file_with(folder, Q_PROJ)
    certified(folder, weights=certificate.tensor_hash(load_file(path)[name]))


def certified(folder: Path, **changes: Any) -> None:
    """Says something else of a matrix, and seals it."""
    said = certificate.read(folder)
    next(one for one in said["matrices"] if one["name"] == Q_PROJ).update(changes)
    sealed(folder, said)


def sealed(folder: Path, said: dict[str, Any]) -> None:
    text = json.dumps(said | {"digest": certificate.digest(said)})  # NaN too
    (folder / certificate.NAME).write_text(text)


def a_layer_left_out(folder: Path) -> None:
    said = certificate.read(folder)
    kept = [one for one in said["matrices"] if one["name"] != Q_PROJ]
    masks, _ = checking._read_masks(folder, kept)
    of_kept = {"matrices": kept, "mask_hash": mask_hash(masks)}
    totals = {tower: certificate.totals(kept, tower) for tower in TOWERS}
    sealed(folder, said | of_kept | {"towers": totals})


def a_layer_counted_twice(folder: Path) -> None:
    said = certificate.read(folder)
    twice = [*said["matrices"], said["matrices"][-1]]
    totals = {tower: certificate.totals(twice, tower) for tower in TOWERS}
    sealed(folder, said | {"matrices": twice, "towers": totals})


def of_a_tower(**claims: Any) -> Plant:
    def plant(folder: Path) -> None:
        said = certificate.read(folder)
        said["towers"]["language"] |= claims
        sealed(folder, said)

    return plant


def of_a_matrix(**claims: Any) -> Plant:
    return lambda folder: certified(folder, **claims)


@pytest.mark.parametrize(
    ("plant", "named"),
    [
        (weights_that_are_not_finite, f"{Q_PROJ}: not all of its weights are finite"),
        (a_layer_left_out, f"certificate.json leaves out a layer: {Q_PROJ} of language"),
        (a_layer_counted_twice, "counts a layer that is another tower's, or twice: "),
        (of_a_tower(sparsity=0.9), "language: certificate.json says sparsity 0.9, not 0.5"),
        (of_a_tower(weights=10**9), "language: certificate.json says weights 1000000000"),
        (of_a_tower(patterns=["2:4"]), "language: certificate.json says patterns ['2:4'], not []"),
        (of_a_matrix(norm=math.nan), f"{Q_PROJ}: its weights' norm is "),
        (of_a_matrix(norm=10**400), "lacks what a certificate says"),
        (of_a_matrix(pattern="9:4"), "lacks what a certificate says"),
        (of_a_matrix(pattern="1:7"), "lacks what a certificate says"),
    ],
)
def test_a_forged_certificate_is_counted_again(folder: Path, plant: Plant, named: str) -> None:
    plant(folder)
    assert named in said_of(folder)


def test_a_folder_without_a_certificate_or_with_a_broken_one_is_refused(folder: Path) -> None:
    path = folder / certificate.NAME
    for text, named in (
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"certificate": 2}', "of version 2"),
        ('{"certificate": 1}', "lacks what a certificate says"),
    ):
        path.write_text(text)
        assert named in said_of(folder)
    path.unlink()
    assert "has no certificate.json" in said_of(folder)


@pytest.mark.parametrize("key", ["files", "tensors", "matrices", "towers", "model"])
def test_a_certificate_that_lacks_a_part_is_refused(folder: Path, key: str) -> None:
    said = certificate.read(folder)
    for value in (None, [1], {"a": 1}):
        certificate.write(folder, {**said, key: value})
        assert "certificate" in said_of(folder)


def test_adapters_are_merged_again_and_counted(small_folder: Path, folder: Path) -> None:
    said = verify(small_folder)
    assert sorted(said["files"]) == ["README.md", "adapters.safetensors", "masks.safetensors"]
    assert sum(file["bytes"] for file in said["files"].values()) < 200_000
    # Both formats are one model.
    assert torch.equal(logits(load(small_folder)), logits(load(folder)))


def another_base(folder: Path) -> Path:
    base = folder.parent / "base"
    shutil.copytree(MODELS["pocket-blip2"].folder, base)
    change(base / "model.safetensors", lambda tensors: next(iter(tensors.values())).add_(1))
    return base


def test_faults_of_adapters_are_named(small_folder: Path) -> None:
    base = another_base(small_folder)
    found = said_of(small_folder, base=str(base))
    assert (
        f"the dense model {base} is another one: 1 file differs, such as model.safetensors" in found
    )
    for nowhere in ("nobody/nothing", "/no/such/folder", "http://x/y/z"):
        named = f"the dense model {nowhere} is not here. Name its folder: --base FOLDER"
        assert named in said_of(small_folder, base=nowhere)
    copy = shutil.copytree(MODELS["pocket-blip2"].folder, small_folder.parent / "copy of base")
    assert verify(small_folder, base=str(copy))

    def grow(tensors: dict[str, torch.Tensor]) -> None:
        next(tensor for name, tensor in tensors.items() if Q_PROJ in name).mul_(3)

    change(small_folder / "adapters.safetensors", grow)
    assert "adapters.safetensors is not the file" in said_of(small_folder)
    reseal(small_folder)
    assert f"{Q_PROJ}: its weights' norm" in said_of(small_folder)
    (small_folder / "adapters.safetensors").unlink()
    assert "a file is missing: adapters.safetensors" in said_of(small_folder)


def test_a_dense_model_of_the_hub_is_read_from_its_copy_here_and_nobody_is_asked(
    small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the hub is asked")

    copy = MODELS["pocket-blip2"].folder / "config.json"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(copy))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", asked)
    said = certificate.read(small_folder)
    said["model"]["id"] = "someone/something"
    sealed(small_folder, said)
    assert verify(small_folder)["model"]["id"] == "someone/something"


def test_a_mask_bit_of_adapters_is_named(small_folder: Path) -> None:
    one_mask_bit(small_folder)
    reseal(small_folder)
    assert f"{Q_PROJ}: its mask is not the one" in said_of(small_folder)


def test_what_is_exported_is_what_was_merged(folder: Path) -> None:
    unmerged = pruned(BLIP2)
    before = logits(unmerged.vlm)
    after = logits(load_vlm(str(folder)))
    assert float((before - after).abs().max()) < 1e-4
    said = json.loads((folder / "certificate.json").read_text())
    gaps = [one["merge"] for one in said["matrices"]] + list(said["connector"].values())
    assert all(0 <= gap["gap"] < 1e-5 * gap["scale"] + 1e-6 for gap in gaps)


def test_a_certificate_alone_lets_no_code_of_the_model_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESSA_TRUST_REMOTE_CODE", "1")  # for a model of the user's own
    said = certificate.read(folder)
    said["model"]["trust_remote_code"] = True
    asked = [checking._own_model(folder, said, trust) for trust in (False, True)]
    asked += [checking._base_model(said, None, trust) for trust in (False, True)]
    assert [model.trust_remote_code for model in asked] == [False, True, False, True]
