from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.zoo.stages import EXAMPLES, STAGES, Pictures, build, quiet, run
from ressa.prune import calibrate
from ressa.sparsity import TOWERS

NAMED = (
    *(
        "blip-2",
        "blip-2:t5",
        "blip-2:gpt2",
        "instructblip",
        "instructblip:t5",
        "llava",
        "llava_next",
    ),
    *("llava_onevision", "vipllava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "paligemma"),
    *("gemma3", "idefics2", "idefics3", "smolvlm", "mllama", "mistral3", "florence2", "kosmos-2"),
    *("aya_vision", "granite4_vision", "got_ocr2", "janus", "qwen3_vl_moe", "llama4", "t5gemma2"),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NAMED)
def test_a_small_model_of_the_type_passes_every_stage_of_a_trial(kind: str, tmp_path: Path) -> None:
    quiet()
    assert dict(run(kind, tmp_path)) == dict.fromkeys(STAGES, "yes")


class PicturesOfTwoSizes(Pictures):
    """The second one is half as high."""

    def image(self, image_id: str) -> Image.Image:
        """Opens a picture by its id."""
        return super().image(image_id).resize((32, 16 if image_id == "1" else 32))


# Each lays questions and pictures out in its own way; the first fills small pictures up.
LAYOUTS = ("idefics2", "molmo2", "minicpmv4_6", "mllama", "gemma4", "kosmos-2")
LAYOUTS += ("t5gemma2", "ernie4_5_vl_moe", "llama4", "qwen2_5_vl", "deepseek_ocr2", "florence2")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", LAYOUTS)
def test_sums_of_questions_together_are_those_of_each_alone(kind: str) -> None:
    quiet()
    vlm, pictures = build(kind), PicturesOfTwoSizes()
    for tower in TOWERS:
        alone = calibrate(vlm, EXAMPLES, pictures.image, tower, chunk=1)
        together = calibrate(vlm, EXAMPLES, pictures.image, tower, chunk=len(EXAMPLES))
        for name, layer in alone.layers.items():
            other, scale = together.layers[name], float(layer.square_sums.max())
            assert other.tokens == layer.tokens, name
            np.testing.assert_allclose(
                other.square_sums, layer.square_sums, rtol=1e-3, atol=1e-4 * scale, err_msg=name
            )
