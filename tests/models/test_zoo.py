from pathlib import Path

import pytest

from benchmarks.zoo.stages import STAGES, quiet, run

NAMED = (
    *("blip-2", "blip-2:t5", "instructblip", "instructblip:t5", "llava", "llava_next"),
    *("llava_onevision", "vipllava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "paligemma"),
    *("gemma3", "idefics2", "idefics3", "smolvlm", "mllama", "mistral3", "florence2", "kosmos-2"),
    *("aya_vision", "granite4_vision", "got_ocr2", "janus", "qwen3_vl_moe"),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NAMED)
def test_a_small_model_of_the_type_passes_every_stage_of_a_trial(kind: str, tmp_path: Path) -> None:
    quiet()
    assert dict(run(kind, tmp_path)) == dict.fromkeys(STAGES, "yes")
