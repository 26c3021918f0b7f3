from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.zoo.stages import EXAMPLES, STAGES, Pictures, build, check_causal, quiet, run
from ressa.models import vlm
from ressa.prune import walk
from ressa.records import Example
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

# By transformers too: the one has no beams, the other counts places from a batch's longest prompt.
ANSWERED_OTHERWISE = {
    "llama4": "Image features and image tokens do not match",
    "kosmos-2": "other questions of a batch move a logit",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NAMED)
def test_a_small_model_of_the_type_passes_every_stage_of_a_trial(kind: str, tmp_path: Path) -> None:
    quiet()
    passed = dict(run(kind, tmp_path))
    if kind in ANSWERED_OTHERWISE:
        assert ANSWERED_OTHERWISE[kind] in passed.pop("answered")
    assert passed == dict.fromkeys(STAGES[: len(passed)], "yes")


@pytest.mark.filterwarnings("ignore")
def test_an_answer_that_is_seen_where_it_is_predicted_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quiet()
    monkeypatch.setattr(vlm, "_PREFIX", ())  # as if the answer were part of the prompt
    with pytest.raises(AssertionError, match="moves a logit that comes before"):
        check_causal(build("paligemma"))


class PicturesOfTwoSizes(Pictures):
    """The second one is half as high."""

    def image(self, image_id: str) -> Image.Image:
        """Opens a picture by its id."""
        return super().image(image_id).resize((32, 16 if image_id == "1" else 32))


# Each lays questions and pictures out in its own way; the first fills small pictures up.
LAYOUTS = ("idefics2", "molmo2", "minicpmv4_6", "mllama", "gemma4", "kosmos-2")
LAYOUTS += ("t5gemma2", "ernie4_5_vl_moe", "llama4", "qwen2_5_vl", "deepseek_ocr2", "florence2")
LAYOUTS += ("git",)

# The first is longer than the others, which are padded.
UNEVEN = (replace(EXAMPLES[0], answer="red blue yes red blue"), *EXAMPLES[1:])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", LAYOUTS)
def test_sums_of_questions_together_are_those_of_each_alone(kind: str) -> None:
    quiet()
    model, pictures = build(kind), PicturesOfTwoSizes()
    for tower in TOWERS:
        alone, together = (
            {
                name: known
                for block in walk(model, UNEVEN, pictures.image, tower, chunk=chunk)
                for name, known in block.layers.items()
            }
            for chunk in (1, len(UNEVEN))
        )
        for name, layer in alone.items():
            other, scale = together[name], float(layer.square_sums.max())
            assert other.tokens == layer.tokens, name
            np.testing.assert_allclose(
                other.square_sums, layer.square_sums, rtol=1e-3, atol=1e-4 * scale, err_msg=name
            )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["idefics", "mllama", "blip"])
def test_a_picture_counts_in_full_beside_a_text_of_just_its_length(kind: str) -> None:
    quiet()
    model, pictures = build(kind), Pictures()

    def tokens(examples: Sequence[Example], chunk: int) -> dict[str, int]:
        blocks = walk(model, examples, pictures.image, "language", chunk=chunk)
        return {name: known.tokens for b in blocks for name, known in b.layers.items()}

    known = tokens(EXAMPLES[:1], 1)
    [length, size] = sorted(set(known.values()))
    longer = replace(EXAMPLES[1], answer=EXAMPLES[1].answer + " red" * (size - length))
    examples = (EXAMPLES[0], longer)
    batch = model.encode(examples, pictures.image, answers=True)
    assert batch.inputs["input_ids"].shape == (2, size)
    assert tokens(examples, 2) == tokens(examples, 1)
