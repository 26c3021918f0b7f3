"""A difference is told from noise of pictures and seeds; nothing is claimed that was not shown."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from ressa.errors import NotFoundError, SpecError
from ressa.landscape import Allocated, compare, judge
from ressa.landscape.compare import asked, matched
from ressa.landscape.items import Items, read_items
from ressa.landscape.significance import allocations, holm, mcnemar, same_checkpoints
from ressa.landscape.verdicts import EQUAL_QUESTION, LANGUAGE_QUESTION, ask
from ressa.spec import load_spec
from ressa.store import SweepStore, open_store

A, B = ("s", "a"), ("s", "b")


def _items(values: list[list[float]], pictures: list[int], strata: list[int]) -> Items:
    return Items(
        runs=(A, B)[: len(values)],
        values=np.array(values, float),
        picture=np.array(pictures),
        stratum=np.array(strata),
    )


def _random_items(pictures: int = 40, strata: int = 3) -> Items:
    draw = np.random.default_rng(0)
    count = pictures * 5
    return Items(
        runs=(A, B),
        values=draw.integers(0, 2, (2, count)).astype(float),
        picture=np.repeat(np.arange(pictures), 5),
        stratum=draw.integers(0, strata, count),
    )


def test_a_score_is_the_mean_over_strata_of_their_means() -> None:
    items = _items([[1, 1, 1, 0], [0, 0, 0, 1]], [0, 0, 1, 1], [0, 0, 0, 1])
    assert items.scores.tolist() == [0.5, 0.5]
    assert items.said.mean(axis=1) == pytest.approx(items.scores)


def test_what_pictures_say_has_the_standard_error_of_evaluation() -> None:
    items = _random_items()
    said = items.said[0]
    score, values, strata = items.scores[0], items.values[0], items.stratum
    from ressa.evaluate.metrics import clustered_error

    means = [values[strata == k].mean() for k in range(3)]
    sizes = np.bincount(strata)
    influence = [
        (x - means[k]) / (3 * sizes[k]) for x, k in zip(values, strata.tolist(), strict=True)
    ]
    expected = clustered_error(influence, [str(p) for p in items.picture])
    assert score == pytest.approx(np.mean(means))
    assert said.std(ddof=1) / len(said) ** 0.5 == pytest.approx(expected)


def test_resamples_spread_as_the_standard_error_says() -> None:
    items = _random_items(pictures=200, strata=1)
    drawn = items.resampled(2000, seed=1)
    expected = items.said.std(axis=1, ddof=1) / 200**0.5
    assert drawn.std(axis=0) == pytest.approx(expected, rel=0.1)
    assert drawn.mean(axis=0) == pytest.approx(items.scores, abs=0.005)


def test_equal_answers_are_no_difference() -> None:
    items = _random_items()
    same = Items(
        runs=items.runs,
        values=items.values[[0, 0]],
        picture=items.picture,
        stratum=items.stratum,
    )
    found = same_checkpoints(same, A, B)
    assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_pictures_are_drawn_whole() -> None:
    """Ten questions that always go together count as one, not as ten."""
    draw = np.random.default_rng(1)
    right = draw.integers(0, 2, (2, 60)).astype(float)
    one = _items(right.tolist(), list(range(60)), [0] * 60)
    ten = _items(
        np.repeat(right, 10, axis=1).tolist(), np.repeat(range(60), 10).tolist(), [0] * 600
    )
    assert same_checkpoints(one, A, B).standard_error == pytest.approx(
        same_checkpoints(ten, A, B).standard_error, rel=1e-9
    )


def test_mcnemars_test_is_for_one_question_a_picture_alone() -> None:
    right = [[1, 1, 1, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 1, 0, 0]]
    one_each = _items(right, list(range(8)), [0] * 8)
    found = same_checkpoints(one_each, A, B)
    assert found.test == "McNemar, exact"
    assert (found.better, found.worse) == (5, 0)
    assert found.p_value == 2 / 2**5
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1
    two_each = _items(right, [0, 0, 1, 1, 2, 2, 3, 3], [0] * 8)
    assert same_checkpoints(two_each, A, B).test == "paired bootstrap over pictures"
    balanced = _items(right, list(range(8)), [0, 1] * 4)
    assert same_checkpoints(balanced, A, B).test == "paired bootstrap over pictures"
    graded = _items([[0.3, *right[0][1:]], right[1]], list(range(8)), [0] * 8)
    assert same_checkpoints(graded, A, B).test == "paired bootstrap over pictures"


def _drawn(seed: int, shift: float, *, runs: int = 5, pictures: int = 200) -> np.ndarray:
    draw = np.random.default_rng(seed)
    of_seeds = draw.normal(0, 0.004, (runs, 1))
    return shift + of_seeds + draw.normal(0, 0.05, (runs, pictures))


def test_variances_of_seeds_and_pictures_are_told_apart() -> None:
    draw = np.random.default_rng(0)
    differences = (
        draw.normal(0, 2, (400, 1)) + draw.normal(0, 3, (1, 300)) + draw.normal(0, 5, (400, 300))
    )
    found = allocations(differences, np.zeros_like(differences))
    both = 25 / (400 * 300)
    assert found.of_seeds == pytest.approx(4 / 400 + both, rel=0.2)
    assert found.of_pictures == pytest.approx(9 / 300, rel=0.2)
    assert found.of_both == pytest.approx(both, rel=0.02)


def test_p_is_the_level_at_which_the_bound_reaches() -> None:
    found = allocations(_drawn(0, 0.81), _drawn(1, 0.8))
    bound = found.low(0.95)
    assert bound < found.value < found.high(0.95)
    assert found.p_above(bound) == pytest.approx(0.05, abs=1e-3)
    assert found.p_below(bound) == pytest.approx(0.95, abs=1e-3)
    assert found.p_above(found.value) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("errors", [2, 10, 50])
def test_p_has_no_least_value_and_is_students_where_only_seeds_differ(errors: float) -> None:
    """Of one allocation against a known number, on the scale of CIDEr."""
    from scipy.stats import t as student

    runs = 2 + np.array([-1.0, 0.0, 1.0, -1.0, 1.0]) * 0.1
    value = runs.mean() - errors * runs.std(ddof=1) / 5**0.5
    found = allocations(np.repeat(runs[:, None], 50, axis=1), np.zeros((5, 50)))
    assert found.p_above(value) == pytest.approx(student.sf(errors, 4), rel=0.03)
    assert found.p_below(value) == pytest.approx(student.cdf(errors, 4), abs=3e-3)


def test_fewer_seeds_reach_less_far() -> None:
    found = allocations(_drawn(0, 0.81), _drawn(1, 0.8))
    assert found.with_seeds(10).high(0.95) < found.high(0.95) < found.with_seeds(3).high(0.95)
    assert found.with_seeds(10).low(0.95) > found.low(0.95) > found.with_seeds(3).low(0.95)


def test_without_any_spread_a_difference_is_certain() -> None:
    found = allocations(np.full((3, 5), 0.25), np.zeros((3, 5)))
    assert (found.p_above(0), found.p_below(0), found.p_above(0.25)) == (0, 1, 1)
    assert found.low(0.95) == found.high(0.95) == 0.25


def test_runs_that_scored_alike_do_not_say_that_all_would() -> None:
    """Three runs at the ceiling, say, of an allocation that falls off a cliff now and then."""
    draw = np.random.default_rng(0)
    below = (draw.random((3, 100)) < 0.95).astype(float)
    alike = np.ones((3, 100))
    assert allocations(alike, below).p_above(0) > 0.01
    nearly = alike.copy()
    nearly[0, 0] = 0
    assert allocations(nearly, below).p_above(0) > 0.01
    same = draw.random((3, 100)) < np.array([[0.8], [0.9], [0.85]])
    shifted = allocations(same - 0.25, same.astype(float))
    assert not shifted.standard_error, "seed by seed the same difference"
    assert shifted.p_below(0) > 0.001


def test_swapped_allocations_differ_by_the_opposite() -> None:
    one, other = _drawn(0, 0.81), _drawn(1, 0.8)
    there, back = allocations(one, other), allocations(other, one)
    assert back.value == pytest.approx(-there.value)
    assert back.low(0.95) == pytest.approx(-there.high(0.95), abs=1e-3)


def test_a_long_tail_towards_the_cliff_is_reckoned_with() -> None:
    """Runs that scatter below a ceiling may have a worse one among those not made."""
    steady = np.repeat([[0.9], [0.901], [0.899]], 400, axis=1)
    scattered = np.repeat([[0.97], [0.93], [0.95]], 400, axis=1)
    found = allocations(scattered, steady)
    assert found.value - found.low(0.95) > 2 * (found.high(0.95) - found.value)


def test_scores_that_are_no_shares_are_taken_as_they_are() -> None:
    cider = allocations(_drawn(0, 1.21), _drawn(1, 1.2))
    assert not cider.one.is_share
    assert allocations(_drawn(0, 0.21), _drawn(1, 0.2)).one.is_share
    width = cider.high(0.95) - cider.low(0.95)
    shifted = allocations(_drawn(0, 2.21), _drawn(1, 2.2))
    assert shifted.high(0.95) - shifted.low(0.95) == pytest.approx(width)


def test_holm_asks_most_of_the_smallest() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []


def _allocated(line: float, vision: float, language: float, said: np.ndarray) -> Allocated:
    seeds = [("c", str(run)) for run in range(len(said))]
    return Allocated(
        line=line,
        name=f"{100 * vision:.0f}:{100 * language:.0f}",
        vision=vision,
        language=language,
        runs={seed: ("c", f"t{at}") for at, seed in enumerate(seeds)},
        said=dict(zip(seeds, said, strict=True)),
    )


def _line(*shifts: float, runs: int = 5) -> list[Allocated]:
    """An equal split, its neighbour and language alone, scores 0.9 plus shifts."""
    splits = ((0.5, 0.5), (0.4, 0.58), (0.0, 0.875))
    return [
        _allocated(0.5, *split, _drawn(at, 0.9 + shift, runs=runs))
        for at, (split, shift) in enumerate(zip(splits, shifts, strict=True))
    ]


def test_near_optimal_is_shown_and_not_assumed() -> None:
    equal, language = judge(_line(0.0, -0.01, -0.1), margin=2, confidence=0.95)
    assert (equal.question, equal.answer) == (EQUAL_QUESTION, "yes")
    assert (language.question, language.answer) == (LANGUAGE_QUESTION, "no")
    assert equal.sentence.startswith("the equal split is near-optimal on line 0.5: yes (")
    assert equal.high_points < 2
    worse, beats = judge(_line(-0.1, -0.05, 0.1), margin=2, confidence=0.95)
    assert (worse.answer, beats.answer) == ("no", "yes")
    assert worse.against == "0:88"


def test_too_few_seeds_decide_nothing() -> None:
    verdicts = judge(_line(-0.3, 0.0, 0.3, runs=2), margin=1, confidence=0.95)
    assert len(verdicts) == 2
    for verdict in verdicts:
        assert verdict.answer == "not decided"
        assert "at least 3 seeds" in verdict.why
        assert verdict.more_trials == 3


def test_what_is_close_needs_more_trials_and_says_how_many() -> None:
    (near, _) = judge(_line(0.0, 0.006, -0.1, runs=3), margin=1, confidence=0.95)
    assert near.answer == "not decided"
    assert near.more_trials is not None
    assert near.more_trials % 3 == 0
    assert f"needs about {near.more_trials} more trials" in near.sentence
    (never, _) = judge(_line(0.0, 0.0, -0.1, runs=3), margin=0.001, confidence=0.95)
    assert never.more_trials is None
    assert "more pictures would" in never.sentence


def test_several_questions_share_one_error() -> None:
    alone = judge(_line(0.0, -0.01, -0.1)[:2], margin=1, confidence=0.95)
    p = alone[0].p_value
    assert p is not None
    assert alone[0].answer == "yes"
    lines = [one for line in range(8) for one in _renamed(_line(0.0, -0.01, -0.1)[:2], line)]
    strict = judge(lines, margin=1, confidence=1 - 4 * p)
    assert {one.answer for one in strict} == {"not decided"}


def _renamed(line: list[Allocated], number: int) -> list[Allocated]:
    return [
        _allocated(0.1 + number / 100, one.vision, one.language, np.stack([*one.said.values()]))
        for one in line
    ]


@pytest.fixture
def answered(tmp_path: Path) -> SweepStore:
    """Two trials and a repeat, with answers to the same questions, two a picture."""
    sweep = open_store(tmp_path, create=True).create_sweep("answered", "")
    for number, right in enumerate(([1, 1, 1, 0, 1, 1], [1, 0, 0, 0, 1, 0])):
        answers = [
            {
                **{"task": "easy-vqa", "split": "validation", "state": "pruned", "image": "real"},
                **{"example_id": f"q{at}", "image_id": f"p{at // 2}", "value": value},
                "true_answer": "yes" if at % 3 else "no",
            }
            for at, value in enumerate(right)
        ]
        sweep.commit("answers", answers, trial=f"t00{number}", epoch=1)
        _finish(sweep, f"t00{number}", state="succeeded")
    _finish(sweep, "t002", state="reused", reused_trial="t001")
    _finish(sweep, "t003", state="failed", metric=None)
    return sweep


def _finish(sweep: SweepStore, trial: str, **row: object) -> None:
    about = {"role": "search", "metric": "easy-vqa.balanced_accuracy", "point": {}}
    sweep.commit("trials", [about | row], trial=trial, epoch=1)


def test_items_are_read_by_question_and_repeats_have_their_originals(answered: SweepStore) -> None:
    trials = answered.trials()
    items = read_items({answered: trials[trials["state"] != "failed"]})
    assert items.runs == (("answered", "t000"), ("answered", "t001"), ("answered", "t002"))
    assert items.pictures == 3
    assert items.scores.tolist() == [0.75, 0.375, 0.375]


def test_two_trials_are_compared_question_by_question(answered: SweepStore) -> None:
    (row,) = compare(answered.store, "answered/t000", "answered/t001", confidence=0.9)
    assert row["difference_points"] == pytest.approx(37.5)
    assert row["low_points"] <= 37.5 <= row["high_points"]
    (back,) = compare(answered.store, "answered/t001", "answered/t000", confidence=0.9)
    assert back["difference_points"] == pytest.approx(-37.5)


def test_sweeps_of_one_sparsity_for_both_towers_are_compared_at_each(tmp_path: Path) -> None:
    store = open_store(tmp_path, create=True)
    for name, order in (("one", (0.3, 0.7)), ("other", (0.7, 0.3))):
        sweep = store.create_sweep(name, "")
        for number, shared in enumerate(order):
            answers = [
                {
                    **{"task": "easy-vqa", "split": "validation", "state": "pruned"},
                    **{"image": "real", "example_id": f"q{at}", "image_id": f"p{at}"},
                    **{"value": at % 2, "true_answer": "yes"},
                }
                for at in range(4)
            ]
            sweep.commit("answers", answers, trial=f"t00{number}", epoch=1)
            _finish(sweep, f"t00{number}", state="succeeded", budget=shared)
    rows = compare(store, "one", "other", confidence=0.95)
    assert [(row["one"], row["other"], row["sparsity"]) for row in rows] == [
        ("one/t000", "other/t001", 0.3),
        ("one/t001", "other/t000", 0.7),
    ]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("19661/49152", "0.4", True), ("0.4", "0.41", False), ("2:4", "0.5", False)],
)
def test_allocations_are_matched_by_what_was_asked_to_three_decimals(
    one: str, other: str, same: bool
) -> None:
    ours, theirs = [[(asked(text), asked("0.5"), None, "")] for text in (one, other)]
    assert bool(matched(ours, theirs)) is same


def test_allocations_of_one_sweep_that_are_close_together_are_compared_each(tmp_path: Path) -> None:
    """As a sampler crowds them at the optimum: 0.4001 and 0.4004 are 0.400 both."""
    store = open_store(tmp_path, create=True)
    for name, targets in (
        ("one", ("0.4001", "0.4004", "0.45")),
        ("other", ("0.4004", "0.40015", "0.6")),
    ):
        sweep = store.create_sweep(name, "")
        for number, target in enumerate(targets):
            answer = {"task": "easy-vqa", "split": "validation", "state": "pruned"}
            answer |= {"image": "real", "example_id": "q", "image_id": "p", "true_answer": "yes"}
            sweep.commit("answers", [answer | {"value": 1}], trial=f"t00{number}", epoch=1)
            asks = {"vision_target": target, "language_target": "0.5"}
            _finish(sweep, f"t00{number}", state="succeeded", **asks)
    rows = compare(store, "one", "other", confidence=0.95)
    assert [(row["one"], row["other"]) for row in rows] == [
        ("one/t000", "other/t001"),
        ("one/t001", "other/t000"),
    ]


@pytest.mark.parametrize(
    ("one", "other", "error", "message"),
    [
        ("answered", "answered/t000", SpecError, "two sweeps or two trials"),
        ("answered/t000", "answered/t000", SpecError, "compared with itself"),
        ("answered/t000", "answered/t09", NotFoundError, "no trial 't09'"),
        ("answered/t000", "answered/t003", NotFoundError, "came to no result: it is failed"),
        ("answered/t000", "answerd/t000", NotFoundError, "Did you mean 'answered'"),
    ],
)
def test_what_cannot_be_compared_is_said(
    answered: SweepStore, one: str, other: str, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        compare(answered.store, one, other, confidence=0.95)


TASKS = """
ressa: 1
model: pocket-blip2
data:
  mine: {task: vqa, format: vqav2, path: /nowhere}
  captions: {task: perplexity, format: karpathy, path: /nowhere}
space: {vision_sparsity: 0.5, language_sparsity: 0.5}
evaluate: [{task: easy-vqa}, {task: mine}]
objective: {maximize: macro}
"""


def end(
    sweep: SweepStore, trial: str, metric: str, rows: list[dict], dense: dict[str, float]
) -> None:
    """Commits a trial that succeeded: its answers, and what the dense model scored."""
    scores = [
        {
            **{"task": name.partition(".")[0], "metric": name.partition(".")[2], "value": value},
            **{"split": "validation", "state": "dense", "image": "real", "items": 1},
        }
        for name, value in dense.items()
    ]
    sweep.commit("answers", rows, trial=trial, epoch=1)
    sweep.commit("scores", scores, trial=trial, epoch=1)
    _finish(sweep, trial, state="succeeded", metric=metric)


def several(
    folder: Path, metric: str, text: str = TASKS, impossible: float | None = None
) -> SweepStore:
    """Two trials of a sweep over two tasks, whose pictures have the same names, and some texts.

    Args:
        impossible: log-probability of all texts by the first model.
    """
    (folder / "tasks.yaml").write_text(text)
    resolved = load_spec(folder / "tasks.yaml").spec.to_yaml()
    sweep = open_store(folder / "store", create=True).create_sweep("several", resolved)
    draw = np.random.default_rng(0)
    for number in range(2):
        rows = [
            {
                **{"task": task, "split": "validation", "state": "pruned", "image": "real"},
                **{"example_id": f"q{at}", "image_id": f"p{at // 2}"},
                **{"value": float(draw.random() < chance), "true_answer": f"a{at % answers}"},
            }
            for task, chance, answers, count in (("easy-vqa", 0.8, 3, 300), ("mine", 0.4, 5, 80))
            for at in range(count)
        ]
        # The second model has a tokenizer of its own.
        tokens = draw.integers(1 + number, 9, 80).astype(float)
        drawn = [-float(draw.exponential(count)) for count in tokens]
        rows += [
            {
                **{"task": "captions", "split": "validation", "state": "pruned", "image": "real"},
                **{"example_id": f"c{at}", "image_id": f"p{at // 2}", "true_answer": "a"},
                **{"value": value if impossible is None or number else impossible},
                **{"weight": float(count)},
            }
            for at, (count, value) in enumerate(zip(tokens, drawn, strict=True))
        ]
        end(
            sweep,
            f"t00{number}",
            metric,
            rows,
            dense={"easy-vqa.balanced_accuracy": 0.9, "mine.accuracy": 0.5},
        )
    return sweep


@pytest.mark.parametrize(
    ("metric", "shares"),
    [("all.macro", (0.5, 0.5)), ("all.mean_relative", (0.5 / 0.9, 0.5 / 0.5))],
)
def test_a_mean_over_tasks_is_paired_by_the_items_of_all_of_them(
    tmp_path: Path, metric: str, shares: tuple[float, float]
) -> None:
    sweep = several(tmp_path, metric)
    items = read_items({sweep: sweep.trials()})
    assert items.pictures == 150 + 40
    answers = sweep.answers()
    for number, trial in enumerate(("t000", "t001")):
        own = answers[answers["trial"] == trial]
        easy = own[own["task"] == "easy-vqa"].groupby("true_answer")["value"].mean().mean()
        mine = own[own["task"] == "mine"]["value"].mean()
        score = shares[0] * easy + shares[1] * mine
        assert items.scores[number] == pytest.approx(score)
        assert items.said[number].mean() == pytest.approx(score)
    spread = items.resampled(4000, seed=0).std(axis=0)
    expected = items.said.std(axis=1, ddof=1) / items.pictures**0.5
    assert spread == pytest.approx(expected, rel=0.1)
    (row,) = compare(sweep.store, "several/t000", "several/t001", confidence=0.9)
    assert row["difference_points"] == pytest.approx(100 * (items.scores[0] - items.scores[1]))


def test_likelihoods_are_paired_by_texts_of_many_tokens_or_few(tmp_path: Path) -> None:
    text = TASKS.replace("task: mine}]", "task: captions}]")
    sweep = several(tmp_path, "all.macro", text)
    trials = sweep.trials().assign(metric="captions.likelihood")
    items = read_items({sweep: trials})
    answers = sweep.answers()
    for number, trial in enumerate(("t000", "t001")):
        own = answers[(answers["trial"] == trial) & (answers["task"] == "captions")]
        likelihood = np.exp(own["value"].sum() / own["weight"].sum())
        assert items.scores[number] == pytest.approx(likelihood)
        influence = likelihood * (own["value"] - np.log(likelihood) * own["weight"])
        said = likelihood + 40 * influence.groupby(own["image_id"]).sum() / own["weight"].sum()
        assert sorted(items.said[number]) == pytest.approx(sorted(said))
    both = read_items({sweep: sweep.trials()})
    easy = read_items({sweep: trials.assign(metric="easy-vqa.balanced_accuracy")})
    assert both.scores == pytest.approx((items.scores + easy.scores) / 2)
    for one in (items, both):
        spread = one.resampled(4000, seed=0).std(axis=0)
        expected = one.said.std(axis=1, ddof=1) / one.pictures**0.5
        assert spread == pytest.approx(expected, rel=0.1)


def test_of_a_text_that_is_impossible_the_likelihood_is_0_for_every_pair(tmp_path: Path) -> None:
    sweep = several(tmp_path, "captions.likelihood", impossible=-np.inf)
    items = read_items({sweep: sweep.trials()})
    assert items.scores[0] == 0 and items.scores[1] > 0
    assert np.isfinite(items.said).all() and np.isfinite(items.resampled(10, seed=0)).all()


FOUND = """
ressa: 1
model: pocket-blip2
data:
  mine: {task: vqa, format: vqav2, path: /nowhere}
  flickr: {task: retrieval, format: karpathy, path: /nowhere, model: org/matching}
space: {vision_sparsity: 0.5, language_sparsity: 0.5}
evaluate: [{task: mine}, {task: flickr}]
objective: {maximize: macro}
"""


def found_pictures(folder: Path, metric: str, *, recorded: bool = True) -> SweepStore:
    """Two trials of 40 questions, and of 60 pictures of which each third has one caption more."""
    (folder / "found.yaml").write_text(FOUND)
    resolved = load_spec(folder / "found.yaml").spec.to_yaml()
    sweep = open_store(folder / "store", create=True).create_sweep("found", resolved)
    captions = [f"p{at:02}" for at in range(60) for _ in range(2 + (at % 3 == 0))]
    draw = np.random.default_rng(1)
    for number in range(2):
        is_first = {picture: float(draw.random() < 0.7) for picture in captions}
        asked = [("mine", f"p{at // 2}", None) for at in range(40)]
        asked += [("flickr", name, is_first[name] if recorded else None) for name in captions]
        rows = [
            {
                **{"task": task, "split": "validation", "state": "pruned", "image": "real"},
                **{"example_id": f"q{at:03}", "image_id": image, "true_answer": "a"},
                **{"value": float(draw.random() < 0.5), "image_value": of_image},
            }
            for at, (task, image, of_image) in enumerate(asked)
        ]
        end(
            sweep,
            f"t00{number}",
            metric,
            rows,
            dense={"mine.accuracy": 0.5, "flickr.tr1": 0.8, "flickr.ir1": 0.4},
        )
    return sweep


@pytest.mark.parametrize(
    ("metric", "shares"),
    [
        ("all.macro", (1 / 2, 1 / 4, 1 / 4)),
        ("all.mean_relative", (1 / 2 / 0.5, 1 / 4 / 0.8, 1 / 4 / 0.4)),
        ("flickr.tr1", (0, 1, 0)),
    ],
)
def test_retrieval_is_paired_by_captions_and_by_pictures_that_each_count_once(
    tmp_path: Path, metric: str, shares: tuple[float, float, float]
) -> None:
    sweep = found_pictures(tmp_path, metric)
    items = read_items({sweep: sweep.trials()})
    assert items.pictures == (60 if metric == "flickr.tr1" else 20 + 60)  # not 20 + 60 + 60
    answers = sweep.answers()
    for number, trial in enumerate(("t000", "t001")):
        own = answers[answers["trial"] == trial]
        mine, flickr = (own[own["task"] == task] for task in ("mine", "flickr"))
        scores = (
            mine["value"].mean(),
            flickr.groupby("image_id")["image_value"].first().mean(),
            flickr["value"].mean(),
        )
        score = sum(share * each for share, each in zip(shares, scores, strict=True))
        assert items.scores[number] == pytest.approx(score)
        assert items.said[number].mean() == pytest.approx(score)
    spread = items.resampled(4000, seed=0).std(axis=0)
    expected = items.said.std(axis=1, ddof=1) / items.pictures**0.5
    assert spread == pytest.approx(expected, rel=0.1)


def test_pictures_that_an_earlier_ressa_did_not_record_are_said(tmp_path: Path) -> None:
    sweep = found_pictures(tmp_path, "all.macro", recorded=False)
    with pytest.raises(SpecError, match=r"flickr\.tr1 needs which pictures .* earlier ressa"):
        read_items({sweep: sweep.trials()})


def test_an_objective_that_is_no_mean_over_items_cannot_be_paired(answered: SweepStore) -> None:
    trials = answered.trials().head(2).assign(metric="text.perplexity")
    with pytest.raises(SpecError, match=r"text\.perplexity is no mean over items"):
        read_items({answered: trials})


def test_the_share_of_captions_whose_picture_comes_first_is_paired(answered: SweepStore) -> None:
    trials = answered.trials().head(2).assign(metric="easy-vqa.ir1")
    assert read_items({answered: trials}).scores == pytest.approx([5 / 6, 2 / 6])
    with pytest.raises(SpecError, match=r"ir5 is no mean over items"):
        read_items({answered: trials.assign(metric="easy-vqa.ir5")})


def test_p_is_the_least_level_at_which_the_interval_leaves_0_out() -> None:
    items = _random_items(pictures=60, strata=1)
    found = same_checkpoints(items, A, B)
    assert 0.01 < found.p_value < 0.9
    touching = same_checkpoints(items, A, B, confidence=1 - found.p_value)
    assert min(abs(touching.low), abs(touching.high)) < 0.1 * found.standard_error
    reach = student.ppf(0.975, 59) * found.standard_error
    assert found.high - found.low == pytest.approx(2 * reach, rel=0.06)


def test_where_pictures_alone_differ_p_is_students_over_pictures() -> None:
    of_pictures = np.random.default_rng(0).normal(0, 0.1, (1, 6))
    one = 2 + of_pictures.repeat(3, axis=0)
    found = allocations(one, np.zeros_like(one))
    value = found.value - 2 * found.standard_error
    assert found.p_above(value) == pytest.approx(student.sf(2, 5), rel=0.03)


def test_no_is_shared_over_the_others_and_yes_is_not() -> None:
    subject, *others = _line(-0.02, 0.0, -0.015)
    found = ask("?", subject, others, 1.0, 0.95)
    no = [one.minus(subject).p_above(0.01) for one in others]
    assert found.answer == "no"
    assert found.p_value == pytest.approx(2 * min(no))


def test_to_beat_is_to_be_better_whatever_the_margin() -> None:
    _, beats = judge(_line(0.0, -0.01, -0.01), margin=8, confidence=0.95)
    assert beats.question == LANGUAGE_QUESTION
    assert beats.answer != "yes"
    assert beats.margin_points == 0


def test_an_interval_holds_what_was_seen_also_at_the_ends_of_the_range() -> None:
    right, wrong = np.ones((3, 41)), np.zeros((3, 41))
    right[0, 0] = 0
    found = allocations(right, wrong)
    assert found.low(0.95) < found.value <= found.high(0.95)
    assert found.low(0.95) > 0.5


def test_where_both_answers_claim_a_difference_p_is_of_either() -> None:
    subject, *others = _line(0.01, 0.0, 0.0)
    found = ask("?", subject, others, 0.0, 0.95)
    yes = [one.minus(subject).p_below(0) for one in others]
    assert found.p_value == pytest.approx(2 * max(yes))
    nearest = others[yes.index(max(yes))].minus(subject)
    assert found.high_points == pytest.approx(100 * nearest.high(0.975))


def test_allocations_of_another_recipe_are_another_question() -> None:
    other = [replace(one, also="prune.method=wanda") for one in _line(-0.1, 0.0, 0.1)]
    own, language, worse, beats = judge([*_line(0.0, -0.1, -0.1), *other], margin=2, confidence=0.9)
    assert (own.also, own.answer, language.answer) == ("", "yes", "no")
    assert (worse.also, worse.answer, beats.answer) == ("prune.method=wanda", "no", "yes")
    assert "on line 0.5 with prune.method=wanda: no (" in worse.sentence


def test_an_allocation_of_vision_alone_prunes_not_both() -> None:
    splits = ((0.0, 0.875), (1.0, 0.0))
    alone = [_allocated(0.5, *split, _drawn(at, 0.9)) for at, split in enumerate(splits)]
    assert judge(alone, margin=1, confidence=0.95) == ()


def test_so_many_more_trials_would_decide_and_fewer_would_not() -> None:
    subject, *others = _line(-0.016, 0.0, -0.02, runs=3)
    found = ask("?", subject, others, 1.0, 0.95)
    assert found.more_trials
    spreads = [one.minus(subject) for one in others]

    def p_with(seeds: int) -> float:
        return 2 * min(one.with_seeds(seeds).p_above(0.01) for one in spreads)

    seeds = 3 + found.more_trials // 3
    assert p_with(seeds) <= 0.0501
    assert p_with(seeds - 1) > 0.0499


def test_an_answer_that_no_drawn_picture_has_is_left_out() -> None:
    items = _items([[1] * 6], list(range(6)), [0] * 5 + [1])
    assert (items.resampled(50, seed=0) == 1).all()


def test_answers_to_other_questions_of_the_same_ids_are_not_paired(answered: SweepStore) -> None:
    """Two data sets that go by one name number their questions alike."""
    other = answered.store.create_sweep("elsewhere", "")
    for table in ("trials", "answers"):
        for trial in ("t000", "t001"):
            rows = answered.read(table, where={"trial": trial}).to_pylist()
            changed = [row | {"true_answer": "a bird"} for row in rows if "true_answer" in row]
            other.commit(table, changed or rows, trial=trial, epoch=1)
    with pytest.raises(SpecError, match="different questions under the name easy-vqa"):
        compare(answered.store, "elsewhere/t000", "answered/t000", confidence=0.95)
