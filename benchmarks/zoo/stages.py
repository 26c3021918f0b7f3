"""What is tried with each model type: the stages of a trial, one after the other."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText
from transformers.utils import logging as transformers_logging

from benchmarks.zoo.configs import small_config
from benchmarks.zoo.tensors import Tensors
from ressa.models import VLM, find_towers
from ressa.prune import PackedMasks, Statistics, apply_masks, count_zeros, prune_tower, walk
from ressa.prune.wanda import Wanda
from ressa.records import Example
from ressa.repair import attach, merge, train
from ressa.sparsity import TOWERS, Target
from ressa.spec import Decoding, Distillation, Rank, Repair
from ressa.workers import device

STAGES = ("towers", "calibrated", "pruned", "repaired", "merged", "saved", "loaded")
STAGES += ("causal", "answered")

_QUESTIONS = (("what is this", "red"), ("is this blue", "yes"), ("what colour", "red blue"))
EXAMPLES = tuple(
    Example(
        id=str(number),
        image_id=f"{number // 2}",  # a second question about the first picture
        question=question,
        answer=answer,
        kind="",
    )
    for number, (question, answer) in enumerate(_QUESTIONS)
)
PLAN = Repair(
    rank=Rank(vision=2, language=2, connector=2),
    steps=1,
    batch_size=3,
    learning_rate=0.01,
    distillation=Distillation(weight=0),
)


class Pictures:
    """Two pictures, a red and a blue one."""

    def image(self, image_id: str) -> Image.Image:
        """Opens a picture by its id."""
        return Image.new("RGB", (32, 32), ("red", "blue")[int(image_id)])

    def blank_image(self) -> Image.Image:
        """Returns a grey one."""
        return Image.new("RGB", (32, 32), "grey")


def run(kind: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Yields stage after stage with "yes" or the reason why not; the first reason is the last."""
    state: dict[str, Any] = {}
    stages: dict[str, Callable[[], None]] = {
        "towers": lambda: state.update(vlm=build(kind)),
        "calibrated": lambda: _calibrate(state),
        "pruned": lambda: _prune(state),
        "repaired": lambda: _repair(state),
        "merged": lambda: _merge(state),
        "saved": lambda: state["vlm"].save(folder),
        "loaded": lambda: _load(folder, state),
        "causal": lambda: check_causal(state["vlm"]),
        "answered": lambda: _answer(state["vlm"]),
    }
    for stage in STAGES:
        try:
            stages[stage]()
        except Exception as error:
            logging.debug("%s", kind, exc_info=True)
            yield stage, f"{type(error).__name__}: {' '.join(str(error).split())}"
            return
        yield stage, "yes"


def build(kind: str) -> VLM:
    """Makes a small random model of a type, and finds its towers."""
    config = small_config(kind)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).float().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    model.to(device())  # type: ignore[arg-type]  # transformers wraps it untyped
    return VLM(name=kind, model=model, processor=Tensors(model), towers=find_towers(model))


def _calibrate(state: dict[str, Any]) -> None:
    vlm, pictures = state["vlm"], Pictures()
    blocks = [b for tower in TOWERS for b in walk(vlm, EXAMPLES, pictures.image, tower, chunk=2)]
    state["known"] = Statistics({n: known for block in blocks for n, known in block.layers.items()})


def _prune(state: dict[str, Any]) -> None:
    vlm, masks = state["vlm"], PackedMasks()
    for tower in TOWERS:
        layers = vlm.towers.inventory.tower(tower)
        pruned = prune_tower(
            vlm.model, layers, Wanda(), target=Target.parse("0.5"), statistics=state["known"]
        )
        masks |= pruned.masks
    apply_masks(vlm.model, masks)
    state["masks"] = masks
    _check_zeros(state)


def _repair(state: dict[str, Any]) -> None:
    vlm = state["vlm"]
    state["adapters"] = attach(vlm.model, state["masks"], vlm.towers, PLAN, seed=0)
    for _ in train(vlm, state["adapters"], EXAMPLES, Pictures(), None, PLAN, seed=0):
        pass


def _merge(state: dict[str, Any]) -> None:
    before = _logits(state["vlm"])
    merge(state["adapters"])
    gap = (_logits(state["vlm"]) - before).abs().max().item()
    assert gap < 1e-3, f"merging moved a logit by {gap}"
    _check_zeros(state)


def _load(folder: Path, state: dict[str, Any]) -> None:
    """Loads by plain transformers, and compares the logits of the same inputs."""
    vlm = state["vlm"]
    plain, report = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    missing = sorted(report["missing_keys"])
    assert not missing, (
        f"transformers' from_pretrained misses {len(missing)} of the weights that its "
        f"save_pretrained wrote under other names, such as {missing[0]}"
    )
    loaded = VLM(
        name=vlm.name, model=plain.eval().to(device()), processor=vlm.processor, towers=vlm.towers
    )
    gap = (_logits(loaded) - _logits(vlm)).abs().max().item()
    assert gap < 1e-5, f"a logit of the loaded model is off by {gap}"


def check_causal(vlm: VLM) -> None:
    """Checks that no place where an answer's token is predicted sees it, or what follows it."""
    one, other = (
        _logits(vlm, [replace(EXAMPLES[0], answer=answer)]) for answer in ("red blue", "red yes")
    )
    gap = (one[:2] - other[:2]).abs().max().item()
    assert gap < 1e-4, f"the last token of an answer moves a logit that comes before by {gap}"


def _answer(vlm: VLM) -> None:
    """Checks that questions are answered in a batch as each alone, and by beams at all."""
    alone = torch.cat([_generated(vlm, [example]) for example in EXAMPLES])
    gap = (_generated(vlm, EXAMPLES) - alone).abs().max().item()
    assert gap < 1e-3, f"other questions of a batch move a logit of an answer by {gap}"
    batch = vlm.encode(EXAMPLES, Pictures().image, answers=False)
    vlm.generate(batch, 3, Decoding(beams=2))


def _generated(vlm: VLM, examples: Sequence[Example]) -> torch.Tensor:
    """The logits of the first two tokens of each answer, [example token vocabulary]."""
    batch = vlm.encode(examples, Pictures().image, answers=False)
    model: Any = vlm.model
    found = model.generate(
        **batch.with_pictures(batch.image_index),
        max_new_tokens=2,
        min_new_tokens=2,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(found.logits, dim=1)


def _check_zeros(state: dict[str, Any]) -> None:
    layers, masks = state["vlm"].towers.inventory.layers, state["masks"]
    counts = count_zeros(state["vlm"].model, layers, masks)
    assert not any(count.violations for count in counts), "a pruned weight is not zero"
    for tower in TOWERS:
        own = [count for count in counts if count.tower == tower]
        pruned, weights = sum(c.pruned for c in own), sum(c.weights for c in own)
        assert 2 * pruned in (weights, weights + 1), f"{pruned} of {weights} pruned"


@torch.no_grad()
def _logits(vlm: VLM, examples: Sequence[Example] = EXAMPLES) -> torch.Tensor:
    batch = vlm.encode(examples, Pictures().image, answers=True)
    return vlm.answer_logits(batch)[0]


def quiet() -> None:
    """Mutes what transformers has to say about configurations that nobody trained."""
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
