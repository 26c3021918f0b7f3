"""Trains the pocket models again: `python -m ressa.models.pocket [--model NAME] [--seeds 0 1 2]`.

Each model's folder gets what the package ships: weights, tokenizer, processor, inventory.json,
training.json and MODEL_CARD.md. The first seed is the one that is kept, whatever the others reach.
"""

import argparse
import logging
import platform
from pathlib import Path

from ressa.data.easy_vqa import EasyVQA
from ressa.evaluate import closed_scores, predictions
from ressa.models.pocket.card import Run, model_card, read_runs, write_runs
from ressa.models.pocket.recipe import RECIPES, train
from ressa.models.towers import find_towers
from ressa.models.vlm import VLM

log = logging.getLogger("ressa.models.pocket")


def main() -> None:
    """Trains, scores on the validation and test splits, and saves."""
    parser = argparse.ArgumentParser(prog="python -m ressa.models.pocket", description=__doc__)
    parser.add_argument("--model", nargs="+", choices=sorted(RECIPES), default=sorted(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("results/pocket"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    task = EasyVQA()
    for name in arguments.model:
        for seed in arguments.seeds:
            train_and_save(name, seed, task, arguments.out / name, keep=arguments.seeds[0])


def train_and_save(name: str, seed: int, task: EasyVQA, folder: Path, *, keep: int) -> None:
    """Trains one seed, scores it, and adds its figures to the folder; saves the seed to keep."""
    model, processor, cpu_seconds = train(name, seed, task)
    vlm = VLM(name=name, model=model, processor=processor, towers=find_towers(model))
    scores = {}
    for split in ("validation", "test"):
        examples = task.examples(split)
        scores[split] = closed_scores(examples, predictions(vlm, task, examples), task.answers)
    log.info(
        "%s seed %d: %.0f CPU-s, validation %.4f, test %.4f",
        *(name, seed, cpu_seconds),
        *(scores[split]["exact_match"] for split in ("validation", "test")),
    )
    folder.mkdir(parents=True, exist_ok=True)
    if seed == keep:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / "inventory.json").write_text(vlm.towers.inventory.to_json(), encoding="utf-8")
    run = Run(
        seed=seed,
        shipped=seed == keep,
        cpu_seconds=round(cpu_seconds, 1),
        processor=platform.processor() or platform.machine(),
        **scores,
    )
    runs = {**{r.seed: r for r in read_runs(folder)}, seed: run}
    write_runs(folder, sorted(runs.values(), key=lambda r: r.seed))
    card = model_card(name, RECIPES[name], read_runs(folder), vlm.towers.inventory, floor(task))
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")


def floor(task: EasyVQA) -> dict[str, float]:
    """Scores, on the test split, each question's most frequent answer in training."""
    examples = task.examples("test")
    return closed_scores(
        examples, [task.majority_answer(e.question) for e in examples], task.answers
    )


if __name__ == "__main__":
    main()
