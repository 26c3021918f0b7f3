"""Retrieval by BLIP-2's image-text matching model, looking through the model's own vision tower.

The matching model (transformers' `Blip2ForImageTextRetrieval`, such as Salesforce's
blip2-itm-vit-g-coco) keeps its Q-Former, heads and last layer norm; pictures go through the vision
tower of the model that is scored, pruned as it is. So the scores measure that tower alone. Its
position embeddings are interpolated to the matching model's picture size.

As in the paper's code every picture and caption is embedded; for each, the nearest `rerank` are
scored by matching, log-odds plus similarity, and all others stand behind them.

Dimensions: image, caption; place = the vision tower's tokens; query = the Q-Former's; dim = of the
shared embedding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ressa.errors import EvaluationError, SpecError
from ressa.evaluate.answers import Answer, Measure
from ressa.evaluate.metrics import Scores, mean_and_error
from ressa.evaluate.predictions import Keep
from ressa.models.loading import reading
from ressa.models.vlm import VLM
from ressa.records import Example
from ressa.spec import ModelRef
from ressa.workers import agree, spread

_MOST_TOKENS = 35  # of a caption, as in the paper's code
_BEHIND = -100.0  # the score of what was not among the candidates
_RANKS = (1, 5, 10)
_TOWERS = ("Blip2VisionModel", "InstructBlipVisionModel")


class RetrievalMeasure(Measure):
    """Pictures found by captions and captions by pictures."""

    reads_pictures = False

    def answer(
        self,
        vlm: VLM,
        task: Any,
        examples: Sequence[Example],
        *,
        blank: bool,
        keep: Keep | None = None,
    ) -> list[Answer]:
        """Returns of each caption the picture found first, and at which places, from 0, its
        picture and it itself stand.
        """
        source = task.source
        revision = source.model_revision
        matching = Matching(vlm, source.model, source.batch_size, revision=revision)
        images = list(dict.fromkeys(example.image_id for example in examples))
        row = {image: index for index, image in enumerate(images)}
        owner = torch.tensor([row[example.image_id] for example in examples])
        try:
            scores_of_images, scores_of_captions = matching.scores(
                task, images, [example.question for example in examples], source.rerank
            )
        finally:
            matching.model.cpu()  # it is kept for the next trial, whose model wants the GPU
        captions = torch.arange(len(examples))
        image_place = _places(scores_of_captions, owner)
        caption_place = _places(scores_of_images[owner], captions)
        first = scores_of_captions.argmax(dim=1).tolist()
        return [
            Answer(images[best], (float(of_image), float(of_caption)))
            for best, of_image, of_caption in zip(
                first, image_place.tolist(), caption_place.tolist(), strict=True
            )
        ]

    def score(
        self, task: Any, examples: Sequence[Example], answers: Sequence[Answer]
    ) -> tuple[Scores, list[float | None]]:
        """Returns `tr1`, `tr5`, `tr10`: shares of pictures with one of their captions that high;
        and `ir1`, …: shares of captions with their picture that high.
        """
        images = [example.image_id for example in examples]
        image_place = [answer.values[0] for answer in answers]
        best: dict[str, float] = {}
        for image, answer in zip(images, answers, strict=True):
            best[image] = min(best.get(image, answer.values[1]), answer.values[1])
        scores: Scores = {}
        for rank in _RANKS:
            for name, places, clusters in (
                ("tr", list(best.values()), list(best)),
                ("ir", image_place, images),
            ):
                found = [float(place < rank) for place in places]
                scores[f"{name}{rank}"], error = mean_and_error(found, clusters)
                scores[f"{name}{rank}_standard_error"] = error
        return scores, [float(place < 1) for place in image_place]


class Matching:
    """The matching model, with a VLM's vision tower in place of its own.

    Args:
        vlm: whose vision tower is looked through.
        name: folder or hub id of the matching model.
        batch_size: pictures, captions or pairs per forward pass.
        revision: commit of the matching model, if it is on the hub.

    Raises:
        EvaluationError: the matching model cannot be loaded, or the vision tower does not fit it.
    """

    def __init__(
        self, vlm: VLM, name: str, batch_size: int, *, revision: str | None = None
    ) -> None:
        self.vlm, self.batch_size = vlm, batch_size
        self.model, self.processor = _load(name, revision, vlm.model.dtype)
        self.device: torch.device = vlm.model.device
        self.model.to(self.device)
        tower, wanted = vlm.vision_tower, self.model.config.vision_config.hidden_size
        width = getattr(getattr(tower, "config", None), "hidden_size", None)
        if type(tower).__name__ not in _TOWERS or width != wanted:
            raise EvaluationError(
                f"retrieval looks through the vision tower of BLIP-2 and InstructBLIP, {wanted} "
                f"wide for {name}; {vlm.name} has {type(tower).__name__}, {width} wide. Leave "
                "retrieval out of evaluate for this model.",
                "data",
            )

    @torch.no_grad()
    def scores(
        self, task: Any, images: Sequence[str], captions: Sequence[str], rerank: int
    ) -> tuple[Float[Tensor, "image caption"], Float[Tensor, "caption image"]]:
        """Scores each picture's nearest captions, and each caption's nearest pictures."""
        seen: dict[str, Tensor] = {}

        def embed_images(own: Sequence[str]) -> list[Tensor]:
            found: list[Tensor] = []
            for part in _chunks(own, self.batch_size):
                features = self.features([task.image(image) for image in part])
                seen.update(zip(part, features.cpu(), strict=True))
                found += self.image_embeddings(features).cpu()
            return found

        def embed_captions(own: Sequence[str]) -> list[Tensor]:
            parts = _chunks(own, self.batch_size)
            return [row for part in parts for row in self.caption_embeddings(part).cpu()]

        queries = torch.stack(spread(images, embed_images))  # [image query dim]
        texts = torch.stack(spread(captions, embed_captions))  # [caption dim]
        near = torch.stack([(rows @ texts.T).amax(dim=0) for rows in queries])  # [image caption]
        near = agree(near)  # lest processors that round differently choose other candidates
        of_image = _nearest(near, rerank)
        of_caption = _nearest(near.T, rerank).T
        wanted = of_image | of_caption  # [image caption]
        number = {image: index for index, image in enumerate(images)}

        def match(own: Sequence[str]) -> list[Tensor]:
            rows = []
            for image in own:
                candidates = wanted[number[image]].nonzero().flatten().tolist()
                scores = torch.full((len(captions),), _BEHIND)
                for part in _chunks(candidates, self.batch_size):
                    odds = self.match(seen[image], [captions[index] for index in part])
                    scores[part] = odds.float().cpu() + near[number[image], part]
                rows.append(scores)
            return rows

        # Each picture is matched where it was seen: its features stay on one worker.
        every = torch.stack(spread(images, match))
        behind = torch.full_like(every, _BEHIND)
        return torch.where(of_image, every, behind), torch.where(of_caption, every, behind).T

    def features(self, pictures: Sequence[Any]) -> Float[Tensor, "image place hidden"]:
        """Returns what the VLM's vision tower makes of pictures, in the matching model's size."""
        pixels = self.processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"]
        tower: Any = self.vlm.vision_tower
        grows = pixels.shape[-1] != tower.config.image_size
        with self._own_norm(tower):
            seen = tower(
                pixel_values=pixels.to(self.device, self.vlm.model.dtype),
                interpolate_pos_encoding=grows,
            )
        features: Tensor = seen.last_hidden_state
        return features

    def image_embeddings(
        self, features: Float[Tensor, "image place hidden"]
    ) -> Float[Tensor, "image query dim"]:
        """Returns the embeddings of pictures' queries, of length 1."""
        queries = self.model.query_tokens.expand(len(features), -1, -1)
        out = self.model.qformer(
            query_embeds=queries, encoder_hidden_states=features.to(queries.dtype)
        ).last_hidden_state
        weight = self.model.vision_projection.weight
        return functional.normalize(self.model.vision_projection(out.to(weight.dtype)), dim=-1)

    def caption_embeddings(self, captions: Sequence[str]) -> Float[Tensor, "caption dim"]:
        """Returns the embeddings of captions, of length 1."""
        tokens, mask = self._tokens(captions)
        out = self.model.qformer(
            query_embeds=self.model.embeddings(input_ids=tokens),
            query_length=0,
            attention_mask=mask,
        ).last_hidden_state
        weight = self.model.text_projection.weight
        first = out[:, 0].to(weight.dtype)
        return functional.normalize(self.model.text_projection(first), dim=-1)

    def match(
        self, features: Float[Tensor, "place hidden"], captions: Sequence[str]
    ) -> Float[Tensor, " caption"]:
        """Returns the matching head's logit that a picture and each caption belong together."""
        tokens, mask = self._tokens(captions)
        queries = self.model.query_tokens.expand(len(captions), -1, -1)
        out = self.model.qformer(
            query_embeds=self.model.embeddings(input_ids=tokens, query_embeds=queries),
            query_length=queries.shape[1],
            attention_mask=torch.cat([mask.new_ones(queries.shape[:2]), mask], dim=1),
            encoder_hidden_states=features.to(self.device, queries.dtype).expand(
                len(captions), -1, -1
            ),
        ).last_hidden_state
        heads = self.model.itm_head(out[:, : queries.shape[1]].to(self.model.itm_head.weight.dtype))
        logits: Tensor = heads.mean(dim=1)[:, 1]
        return logits

    def _tokens(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = self.processor.tokenizer(
            list(captions),
            padding=True,
            truncation=True,
            max_length=_MOST_TOKENS,
            return_tensors="pt",
        )
        return encoded["input_ids"].to(self.device), encoded["attention_mask"].to(self.device)

    @contextmanager
    def _own_norm(self, tower: Any) -> Iterator[None]:
        """Lends the tower the matching model's last layer norm: in LAVIS it is the Q-Former's."""
        kept = tower.post_layernorm
        tower.post_layernorm = self.model.vision_model.post_layernorm
        try:
            yield
        finally:
            tower.post_layernorm = kept


@lru_cache(maxsize=1)
def _load(name: str, revision: str | None, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoProcessor, Blip2ForImageTextRetrieval

    try:
        with reading(ModelRef(id=name, revision=revision), weights=True) as (source, options):
            model = Blip2ForImageTextRetrieval.from_pretrained(
                source, dtype=dtype, use_safetensors=True, **options
            )
            processor = AutoProcessor.from_pretrained(source, **options)
    except SpecError as error:
        raise EvaluationError(
            f"the matching model: {error} Give the folder of a copy in data.*.model.", "data"
        ) from error
    model.vision_model.encoder = torch.nn.Identity()  # never looked through: give its memory back
    return model.eval(), processor


def _nearest(near: Float[Tensor, "one other"], count: int) -> Tensor:
    """Marks the nearest `count` of each row."""
    marked = torch.zeros_like(near, dtype=torch.bool)
    index = near.topk(min(count, near.shape[1]), dim=1).indices
    return marked.scatter_(1, index, True)


def _places(scores: Float[Tensor, "one other"], right: Tensor) -> Tensor:
    """Returns how many others score higher than each row's right one; all, if it was no candidate.

    Others that were none score the same, and would leave it a place right behind the candidates:
    found among the first ten, if those are fewer.
    """
    own = scores.gather(1, right[:, None])
    places = (scores > own).sum(dim=1)
    return places.where(own[:, 0] > _BEHIND, scores.shape[1])


def _chunks(items: Sequence[Any], size: int) -> Iterator[Any]:
    return (items[start : start + size] for start in range(0, len(items), size))
