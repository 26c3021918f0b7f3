"""Tiny VLMs of random weights, with a processor that reads token ids; and two workers on them."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from ressa.models.towers import find_towers
from ressa.models.vlm import VLM
from ressa.prune import (
    PrunedLayers,
    PruneMethod,
    Statistics,
    mask_hash,
    prune_layers,
    walk,
)
from ressa.prune.wanda import Wanda
from ressa.records import Example
from ressa.sparsity import TOWERS

PAD, END, START, IMAGE_TOKEN, VOCABULARY = 0, 1, 2, 31, 32
_TOKENS = {"pad_token_id": PAD, "eos_token_id": END, "bos_token_id": START}
_VISION = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2}
_VISION |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}


@dataclasses.dataclass
class IdTokenizer:
    """Texts are token ids, written out."""

    pad_token_id: int = PAD
    eos_token_id: int = END
    chat_template: str = "question"

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


@dataclasses.dataclass
class IdProcessor:
    image_tokens: int
    tokenizer: IdTokenizer = dataclasses.field(default_factory=IdTokenizer)

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        return messages[0]["content"][1]["text"]

    def __call__(self, images: Any, text: list[str], **options: Any) -> dict[str, Tensor]:
        ids = self.tokenizer(text[0])["input_ids"]
        return {"input_ids": torch.tensor([[IMAGE_TOKEN] * self.image_tokens + ids])}

    def image_processor(self, pictures: list[Image.Image], **options: Any) -> dict[str, Tensor]:
        pixels = np.stack([np.asarray(picture) for picture in pictures])
        return {"pixel_values": torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 128 - 1}


def tiny_blip2() -> VLM:
    text = {"model_type": "t5", "d_model": 12, "d_kv": 6, "d_ff": 20, "num_layers": 2}
    text |= {"num_heads": 2, "vocab_size": VOCABULARY, "feed_forward_proj": "gated-gelu"}
    bridge = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    bridge |= {"num_attention_heads": 2, "encoder_hidden_size": 16, "vocab_size": VOCABULARY}
    config = Blip2Config(
        vision_config=_VISION,
        qformer_config=bridge,
        text_config=text | _TOKENS | {"decoder_start_token_id": START},
        num_query_tokens=3,
        image_token_index=IMAGE_TOKEN,
    )
    return _vlm("tiny-blip2", Blip2ForConditionalGeneration, config, image_tokens=3)


def tiny_llava() -> VLM:
    text = {"model_type": "llama", "hidden_size": 12, "intermediate_size": 20}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": VOCABULARY}
    config = LlavaConfig(
        vision_config=_VISION | {"model_type": "clip_vision_model"},
        text_config=text | _TOKENS,
        image_token_index=IMAGE_TOKEN,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    return _vlm("tiny-llava", LlavaForConditionalGeneration, config, image_tokens=5)


def _vlm(name: str, kind: Any, config: Any, image_tokens: int) -> VLM:
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return VLM(
        name=name, model=model, processor=IdProcessor(image_tokens), towers=find_towers(model)
    )


MODELS = {"blip2": tiny_blip2, "llava": tiny_llava}


def questions() -> list[Example]:
    """Eleven questions of several lengths on four images, some with several questions."""
    drawn = np.random.default_rng(0)
    shown = [0, 0, 1, 2, 2, 2, 3, 0, 1, 1, 3]
    return [
        Example(
            id=str(index),
            image_id=str(image),
            question=" ".join(map(str, drawn.integers(3, 31, size=drawn.integers(1, 7)))),
            answer=" ".join(map(str, drawn.integers(3, 31, size=drawn.integers(1, 5)))),
            kind="any",
        )
        for index, image in enumerate(shown)
    ]


def picture(image_id: str) -> Image.Image:
    pixels = np.random.default_rng(int(image_id)).integers(0, 256, size=(8, 8, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def calibrate_all(vlm: VLM, examples: list[Example] | None = None, **options: Any) -> Statistics:
    """Takes the statistics of both towers, of all questions by default."""
    examples = questions() if examples is None else examples
    blocks = [block for tower in TOWERS for block in walk(vlm, examples, picture, tower, **options)]
    return Statistics({name: known for block in blocks for name, known in block.layers.items()})


def calibrate_as_worker(rank: int, workers: int, folder: str) -> None:
    """Joins a group of workers, calibrates each tiny model with it, and writes what came out."""
    torch.set_num_threads(1)
    rendezvous = dist.FileStore(f"{folder}/rendezvous", workers)
    dist.init_process_group("gloo", store=rendezvous, rank=rank, world_size=workers)
    for name, build in MODELS.items():
        statistics = calibrate_all(build(), chunk=4)
        Path(folder, f"{name}-{rank}").write_bytes(statistics.to_bytes())
        moments = calibrate_all(build(), chunk=4, gram=False)
        Path(folder, f"{name}-{rank}-moments").write_bytes(moments.to_bytes())
        masks = mask_hashes(prune_both_towers(build(), Wanda(), chunk=4))
        Path(folder, f"{name}-{rank}-masks").write_text(json.dumps(masks))
        with in_little_memory(build()) if rank else nullcontext(build()) as vlm:
            Path(folder, f"{name}-{rank}-little").write_bytes(
                calibrate_all(vlm, chunk=4).to_bytes()
            )
    dist.destroy_process_group()


@contextmanager
def in_little_memory(vlm: VLM, block: int = 0) -> Iterator[VLM]:
    """Lets a block of each tower have no room for more than two pictures, or questions."""

    def refuse(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with ExitStack() as hooks:
        for tower in TOWERS:
            name = next(x.name for x in vlm.towers.inventory.tower(tower) if x.block == block)
            hooks.callback(vlm.model.get_submodule(name).register_forward_pre_hook(refuse).remove)
        yield vlm


def prune_one_block(vlm: VLM, method: PruneMethod, known: Statistics) -> PrunedLayers:
    """Takes half of each row of the layers that the statistics are of, in place."""
    layers = [layer for layer in vlm.towers.inventory.layers if layer.name in known.layers]
    lost = [np.full(layer.rows, layer.columns // 2) for layer in layers]
    pruned = prune_layers(vlm.model, layers, method, lost, statistics=known.layers)
    pruned.apply(vlm.model)
    return pruned


def mask_hashes(blocks: list[bytes]) -> list[str]:
    return [mask_hash(PrunedLayers.from_bytes(content).masks) for content in blocks]


def prune_both_towers(vlm: VLM, method: PruneMethod, **options: Any) -> list[bytes]:
    """Prunes vision, then language behind it, each block behind those before."""
    return [
        prune_one_block(vlm, method, known).to_bytes()
        for tower in TOWERS
        for known in walk(vlm, questions(), picture, tower, prunes=True, **options)
    ]
