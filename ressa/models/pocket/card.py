"""What a pocket model's training came to: `training.json`, and the model card made from it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from ressa.models.pocket.recipe import COLOURS, SHAPES, TRAINING_SPLITS, Recipe
from ressa.sparsity import Inventory

_BLURBS = {
    "pocket-blip2": "BLIP-2: a ViT of 3 layers, a Q-Former of 2 layers with 4 queries, and a T5 of "
    "2 + 2 layers, all 64 wide (`Blip2ForConditionalGeneration`)",
    "pocket-llava": "LLaVA: CLIP's ViT of 3 layers, a two-layer projector and a Llama decoder of 2 "
    "layers, all 64 wide (`LlavaForConditionalGeneration`)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training: its seed, what it took and what it reached; scores as in `evaluate`."""

    seed: int
    shipped: bool
    cpu_seconds: float
    """Process time on one thread, from reading the pictures to the last step."""
    processor: str
    validation: dict[str, float]
    test: dict[str, float]


def read_runs(folder: Path) -> list[Run]:
    """Reads the runs that earlier seeds left in a model's folder."""
    path = folder / "training.json"
    if not path.is_file():
        return []
    return [Run(**run) for run in json.loads(path.read_text(encoding="utf-8"))]


def write_runs(folder: Path, runs: Sequence[Run]) -> None:
    """Writes `training.json`."""
    text = json.dumps([asdict(run) for run in runs], indent=2)
    (folder / "training.json").write_text(text + "\n", encoding="utf-8")


def model_card(
    name: str, recipe: Recipe, runs: Sequence[Run], inventory: Inventory, floor: dict[str, float]
) -> str:
    """Writes MODEL_CARD.md.

    Args:
        name: "pocket-blip2" or "pocket-llava".
        recipe: how it was trained.
        runs: one a seed, one of them shipped.
        inventory: what the model's parts hold.
        floor: test scores of the majority answer to each question, which sees no picture.
    """
    parts = [_what(name, inventory), _data(), _recipe(recipe), _results(runs, floor), _LIMITS]
    return "\n\n".join([f"# {name}", *parts])


def _what(name: str, inventory: Inventory) -> str:
    sizes = ", ".join(f"{part} {count:,}" for part, count in inventory.parameters.items())
    vision, language = inventory.prunable("vision"), inventory.prunable("language")
    return f"""A small vision-language model that answers questions about pictures of one coloured
shape. It exists so that pruning and repair can be tried on real weights and real data in minutes on
a CPU.

{_BLURBS[name]}.
{inventory.whole:,} parameters ({sizes}), of which
{vision:,} in the vision tower and {language:,} in the language model can be pruned.
Pictures are 64x64 pixels; the tokenizer knows whole lower-case words. Trained from scratch, without
anyone else's weights; Apache-2.0 like the rest of `ressa`.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
```

The prompt is the folder's chat template (`ressa.models.VLM.prompt` applies it): the question, for
LLaVA after `<image>`. The answer is one word."""


def _data() -> str:
    return f"""## Data

[easy-VQA](https://github.com/vzhou842/easy-VQA) 1.0, MIT licence: 5,000 pictures, 48,248 questions,
13 answers. The official training pictures are dealt by number to train (3,400 pictures),
calibration (200) and validation (400); the official test set (1,000 pictures, 9,673 questions) is
the test split. Training used {" and ".join(TRAINING_SPLITS)}. The recipe was chosen on validation;
test was read once a seed, after the last step. (The recipe's starting point, an earlier trial of
other models, had watched test.) Shape ({len(SHAPES)}) and colour ({len(COLOURS)})
labels of the first stage were read off the training questions and answers."""


def _recipe(recipe: Recipe) -> str:
    return f"""## Recipe

`ressa/models/pocket/recipe.py`; `make pocket` repeats it. One thread, float32, AdamW (betas 0.9,
0.98, weight decay 0.01), gradients clipped at 1, linear warm-up over 40 steps, then a cosine to
zero, which is also when to stop: the last step counts. Each step sees 64 pictures, mirrored and
shifted by up to 6 pixels at random.

1. {recipe.vision_steps} steps: the vision tower's class token names shape and colour through a
   linear head that is thrown away (learning rate {recipe.vision_learning_rate}).
2. {recipe.joint_steps} steps: the whole model answers {recipe.questions_per_image} questions a
   picture, cross-entropy on the answer's tokens plus {recipe.auxiliary_weight} times the loss of
   stage 1 (learning rate {recipe.joint_learning_rate}, for the vision tower times
   {recipe.joint_vision_factor})."""


def _results(runs: Sequence[Run], floor: dict[str, float]) -> str:
    shipped = next((run.seed for run in runs if run.shipped), "none")
    middle = median(run.test["exact_match"] for run in runs)
    cells = " | ".join(["majority answer", "", "", *_test_cells(floor)])
    return "\n".join(
        [
            "## Results",
            "",
            "Greedy decoding; exact match of the whole answer, on test unless said otherwise.",
            "Balanced accuracy is the mean recall over the 13 answers. The last row answers each",
            "question with its most frequent training answer.",
            "",
            f"| {' | '.join(_COLUMNS)} |",
            f"|{'---|' * len(_COLUMNS)}",
            *(_row(run) for run in runs),
            f"| {cells} |",
            "",
            f"Median of {len(runs)} seeds, test exact match: **{middle:.2%}**. Seed {shipped} is",
            "shipped because it is the first, whatever the others reach; its validation score",
            "settled the recipe, which the other seeds then repeated.",
            "CPU-seconds are process time of one thread on a shared machine",
            f"({runs[0].processor}).",
        ]
    )


_COLUMNS = (
    *("seed", "CPU-seconds", "validation", "test", "balanced", "shape", "color", "yes-no"),
    "malformed",
)


def _row(run: Run) -> str:
    mark = " (shipped)" if run.shipped else ""
    validation = f"{run.validation['exact_match']:.2%}"
    cells = [f"{run.seed}{mark}", f"{run.cpu_seconds:.0f}", validation, *_test_cells(run.test)]
    return f"| {' | '.join(cells)} |"


def _test_cells(scores: dict[str, float]) -> list[str]:
    kinds = [f"exact_match/{kind}" for kind in ("shape", "color", "yes-no")]
    names = ["exact_match", "balanced_accuracy", *kinds, "malformed"]
    return [f"{scores[name]:.2%}" for name in names]


_LIMITS = """## Limits

It knows 13 answers, 28 words and pictures with one shape on a plain ground; anything else gets a
confident wrong answer. It says nothing about how large models react to pruning: it is a bench to
try methods on. Guessing from the question alone is right two times out of three, so read balanced
accuracy and the floors beside any exact match.
"""
