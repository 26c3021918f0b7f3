"""Stands in for a model type's processor: the tensors that its forward pass asks for.

Which they are is read off the signature of `forward`; how many image tokens a picture has is asked
of the model's own `get_image_features`. No vocabulary, no chat template and no torchvision needed.
"""

import inspect
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from benchmarks.zoo.configs import IMAGE, PATCH

_UNKNOWN, _IMAGE_TOKEN = 3, 4
_WORDS = {"what": 70, "is": 71, "this": 72, "colour": 73, "red": 74, "blue": 75, "yes": 76}
# Whose pictures come in tiles, an axis behind the picture's: [picture tile channel height width].
_TILED = ("llava_next", "llava_onevision", "granite4_vision", "llava_next_video")
_MASKED = ("idefics2", "idefics3", "smolvlm")


class Tokenizer:
    """Words are numbers."""

    pad_token_id, eos_token_id, chat_template = 0, 1, None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Returns the numbers of a text's words."""
        return {"input_ids": [_WORDS.get(word, _UNKNOWN) for word in text.split()]}


class Tensors:
    """A processor of one model."""

    chat_template = "{messages}"

    def __init__(self, model: Any) -> None:
        self.model, self.kind = model, model.config.model_type
        self.tokenizer = Tokenizer()
        self._asks = set(inspect.signature(model.forward).parameters)
        self._tokens: int | None = None

    def apply_chat_template(self, messages: list[Any], **_: Any) -> str:
        """Returns the question as it is."""
        return str(messages[0]["content"][1]["text"])

    def batch_decode(self, tokens: Tensor, **_: Any) -> list[str]:
        """Returns the numbers."""
        return [" ".join(map(str, row)) for row in tokens.tolist()]

    def save_pretrained(self, folder: Any) -> None:
        """There is nothing to save."""

    def image_processor(self, images: list[Image], **_: Any) -> dict[str, Tensor]:
        """Returns pixel values alone, of a model that reads nothing else of a picture."""
        return {"pixel_values": torch.cat([self._picture(i)["pixel_values"] for i in images])}

    def __call__(self, images: list[Image], text: list[str], **_: Any) -> dict[str, Tensor]:
        """Returns all that the model reads of a question and its picture."""
        picture = self._picture(images[0])
        if "input_ids" not in self._asks or self.kind == "pp_formulanet":
            return picture  # what it reads is a picture alone
        if self._tokens is None:
            self._tokens = self._count_tokens(picture)
        words = self.tokenizer(text[0])["input_ids"]
        ids = torch.tensor([[2, *[self._image_token()] * self._tokens, *words]])
        mask = (ids == self._image_token()).long()
        texts = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for name in ("mm_token_type_ids", "moe_mm_token_type_ids"):
            if name in self._asks:
                texts[name] = mask
        if "token_type_ids" in self._asks and self.kind in ("gemma3", "shieldgemma2"):
            texts["token_type_ids"] = mask
        if "token_type_ids" in self._asks and self.kind == "paligemma":
            texts["token_type_ids"] = torch.zeros_like(ids)  # all of a prompt is its prefix
        if "qformer_input_ids" in self._asks:
            texts["qformer_input_ids"] = torch.tensor([words])
            texts["qformer_attention_mask"] = torch.ones(1, len(words), dtype=torch.long)
        if "image_embeds_position_mask" in self._asks:
            texts["image_embeds_position_mask"] = mask
        if "cross_attention_mask" in self._asks and self.kind == "mllama":
            first = torch.tensor([1] + [0] * (self._tiles() - 1))
            texts["cross_attention_mask"] = first.expand(1, ids.shape[1], 1, -1)
        if "image_attention_mask" in self._asks and self.kind == "idefics":
            texts["image_attention_mask"] = torch.ones(1, ids.shape[1], 1, dtype=torch.long)
        return texts | picture

    def _image_token(self) -> int:
        config = self.model.config
        for name in ("image_token_id", "image_token_index"):
            if isinstance(getattr(config, name, None), int):
                return int(getattr(config, name))
        return _IMAGE_TOKEN

    def _tiles(self) -> int:
        return int(self.model.config.vision_config.max_num_tiles)

    def _picture(self, image: Image) -> dict[str, Tensor]:
        vision = getattr(self.model.config, "vision_config", self.model.config)
        side = getattr(vision, "image_size", IMAGE)
        side = side if isinstance(side, int) else IMAGE
        # Idefics 2 takes any size, and a batch's smaller pictures are filled up.
        size = image.size if self.kind == "idefics2" else (side, side)
        array = np.asarray(image.convert("RGB").resize(size), dtype=np.float32)
        pixels = torch.from_numpy(array).permute(2, 0, 1)[None] / 127.5 - 1  # [1 channel h w]
        if "aspect_ratio_ids" in self._asks:
            tiles = torch.zeros(1, 1, self._tiles(), 3, side, side)
            tiles[0, 0, 0] = pixels[0]
            first = torch.tensor([[[1] + [0] * (self._tiles() - 1)]])
            return {
                "pixel_values": tiles,
                "aspect_ratio_ids": torch.tensor([[1]]),
                "aspect_ratio_mask": first,
            }
        if self.kind == "inkling2":
            squares = self._squares(pixels, 2 * PATCH)
            return {"pixel_values": squares, "image_grid_thw": torch.tensor([[1, 2, 2]])}
        if self.kind == "inkling_mm_model":
            return {"pixel_values": self._squares(pixels, PATCH)[:, None].repeat(1, 2, 1, 1, 1)}
        if "image_grid_thw" in self._asks:
            return self._patches(pixels)
        if "image_grid_hw" in self._asks:
            flat = self._squares(pixels, PATCH).flatten(1)
            return {"pixel_values": flat, "image_grid_hw": torch.tensor([[4, 4]])}
        if "image_position_ids" in self._asks:
            flat = self._squares(pixels, PATCH).flatten(1)[None]
            return {"pixel_values": flat, "image_position_ids": _places()[None]}
        if "target_sizes" in self._asks:
            rows = self._squares(pixels, PATCH).permute(3, 1, 0, 2).flatten(2)[None]
            return {"pixel_values": rows, "target_sizes": torch.tensor([[4, 4]])}
        if "image_token_pooling" in self._asks:
            return {
                "pixel_values": self._squares(pixels, PATCH).flatten(1)[None],
                "image_token_pooling": torch.arange(16).view(4, 4),
                "image_grids": torch.tensor([[2, 2, 0, 0]]),
                "image_num_crops": torch.tensor([1]),
            }
        if self.kind in _MASKED:
            ones = torch.ones(1, 1, *pixels.shape[2:], dtype=torch.bool)
            return {"pixel_values": pixels[None], "pixel_attention_mask": ones}
        if self.kind in ("idefics", "instructblipvideo"):
            return {"pixel_values": pixels[None]}
        if self.kind == "granite_docling":
            mask = torch.ones(1, 1, dtype=torch.bool)
            return {"pixel_values": pixels[None], "pixel_attention_mask": mask}
        if self.kind == "kosmos-2.5":
            patches = self._packed(pixels)["pixel_values"]
            return {"flattened_patches": torch.cat([_places()[None].float(), patches], dim=-1)}
        if self.kind in _TILED:
            size = torch.tensor([[side, side]])
            return {"pixel_values": pixels.repeat(2, 1, 1, 1)[None], "image_sizes": size}
        if self.kind in ("mistral3", "lighton_ocr", "mistral_large4"):
            return {"pixel_values": pixels, "image_sizes": torch.tensor([[side, side]])}
        if self.kind in ("lfm2_vl", "lfm3_vl"):
            return self._packed(pixels)
        if "pixel_values_videos" in self._asks and "pixel_values_images" in self._asks:
            return {"pixel_values_images": pixels}
        if self.kind == "deepseek_vl_hybrid":
            return {"pixel_values": pixels, "high_res_pixel_values": pixels}
        return {"pixel_values": pixels}

    def _patches(self, pixels: Tensor) -> dict[str, Tensor]:
        vision = getattr(self.model.config, "vision_config", None)
        patch = getattr(vision, "patch_size", PATCH)
        frames = getattr(vision, "temporal_patch_size", getattr(vision, "patch_temporal", 1)) or 1
        grid = IMAGE // patch
        parts = pixels.unfold(2, patch, patch).unfold(3, patch, patch)  # [1 c g g p p]
        parts = parts.permute(0, 2, 3, 1, 4, 5).reshape(grid * grid, 3, 1, patch, patch)
        flat = parts.expand(-1, -1, frames, -1, -1).reshape(grid * grid, -1)
        if self.kind in ("kimi_k25", "paddleocr_vl"):
            flat = parts[:, :, 0]
        found = {"pixel_values": flat, "image_grid_thw": torch.tensor([[1, grid, grid]])}
        if "image_merge_sizes" in self._asks:
            found["image_merge_sizes"] = torch.tensor([2])
        return found

    def _squares(self, pixels: Tensor, side: int) -> Tensor:
        """Cuts a picture into squares, [square side side channel]."""
        parts = pixels[0].unfold(1, side, side).unfold(2, side, side)  # [c g g side side]
        return parts.permute(1, 2, 3, 4, 0).reshape(-1, side, side, 3)

    def _packed(self, pixels: Tensor) -> dict[str, Tensor]:
        grid = IMAGE // PATCH
        parts = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
        flat = parts.permute(0, 2, 3, 4, 5, 1).reshape(1, grid * grid, -1)
        return {
            "pixel_values": flat,
            "pixel_attention_mask": torch.ones(1, grid * grid, dtype=torch.long),
            "spatial_shapes": torch.tensor([[grid, grid]]),
        }

    @torch.no_grad()
    def _count_tokens(self, picture: dict[str, Tensor]) -> int:
        """Asks the model how many features it makes of a picture."""
        if self.kind in ("mllama", "blip", "idefics"):
            return 1
        if self.kind == "git":  # lays the picture in front of the text by itself
            return 0
        config = self.model.config
        queries = getattr(config, "num_query_tokens", getattr(config, "latent_query_num", None))
        if queries:
            return int(queries)
        asked = getattr(self.model, "get_image_features", None)
        if asked is None:
            asked = self.model.base_model.get_image_features
        takes = inspect.signature(asked).parameters
        own = {n: t for n, t in picture.items() if n in takes or "kwargs" in takes}
        given = {name: tensor.to(self.model.device) for name, tensor in own.items()}
        answer: Any = asked(**given)
        found = getattr(answer, "pooler_output", None)
        found = getattr(answer, "last_hidden_state", None) if found is None else found
        found = answer if found is None else found
        if hasattr(found, "deepstack_features"):
            found = found.deepstack_features[0][1]
        if hasattr(found, "image_embeds"):
            found = found.image_embeds
        if isinstance(found, tuple | list):
            found = torch.cat([one.flatten(0, -2) for one in found])
        return int(found.numel() // found.shape[-1])


def _places() -> Tensor:
    """Says where each of a picture's patches lies, [patch 2]."""
    side = torch.arange(IMAGE // PATCH)
    return torch.cartesian_prod(side, side)
