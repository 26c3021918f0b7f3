"""A whole tower: eight sparsities from one calibration, and the memory that pruning takes.

The tower is a CLIP vision tower of random weights, 1024 wide as ViT-L is, inside a LLaVA with a
small language model; 128 pictures, 65 tokens each. Memory is measured on its 24 blocks (303 million
weights), in a process of its own, while the first 4 are pruned: each takes what the one before gave
back. Time is measured on a tower of 4.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from benchmarks.report import Row
from ressa.catalog import METHODS
from ressa.models.towers import find_towers
from ressa.models.vlm import VLM
from ressa.prune import PrunedLayers, PruneMethod, Statistics, prune_layers, removals, walk
from ressa.records import Example
from ressa.sparsity import Target
from ressa.spec import TowerTarget
from ressa.stages import Parts, Stages
from ressa.store import open_store

BLOCKS, WIDTH, SAMPLES, CHUNK = 24, 1024, 128, 16
WORKED_ON = 4  # blocks from the first
RATIOS = ("0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "2:4", "4:8")
METHOD_NAMES = ("magnitude", "wanda", "dsnot", "sparsegpt")
_IMAGE, _PAD, _END, _IMAGE_TOKEN = 112, 0, 1, 31


class _Tokenizer:
    pad_token_id, eos_token_id, chat_template = _PAD, _END, "question"

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(letter) % 20 for letter in text]}


class _Processor:
    """Reads letters as tokens, and pictures as they are."""

    tokenizer = _Tokenizer()

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        return str(messages[0]["content"][1]["text"])

    def __call__(self, images: Any, text: list[str], **options: Any) -> dict[str, Tensor]:
        tokens = (_IMAGE // 14) ** 2
        ids = self.tokenizer(text[0])["input_ids"]
        return {"input_ids": torch.tensor([[_IMAGE_TOKEN] * tokens + ids])}

    def image_processor(self, pictures: list[Image.Image], **options: Any) -> dict[str, Tensor]:
        pixels = np.stack([np.asarray(picture) for picture in pictures])
        return {"pixel_values": torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 128 - 1}


def random_vlm(blocks: int = BLOCKS, width: int = WIDTH) -> VLM:
    """Makes a LLaVA of random weights with a vision tower of this shape."""
    vision = {"model_type": "clip_vision_model", "hidden_size": width, "image_size": _IMAGE}
    vision |= {"intermediate_size": 4 * width, "num_hidden_layers": blocks, "patch_size": 14}
    vision |= {"num_attention_heads": width // 64}
    text = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 64}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 32}
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=_IMAGE_TOKEN,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    processor: Any = _Processor()
    return VLM(name="random", model=model, processor=processor, towers=find_towers(model))


def examples() -> list[Example]:
    return [
        Example(id=str(n), image_id=str(n), question="what", answer="this", kind="any")
        for n in range(SAMPLES)
    ]


def picture(name: str) -> Image.Image:
    pixels = np.random.default_rng(int(name)).integers(0, 256, size=(_IMAGE, _IMAGE, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def calibrated(vlm: VLM, stages: Stages) -> Parts:
    """Takes dense statistics of the vision tower's first blocks, one by one, into the store."""

    def make() -> Iterator[bytes]:
        blocks = walk(vlm, examples(), picture, "vision", chunk=CHUNK)
        return map(Statistics.to_bytes, islice(blocks, WORKED_ON))

    waiting = stages.once_in_parts("calibration", "vision", make)
    try:
        next(waiting)
    except StopIteration as end:
        return end.value
    raise AssertionError("nobody works here beside us")


def prune(vlm: VLM, name: str, target: str, parts: Parts, *, apply: bool) -> None:
    """Prunes as a trial does, block by block."""
    method = METHODS[name]()
    for known in map(Statistics.from_bytes, parts):
        content = _prune_block(vlm, method, target, known).to_bytes()
        if apply:
            PrunedLayers.from_bytes(content).apply(vlm.model)
        del known, content


def _prune_block(vlm: VLM, method: PruneMethod, target: str, known: Statistics) -> PrunedLayers:
    layers = [layer for layer in vlm.towers.inventory.layers if layer.name in known.layers]
    wanted = TowerTarget(method=method.name, group="row", target=Target.parse(target))
    lost = removals(layers, wanted)
    return prune_layers(vlm.model, layers, method, lost, statistics=known.layers)


def rows(given: argparse.Namespace) -> Iterator[Row]:
    """Measures each method; no peer's code is run."""
    for name in METHOD_NAMES:
        yield _eight_ratios(name)
    for name, regime, allocator in (
        ("wanda", "dense", "as needed"),
        ("sparsegpt", "dense", "as needed"),
        ("sparsegpt", "sequential", "as needed"),
        ("sparsegpt", "dense", "glibc"),
    ):
        yield _memory(name, regime, allocator)


def _eight_ratios(name: str) -> Row:
    """One calibration and eight mask passes, beside a calibration for each sparsity."""
    vlm = random_vlm(WORKED_ON)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        parts = calibrated(vlm, Stages(open_store(folder, create=True)))
        calibration = time.process_time() - began
        for ratio in RATIOS:
            prune(vlm, name, ratio, parts, apply=False)
        ours = time.process_time() - began
    return Row(
        name=f"a tower at eight sparsities, {name}",
        shape=f"{WORKED_ON} blocks of {WIDTH}",
        peer_name="a calibration for each sparsity (derived)",
        ours=ours,
        peer=ours + (len(RATIOS) - 1) * calibration,
        unit="s",
        rounds=1,
    )


def _memory(name: str, regime: str, allocator: str) -> Row:
    """Prunes the tower in a process of its own; the peer is the least that it could take."""
    command = [sys.executable, "-m", "benchmarks.tower", name, regime]
    # By default glibc keeps freed blocks of up to 32 MiB; here they go back at once, so that what
    # is measured is what is in use.
    kept = {"MALLOC_MMAP_THRESHOLD_": str(2**20)} if allocator == "as needed" else {}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | kept
    )
    found = json.loads(done.stdout)
    bound = 1 / 1.2 if allocator == "as needed" else None
    return Row(
        name=f"peak memory of pruning a tower, {name}, {regime}"
        + (", with what glibc keeps" if allocator == "glibc" else ""),
        shape=f"{BLOCKS} blocks of {WIDTH}",
        peer_name="weights + a block's statistics + a chunk's activations",
        ours=found["peak"] / 2**20,
        peer=found["least"] / 2**20,
        unit="MiB",
        rounds=1,
        floor=bound,
        goal=bound,
    )


def _measure_memory(name: str, regime: str) -> dict[str, float]:
    torch.set_num_threads(1)
    vlm = random_vlm()
    weights = sum(p.numel() * p.element_size() for p in vlm.model.parameters())
    with torch.no_grad():  # everything is imported and touched once
        vlm.answer_logits(vlm.encode(examples()[:1], picture, answers=True))
        before = _resident()
        _reset_peak()
        vlm.answer_logits(vlm.encode(examples()[:CHUNK], picture, answers=True))
    activations = _peak() - before
    statistics = max(
        len(block.to_bytes()) for block in walk(random_vlm(2), examples()[:2], picture, "vision")
    )
    before = _resident()
    _reset_peak()
    with tempfile.TemporaryDirectory() as folder:
        stages = Stages(open_store(folder, create=True))
        if regime == "dense":
            prune(vlm, name, "0.5", calibrated(vlm, stages), apply=True)
        else:
            method = METHODS[name]()
            blocks = walk(vlm, examples(), picture, "vision", chunk=CHUNK, prunes=True)
            for known in islice(blocks, WORKED_ON):
                content = _prune_block(vlm, method, "0.5", known).to_bytes()
                PrunedLayers.from_bytes(content).apply(vlm.model)
                del known, content
    extra = _peak() - before
    return {
        "weights": weights,
        "statistics": statistics,
        "activations": activations,
        "peak": weights + extra,
        "least": weights + statistics + activations,
    }


def _resident() -> int:
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as lines:
        (kilobytes,) = (line.split()[1] for line in lines if line.startswith(field + ":"))
    return int(kilobytes) * 1024


def _reset_peak() -> None:
    with open("/proc/self/clear_refs", "w", encoding="ascii") as control:
        control.write("5")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure_memory(*sys.argv[1:])))
