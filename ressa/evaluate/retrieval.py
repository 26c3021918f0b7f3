"""Retrieval by BLIP-2's image-text matching model, looking through the model's own vision tower.

The matching model (transformers' `Blip2ForImageTextRetrieval`, such as Salesforce's
blip2-itm-vit-g-coco) keeps its Q-Former, heads and last layer norm; pictures go through the vision
tower of the model that is scored, pruned as it is. So the scores measure that tower alone. Its
position embeddings are interpolated to the matching model's picture size.

As in the paper's code every picture and caption is embedded; for each, the nearest `rerank` are
scored by matching, log-odds plus similarity, and all others stand behind them. All of that is in
float32, lest rounding make many score the same. Of those that do any order is as good: a recall is
its mean over all orders.

Dimensions: image, caption; place = the vision tower's tokens; query = the Q-Former's; dim = of the
shared embedding.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ressa.errors import EvaluationError, SpecError
from ressa.evaluate.answers import Answer, Measure, Own
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
        """Returns of each caption the picture found first; and of its picture, and of the best of
        that picture's own captions, how many others score higher and how many the same.
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
        is_own = owner[:, None] == torch.arange(len(images))  # [caption image]
        of_image = _places(scores_of_captions, is_own)
        of_captions = _places(scores_of_images, is_own.T)[owner]
        first = scores_of_captions.argmax(dim=1).tolist()
        places = torch.cat([of_image, of_captions], dim=1).tolist()
        return [Answer(images[one], tuple(found)) for one, found in zip(first, places, strict=True)]

    def score(
        self, task: Any, examples: Sequence[Example], answers: Sequence[Answer]
    ) -> tuple[Scores, list[Own]]:
        """Returns `tr1`, `tr5`, `tr10`: shares of pictures with one of their captions that high;
        and `ir1`, …: shares of captions with their picture that high.
        """
        images = [example.image_id for example in examples]
        of_image = [answer.values[:2] for answer in answers]
        of_captions = {e.image_id: a.values[2:] for e, a in zip(examples, answers, strict=True)}
        scores: Scores = {}
        for rank in _RANKS:
            for name, places, clusters in (
                ("tr", list(of_captions.values()), list(of_captions)),
                ("ir", of_image, images),
            ):
                found = [_recall(rank, *place) for place in places]
                scores[f"{name}{rank}"], error = mean_and_error(found, clusters)
                scores[f"{name}{rank}_standard_error"] = error
        own = [
            Own(_recall(1, *a.values[:2]), image_value=_recall(1, *a.values[2:])) for a in answers
        ]
        return scores, own


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
        self.model, self.processor = _load(name, revision)
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
                    scores[part] = odds.cpu() + near[number[image], part]
                rows.append(scores)
            return rows

        # Each picture is matched where it was seen: its features stay on one worker.
        every = torch.stack(spread(images, match))
        behind = torch.full_like(every, _BEHIND)
        return torch.where(of_image, every, behind), torch.where(of_caption, every, behind).T

    def features(self, pictures: Sequence[Any]) -> Float[Tensor, "image place hidden"]:
        """Returns what the VLM's vision tower makes of pictures, in the matching model's size.

        Without its last layer norm: the matching model has its own, in LAVIS the Q-Former's.
        """
        pixels = self.processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"]
        tower: Any = self.vlm.vision_tower
        grows = pixels.shape[-1] != tower.config.image_size
        with _without_norm(tower):
            seen = tower(
                pixel_values=pixels.to(self.device, self.vlm.model.dtype),
                interpolate_pos_encoding=grows,
            )
        features: Tensor = seen.last_hidden_state
        return features

    def _normed(self, features: Tensor) -> Tensor:
        norm = self.model.vision_model.post_layernorm
        found: Tensor = norm(features.to(self.device, norm.weight.dtype))
        return found

    def image_embeddings(
        self, features: Float[Tensor, "image place hidden"]
    ) -> Float[Tensor, "image query dim"]:
        """Returns the embeddings of pictures' queries, of length 1."""
        queries = self.model.query_tokens.expand(len(features), -1, -1)
        out = self.model.qformer(
            query_embeds=queries, encoder_hidden_states=self._normed(features)
        ).last_hidden_state
        return functional.normalize(self.model.vision_projection(out), dim=-1)

    def caption_embeddings(self, captions: Sequence[str]) -> Float[Tensor, "caption dim"]:
        """Returns the embeddings of captions, of length 1."""
        tokens, mask = self._tokens(captions)
        out = self.model.qformer(
            query_embeds=self.model.embeddings(input_ids=tokens),
            query_length=0,
            attention_mask=mask,
        ).last_hidden_state
        return functional.normalize(self.model.text_projection(out[:, 0]), dim=-1)

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
            encoder_hidden_states=self._normed(features).expand(len(captions), -1, -1),
        ).last_hidden_state
        logits: Tensor = self.model.itm_head(out[:, : queries.shape[1]]).mean(dim=1)[:, 1]
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
def _without_norm(tower: Any) -> Iterator[None]:
    """Takes a tower's last layer norm away for a while."""
    kept = tower.post_layernorm
    tower.post_layernorm = torch.nn.Identity()
    try:
        yield
    finally:
        tower.post_layernorm = kept


@lru_cache(maxsize=1)
def _load(name: str, revision: str | None) -> tuple[Any, Any]:
    from transformers import AutoProcessor, Blip2ForImageTextRetrieval

    try:
        with reading(ModelRef(id=name, revision=revision), weights=True) as (source, options):
            model = Blip2ForImageTextRetrieval.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True, **options
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


def _places(scores: Float[Tensor, "one other"], is_own: Tensor) -> Tensor:
    """Returns how many others score higher than the best of each row's own, and as high, [one 2].

    Of a row whose own were no candidates all others score higher: those that were none either score
    the same, and would leave it a place right behind the candidates, found among the first ten if
    those are fewer. Of scores that are no numbers there are no places: NaN.
    """
    best = scores.masked_fill(~is_own, -torch.inf).amax(dim=1, keepdim=True)
    higher = ((scores > best) & ~is_own).sum(dim=1)
    same = ((scores == best) & ~is_own).sum(dim=1)
    was_candidate = best[:, 0] > _BEHIND
    places = torch.stack([higher.where(was_candidate, scores.shape[1]), same], dim=1).double()
    return places.masked_fill(scores.isnan().any(dim=1, keepdim=True), torch.nan)


def _recall(rank: int, higher: float, same: float) -> float:
    """Returns how often it is among the first, over all orders of what scores the same."""
    share = (rank - higher) / (1 + same)
    return share if math.isnan(share) else min(1.0, max(0.0, share))


def _chunks(items: Sequence[Any], size: int) -> Iterator[Any]:
    return (items[start : start + size] for start in range(0, len(items), size))
