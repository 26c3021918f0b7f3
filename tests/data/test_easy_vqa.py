from itertools import groupby

import numpy as np
import pytest

from ressa.data.easy_vqa import DataError, EasyVQA
from ressa.evaluate import closed_scores
from ressa.records import Example
from ressa.testing import TaskContract

SIZES = {
    "train": (3400, 32759),
    "calibration": (200, 1917),
    "validation": (400, 3899),
    "test": (1000, 9673),
}


@pytest.fixture(scope="module")
def task() -> EasyVQA:
    return EasyVQA()


class TestEasyVQAKeepsTheContract(TaskContract):
    task = EasyVQA


class Leaking(EasyVQA):
    """Scores on pictures that it learns from."""

    def examples(
        self, split: str, samples: int | None = None, seed: int = 0
    ) -> tuple[Example, ...]:
        return super().examples("train" if split == "validation" else split, samples, seed)


def test_the_contract_catches_a_task_whose_splits_share_pictures() -> None:
    splits = {split: Leaking().examples(split) for split in Leaking.splits}
    contract = type("Contract", (TaskContract,), {"task": Leaking})()
    with pytest.raises(AssertionError):
        contract.test_no_picture_is_in_two_splits(splits)


def test_splits_have_the_documented_sizes(task: EasyVQA) -> None:
    for split, (images, questions) in SIZES.items():
        examples = task.examples(split)
        assert len(examples) == questions
        assert len({e.image_id for e in examples}) == images


def test_no_picture_and_no_question_is_in_two_splits(task: EasyVQA) -> None:
    images = [name for split in task.splits for name in {e.image_id for e in task.examples(split)}]
    assert len(images) == len(set(images)) == 5000
    ids = [e.id for split in task.splits for e in task.examples(split)]
    assert len(ids) == len(set(ids)) == 48248


def test_a_draw_is_the_same_for_the_same_seed_and_another_for_another(task: EasyVQA) -> None:
    draw = task.examples("validation", 300, seed=1)
    assert draw == task.examples("validation", 300, seed=1)
    assert {e.id for e in draw} != {e.id for e in task.examples("validation", 300, seed=2)}
    assert len(draw) == len({e.id for e in draw}) == 300


def test_a_longer_draw_begins_with_the_shorter_one(task: EasyVQA) -> None:
    assert task.examples("train", 500, seed=4)[:100] == task.examples("train", 100, seed=4)


def test_a_draw_keeps_pictures_whole_and_cuts_only_the_last(task: EasyVQA) -> None:
    draw = task.examples("calibration", 333, seed=7)
    drawn = [(k, len(list(g))) for k, g in groupby(e.image_id for e in draw)]
    whole = {k: len(list(g)) for k, g in groupby(e.image_id for e in task.examples("calibration"))}
    assert len({k for k, _ in drawn}) == len(drawn)
    assert all(whole[k] == count for k, count in drawn[:-1])


def test_a_remembered_draw_has_not_moved(task: EasyVQA) -> None:
    # Remembered from Python 3.11, so that a draw is the same on every machine and from now on.
    first = task.examples("validation", 3, seed=0)
    assert [e.id for e in first] == ["train/11214", "train/11215", "train/11216"]


@pytest.mark.parametrize("samples", [0, -1, 1918])
def test_more_examples_than_there_are_is_an_error_with_numbers(task: EasyVQA, samples: int) -> None:
    with pytest.raises(DataError, match="1917"):
        task.examples("calibration", samples)


def test_an_unknown_split_is_an_error_that_names_the_splits(task: EasyVQA) -> None:
    with pytest.raises(DataError, match="validation"):
        task.examples("dev")


def test_every_answer_is_one_of_the_thirteen_and_its_kind_fits(task: EasyVQA) -> None:
    assert len(task.answers) == 13
    kinds = {(e.answer, e.kind) for s in task.splits for e in task.examples(s)}
    assert {answer for answer, _ in kinds} == set(task.answers)
    assert len(kinds) == 13
    assert {kind for _, kind in kinds} == {"shape", "color", "yes-no"}


def test_pictures_are_rgb_and_of_one_size(task: EasyVQA) -> None:
    for image_id in ("train/0", "test/999"):
        assert (task.image(image_id).mode, task.image(image_id).size) == ("RGB", (64, 64))


def test_the_blank_picture_has_the_mean_colour_of_the_train_split(task: EasyVQA) -> None:
    names = sorted({e.image_id for e in task.examples("train")})
    means = [np.asarray(task.image(name)).mean(axis=(0, 1)) for name in names]
    colour = tuple(int(channel) for channel in np.mean(means, axis=0).round())
    assert task.blank_image().getcolors() == [(64 * 64, colour)]


def test_guessing_from_the_question_alone_scores_two_thirds_on_test(task: EasyVQA) -> None:
    examples = task.examples("test")
    floor = closed_scores(
        examples, [task.majority_answer(e.question) for e in examples], task.answers
    )
    assert floor["exact_match"] == pytest.approx(0.6680, abs=5e-5)
    assert floor["malformed"] == 0


def test_an_unseen_question_gets_the_commonest_answer_of_all(task: EasyVQA) -> None:
    assert task.majority_answer("is it raining?") == task.majority_answer("another?") == "yes"
