"""What a process keeps of its questions: as much as it may, and otherwise one batch at a time."""

from functools import partial

import pytest
import torch
from PIL import Image

from ressa import kept
from ressa.data.easy_vqa import EasyVQA
from ressa.evaluate import predictions
from ressa.records import TrialSpec
from ressa.spec import spec_from_mapping
from ressa.sweep.plan import make_plan

torch.set_num_threads(1)


class Opened(EasyVQA):
    """Easy-VQA, which notes the pictures that it opens."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def image(self, image_id: str) -> Image.Image:
        self.events.append(image_id)
        return super().image(image_id)


@pytest.fixture(scope="module")
def trial() -> TrialSpec:
    space = {"vision_sparsity": 0.5, "language_sparsity": 0.5}
    content = {"ressa": 1, "model": "pocket-blip2", "space": space}
    return make_plan(spec_from_mapping(content).spec).trial(dict.fromkeys(space, "0.5"))


def ask_twice(trial: TrialSpec) -> tuple[list[str], list[str]]:
    """What happens as 20 questions are asked 7 at a time, and asked again."""
    own, task = kept.Kept(), Opened()
    vlm = own.dense(trial)
    hook = vlm.vision_tower.register_forward_hook(lambda *_: task.events.append("answer"))
    keep = partial(own.encoded, "questions")
    examples = task.examples("validation", 20)
    answers, happened = [], []
    for _ in range(2):
        answers.append(predictions(vlm, task, examples, batch_size=7, keep=keep))
        happened.append(task.events.copy())
        task.events.clear()
    hook.remove()
    assert answers[0] == answers[1]
    return happened[0], happened[1]


def test_questions_become_tensors_once(trial: TrialSpec) -> None:
    first, second = ask_twice(trial)
    assert set(first) > {"answer"}
    assert set(second) <= {"answer"}, "no picture is opened again"


@pytest.mark.parametrize(
    ("limit", "size"), [("_MODEL_BYTES", 0), ("_BATCH_BYTES", 0), ("_BATCH_BYTES", 100_000)]
)
def test_where_all_are_too_much_each_batch_is_answered_before_the_next_is_made(
    trial: TrialSpec, monkeypatch: pytest.MonkeyPatch, limit: str, size: int
) -> None:
    monkeypatch.setattr(kept, limit, size)
    for events in ask_twice(trial):
        *made, last = (part.split() for part in " ".join(events).split("answer"))
        assert len(made) > 2
        assert all(made), "pictures are opened before each answer"
        assert not last
