"""Exports of all kinds of model, as plain transformers reads them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.zoo.configs import small_config
from ressa.catalog import MODELS
from ressa.errors import SpecError, VerificationError
from ressa.export import load, verify
from ressa.models import load_vlm
from ressa.spec import ModelRef
from tests.export import shop
from tests.export.conftest import BLIP2
from tests.export.shop import REPAIR, export, logits, pruned, weights

# Asks a model in a folder something, in a process where there is no ressa.
_ALONE = """
import sys
sys.modules["ressa"] = None
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, out = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True).eval()
processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
asked = processor(images=Image.new("RGB", (64, 64), "red"), text="what color is this",
                  return_tensors="pt")
with torch.no_grad():
    start = torch.tensor([[model.config.text_config.decoder_start_token_id]])
    save_file({"logits": model(**asked, decoder_input_ids=start).logits}, out)
"""


def asked_alone(folder: Path, out: Path) -> torch.Tensor:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-I", "-c", _ALONE, str(folder), str(out)],
        check=True,
        env=environment,
        cwd=out.parent,
    )
    return load_file(out)["logits"]


def test_plain_transformers_loads_it_without_ressa_and_answers_as_the_merged_model(
    tmp_path: Path,
) -> None:
    unmerged = pruned(BLIP2)
    export(tmp_path / "model", unmerged)
    model, processor = unmerged.vlm.model, unmerged.vlm.processor
    asked = processor(
        images=Image.new("RGB", (64, 64), "red"), text="what color is this", return_tensors="pt"
    )
    start = torch.tensor([[model.config.text_config.decoder_start_token_id]])
    with torch.no_grad():
        expected = model(**asked, decoder_input_ids=start).logits
    assert torch.equal(asked_alone(tmp_path / "model", tmp_path / "answer"), expected)


def small_model(kind: str, folder: Path, dtype: str) -> ModelRef:
    """Saves a small random model of a type, with a processor that fits its files if not itself."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(small_config(kind))
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size="100KB")
    AutoProcessor.from_pretrained(MODELS["pocket-blip2"].folder).save_pretrained(folder)
    return ModelRef(id=str(folder), dtype=dtype)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("blip-2", "bfloat16"),  # its head is its embeddings
        ("blip-2:gpt2", "float32"),  # matrices lie transposed
        ("llama4", "float32"),  # and experts fused
        ("qwen3_vl_moe", "bfloat16"),
    ],
)
def test_a_model_of_the_kind_is_exported_and_verified(
    kind: str, dtype: str, tmp_path: Path
) -> None:
    model = small_model(kind, tmp_path / "dense", dtype)
    unmerged = pruned(model, repair=REPAIR.model_copy(update={"train": ("vision", "language")}))
    said = export(tmp_path / "merged", unmerged, shard="100KB")
    assert verify(tmp_path / "merged") == said
    files = list((tmp_path / "merged").glob("model-*.safetensors"))
    assert len(files) > 1
    assert {one["dtype"] for one in said["matrices"]} == {dtype}
    assert said["towers"]["language"]["zeros"] >= said["towers"]["language"]["pruned"] > 0
    stored, dense = weights(tmp_path / "merged"), weights(tmp_path / "dense")
    assert stored.keys() == dense.keys()
    assert {tensor.dtype for tensor in stored.values()} == {getattr(torch, dtype)}
    if kind == "blip-2":
        assert "language_model.lm_head.weight" not in stored
    small = export(tmp_path / "adapters", pruned(model, repair=unmerged.repair), form="adapters")
    assert verify(tmp_path / "adapters") == small
    one, other = load(tmp_path / "merged"), load(tmp_path / "adapters")
    for name, parameter in one.model.state_dict().items():
        assert torch.equal(parameter, other.model.state_dict()[name]), name


def test_what_loses_every_weight_or_none_is_exported_too(tmp_path: Path) -> None:
    for target, name in (("1", "all"), ("0", "none")):
        said = export(tmp_path / name, pruned(BLIP2, vision=target, repair=None))
        assert said["towers"]["vision"]["sparsity"] == float(target)
        assert said["merge_gap"] is None
        assert verify(tmp_path / name) == said
    untouched, dense = weights(tmp_path / "none"), weights(MODELS["pocket-blip2"].folder)
    assert all(torch.equal(untouched[name], dense[name]) for name in dense if "vision" in name)


def test_methods_that_train_the_weights_have_no_adapters_to_write(tmp_path: Path) -> None:
    masked = REPAIR.model_copy(update={"method": "masked_finetune"})
    with pytest.raises(SpecError, match="masked_finetune trains the weights themselves"):
        export(tmp_path / "model", pruned(BLIP2, repair=masked), form="adapters")
    assert not (tmp_path / "model").exists()
    assert export(tmp_path / "model", pruned(BLIP2, repair=masked))


def test_weights_trained_in_single_precision_are_exported_in_half(tmp_path: Path) -> None:
    model = BLIP2.model_copy(update={"dtype": "bfloat16"})
    masked = REPAIR.model_copy(update={"method": "masked_finetune"})
    said = export(tmp_path / "model", pruned(model, repair=masked))
    assert any("bias" in name for name in weights(tmp_path / "model"))
    # An adapter computes with its weights rounded, as the merge rounds them.
    assert said["connector"]
    assert all(one["gap"] == 0 for one in said["connector"].values())
    assert verify(tmp_path / "model") == said


def test_pictures_of_another_size_are_looked_at_after_export_too(tmp_path: Path) -> None:
    model = BLIP2.model_copy(update={"image_size": 96})
    unmerged = pruned(model)
    export(tmp_path / "model", unmerged)
    assert "pass `interpolate_pos_encoding=True`" in (tmp_path / "model/README.md").read_text()
    assert torch.equal(logits(unmerged.vlm), logits(load(tmp_path / "model")))


def test_an_export_is_a_model_for_a_sweep_like_any_other(folder: Path) -> None:
    vlm = load_vlm(str(folder))
    assert vlm.towers.inventory == MODELS["pocket-blip2"].inventory()


def test_what_does_not_verify_is_not_left(tmp_path: Path, monkeypatch) -> None:
    unmerged = pruned(BLIP2)
    save = type(unmerged.vlm).save

    def save_and_spoil(vlm, folder, shard):
        save(vlm, folder, shard)
        (path,) = folder.glob("model.safetensors")
        tensors = weights(folder)
        name = next(name for name in tensors if name.endswith("SelfAttention.q.weight"))
        tensors[name][0] = 1
        save_file(tensors, path, metadata={"format": "pt"})

    monkeypatch.setattr(type(unmerged.vlm), "save", save_and_spoil)
    with pytest.raises(VerificationError, match="pruned weights are not exactly zero"):
        export(tmp_path / "model", unmerged)
    assert not list(tmp_path.iterdir())


def test_a_strangers_words_stay_words_in_the_card(tmp_path: Path, monkeypatch) -> None:
    name = "<script>alert(1)</script> [x](http://e.vil) `"
    monkeypatch.setitem(shop.ABOUT, "sweep", name)
    export(tmp_path / "model", pruned(BLIP2, repair=None))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "<script" not in card.replace("\\<", "")
    assert "[x](" not in card.replace("\\[", "").replace("\\]", "")
    assert json.loads((tmp_path / "model" / "certificate.json").read_text())["sweep"] == name
