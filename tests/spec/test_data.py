"""The `data` section: what it completes, and what it refuses with its line."""

import pytest

from ressa.errors import SpecError
from ressa.spec import spec_from_yaml
from ressa.spec.data import slice_of

MINE = """
data:
  mine: {task: vqa, format: vqav2, path: somewhere}
"""
SCORED = MINE + "evaluate: [{task: mine, samples: null}]\n"


def test_a_data_set_is_completed_by_its_task_and_format(load, least):
    spec = load(least + SCORED).spec
    source = spec.data["mine"]
    assert source.prompt == "Question: {} Short answer:"
    assert (source.decoding.beams, source.decoding.length_penalty) == (5, -1.0)
    assert source.splits["validation"] == "val2014"
    assert spec.objective.maximize == "mine.accuracy"
    assert spec.evaluate[0].samples is None
    assert spec_from_yaml(spec.to_yaml()) == spec


def test_several_tasks_are_searched_by_their_mean(load, least):
    both = SCORED.replace("}]", "}, {task: easy-vqa}]")
    assert load(least + both).spec.objective.maximize == "easy-vqa.balanced_accuracy"
    more = SCORED.replace("evaluate", "  other: {task: vqa, format: gqa, path: there}\nevaluate")
    more = more.replace("}]", "}, {task: other}]")
    assert load(least + more).spec.objective.maximize == "macro"
    relative = more + "objective: {maximize: mean_relative}\n"
    assert load(least + relative).spec.objective.task == "all"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINE.replace("vqav2", "vqav3"), "data.mine.format: vqa reads vqav2, okvqa, gqa, datasets"),
        (MINE.replace("vqa,", "vqqa,"), "unknown task that reads files 'vqqa'. Did you mean 'vqa'"),
        (MINE.replace("mine", "easy-vqa"), "'easy-vqa' is a task that brings its own data"),
        (MINE.replace("mine", "Mine"), "a name of a-z, 0-9, - and _"),
        (MINE + "evaluate: [{task: vqa}]", "vqa reads files. Say which in the data section"),
        (MINE + "evaluate: [{task: mime}]", "unknown task 'mime'. Did you mean 'mine'?"),
        (
            MINE.replace("vqav2", "datasets").replace("somewhere", "hf://datasets/a/b"),
            "data.mine.revision: a data set on the hub needs the commit",
        ),
        (MINE.replace("path", "prompt: 'a {} b {}', path"), "a text with at most one {}"),
        (MINE.replace("path", "splits: {dev: val}, path"), "of train, calibration, validation"),
        (MINE.replace("path", "splits: {train: 'a[9:3]'}, path"), "a split such as train or"),
        (MINE.replace("vqa, format: vqav2", "retrieval, format: karpathy"), "matching model"),
        (MINE.replace("path", "model: ./gone, path"), "data.mine.model: no folder './gone'"),
        (MINE.replace("path", "model: ., model_revision: a1, path"), "only hub models have revis"),
        (SCORED + "objective: {maximize: macro}", "macro is over several tasks"),
        (SCORED + "objective: {maximize: mine.acuracy}", "Did you mean 'mine.accuracy'?"),
    ],
)
def test_what_is_wrong_with_it_is_said(load, least, text, message):
    with pytest.raises(SpecError) as error:
        load(least + text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "slice_"),
    [
        ("val", ("val", 0, 100)),
        ("train2014[5%:]", ("train2014", 5, 100)),
        ("train[:5%]", ("train", 0, 5)),
        ("val[20%:80%]", ("val", 20, 80)),
    ],
)
def test_slices_are_shares_of_a_split(text, slice_):
    assert slice_of(text) == slice_
