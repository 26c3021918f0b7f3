from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from few import FewPictures

from ressa.catalog import MODELS
from ressa.data.easy_vqa import EasyVQA
from ressa.models import load_vlm
from ressa.models.pocket import __main__ as command
from ressa.models.pocket.card import model_card, read_runs
from ressa.models.pocket.recipe import RECIPES

POCKET = ["pocket-blip2", "pocket-llava"]


@pytest.mark.parametrize("name", POCKET)
def test_what_ships_was_trained_well_enough_and_fast_enough(name: str) -> None:
    runs = read_runs(MODELS[name].folder)
    assert [run.seed for run in runs] == [0, 1, 2]
    assert [run.shipped for run in runs] == [True, False, False]
    assert runs[0].test["exact_match"] >= 0.97
    assert median(run.test["exact_match"] for run in runs) >= 0.97
    assert all(run.cpu_seconds <= 20 * 60 for run in runs)


@pytest.mark.parametrize("name", POCKET)
def test_the_model_card_says_what_the_records_say(name: str) -> None:
    folder = MODELS[name].folder
    inventory, floor = MODELS[name].inventory(), command.floor(EasyVQA())
    card = model_card(name, RECIPES[name], read_runs(folder), inventory, floor)
    assert (folder / "MODEL_CARD.md").read_text(encoding="utf-8") == card


def test_training_again_leaves_a_folder_like_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "pocket-llava"
    monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], vision_steps=1, joint_steps=1))
    for seed in (5, 6):
        command.train_and_save(name, seed, FewPictures(), tmp_path, keep=5)
    shipped = {path.name for path in MODELS[name].folder.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == shipped
    assert [(run.seed, run.shipped) for run in read_runs(tmp_path)] == [(5, True), (6, False)]
    inventory = load_vlm(str(tmp_path)).towers.inventory
    assert inventory == MODELS[name].inventory()
