from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from benchmarks.zoo.configs import small_config
from benchmarks.zoo.stages import build
from ressa.errors import SpecError, VerificationError
from ressa.export import certificate, load, to_semi_structured
from tests.export.shop import logits


def test_what_the_kernels_cannot_take_is_refused(folder: Path, tmp_path: Path) -> None:
    model = load(folder).model
    with pytest.raises(SpecError, match=r"weights are torch.float32.* model.to\(torch.bfloat16\)"):
        to_semi_structured(model, folder)
    with pytest.raises(SpecError, match=r'on GPUs alone: model.to\("cuda"\)'):
        to_semi_structured(model.to(torch.bfloat16), folder)
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
    with pytest.raises(SpecError, match="on GPUs alone"):  # but its matrices have the same names
        to_semi_structured(plain, folder)
    with pytest.raises(VerificationError, match="has no certificate"):
        to_semi_structured(model, tmp_path)


def test_an_export_without_such_matrices_is_refused(folder: Path) -> None:
    said = certificate.read(folder)
    for matrix in said["matrices"]:
        matrix["pattern"] = None
    certificate.write(folder, said)
    with pytest.raises(SpecError, match="no matrix is 2:4"):
        to_semi_structured(load(str(folder)).model, str(folder))  # as docs/export.md writes it


@pytest.mark.filterwarnings("ignore")
def test_matrices_that_transformers_fuses_are_refused_in_its_form_of_the_model(
    tmp_path: Path,
) -> None:
    vlm = build("qwen3_vl_moe")
    names = [layer.name for layer in vlm.towers.inventory.layers]
    matrices = [{"name": name, "pattern": "2:4"} for name in names]
    certificate.write(tmp_path, {"certificate": 1, "matrices": matrices})
    plain = AutoModelForImageTextToText.from_config(small_config("qwen3_vl_moe"))
    with pytest.raises(SpecError, match=r"experts.* is no linear layer of this .*export\.load"):
        to_semi_structured(plain, tmp_path)
    with pytest.raises(SpecError, match=r"weights are torch\.float32"):
        to_semi_structured(vlm.model, tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_kernels_answer_as_the_dense_matrices_do(folder: Path) -> None:
    vlm = load(folder)
    vlm.model.to("cuda", torch.bfloat16)  # type: ignore[arg-type]
    dense = logits(vlm)
    names = to_semi_structured(vlm.model, folder)
    wanted = [m["name"] for m in certificate.read(folder)["matrices"] if m["pattern"] == "2:4"]
    assert names == wanted
    assert (logits(vlm) - dense).abs().max() < 2**-6 * dense.abs().max()
