"""The map says what allocations would score, and how sure that is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ressa.errors import NotFoundError, SpecError
from ressa.landscape.lines import (
    Slope,
    best_of,
    chart,
    line_table,
    line_through,
    settled,
    slopes,
    within,
)
from ressa.landscape.maps import Fitted, fitted_to
from ressa.landscape.observed import mapped_trials, observed
from ressa.landscape.surrogate import Observed, Surrogate, fit
from ressa.store import SweepStore, open_store
from tests.landscape.conftest import LANGUAGE, VISION, begin, commit

Floats = NDArray[np.float64]
SIZE = Slope(kind="parameters", vision=VISION, language=LANGUAGE)
SUM = Slope(kind="sum", vision=-1.0, language=-1.0, base=2.0)
ALL = (0.0, 0.8)


def _truth(vision: Floats, language: Floats) -> Floats:
    """Logits with a cliff in each tower; language's is the steeper one."""
    return np.asarray(4.0 - 4.5 * vision**4 - 9.0 * language**5 - 2.0 * (vision * language) ** 2)


def _observed(
    cells: int = 40, runs: int = 3, *, noise: float = 0.2, seed: int = 0, pictures: int = 0
) -> Observed:
    draw = np.random.default_rng(seed)
    places = draw.uniform(0, 0.85, (cells, 2)).repeat(runs, axis=0)
    logit = _truth(*places.T) + noise * draw.standard_normal(len(places))
    return Observed(
        vision=places[:, 0],
        language=places[:, 1],
        score=1 / (1 + np.exp(-logit)),
        influence=0.001 * draw.standard_normal((len(places), pictures)) if pictures else None,
    )


def _take(observed: Observed, which: NDArray[np.bool_] | NDArray[np.int64]) -> Observed:
    return Observed(
        vision=observed.vision[which],
        language=observed.language[which],
        score=observed.score[which],
        influence=None if observed.influence is None else observed.influence[which],
    )


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    """The map of forty allocations, three runs each."""
    return fit(_observed())


def test_intervals_hold_what_they_say_of_runs_left_out() -> None:
    held = []
    for seed in range(4):
        observed = _observed(cells=60, runs=2, seed=seed)
        known = np.arange(len(observed.score)) < 80
        rest = _take(observed, ~known)
        found = fit(_take(observed, known)).predict(rest.vision, rest.language)
        held.append((found.low <= rest.score) & (rest.score <= found.high))
    assert 0.85 <= np.mean(held) <= 0.95


def test_the_order_of_trials_changes_nothing() -> None:
    observed = _observed(pictures=20)
    mixed = _take(observed, np.random.default_rng(1).permutation(len(observed.score)))
    places = np.linspace(0.1, 0.8, 7)
    one, other = (fit(given).draws(places, places, 5) for given in (observed, mixed))
    assert one.tolist() == other.tolist()


def test_towers_that_change_places_change_the_map_with_them() -> None:
    observed = _observed()
    swapped = Observed(vision=observed.language, language=observed.vision, score=observed.score)
    vision, language = np.array([0.2, 0.7, 0.4]), np.array([0.6, 0.3, 0.4])
    one = fit(observed).predict(vision, language)
    other = fit(swapped).predict(language, vision)
    assert one.mean == pytest.approx(other.mean, abs=1e-4)
    assert one.deviation == pytest.approx(other.deviation, rel=0.02)


def test_more_runs_leave_less_unknown() -> None:
    few, many = (fit(_observed(runs=runs)) for runs in (1, 6))
    places = np.random.default_rng(3).uniform(0.1, 0.8, (50, 2))
    assert (many.logits(places)[1] < few.logits(places)[1]).mean() > 0.9


def test_far_from_all_trials_less_is_known(surrogate: Surrogate) -> None:
    near, far = surrogate.logits(np.array([[0.4, 0.4], [1.0, 1.0]]))[1]
    assert near < far


def test_a_run_spreads_wider_than_the_mean_over_seeds(surrogate: Surrogate) -> None:
    places = np.array([0.3, 0.6]), np.array([0.5, 0.6])
    drawn = surrogate.draws(*places, 4000)
    run = surrogate.predict(*places)
    assert (drawn.std(axis=0) < run.deviation).all()
    assert drawn.mean(axis=0) == pytest.approx(run.mean, abs=0.003)


def test_the_noise_of_runs_is_found() -> None:
    for noise in (0.1, 0.4):
        found = fit(_observed(runs=8, noise=noise)).noise(np.array([0.0]))
        assert float(found[0]) == pytest.approx(noise**2, rel=0.35)


def test_pictures_blur_scores_but_not_what_places_share() -> None:
    observed = _observed()
    logit_step = observed.score * (1 - observed.score)
    # Every picture moves all logits alike: on others the map is as a whole higher or lower.
    draw = np.random.default_rng(5).standard_normal(50)
    shared = Observed(
        vision=observed.vision,
        language=observed.language,
        score=observed.score,
        influence=0.05 * logit_step[:, None] * draw,
    )
    line = line_through(SIZE, 0.5, vision=ALL, language=ALL)
    assert line is not None
    places = line.vision, line.language
    plain, blurred = (
        fit(shared).draws(*places, 2000, pictures=pictures) for pictures in (False, True)
    )
    assert blurred.std(axis=0).mean() > 1.5 * plain.std(axis=0).mean()
    assert within(blurred, 1.0).mean(axis=0) == pytest.approx(
        within(plain, 1.0).mean(axis=0), abs=0.1
    )


def test_scores_below_0_are_refused() -> None:
    seen = _observed(6)
    with pytest.raises(SpecError, match=r"at least 0, got -0\.1"):
        fit(replace(seen, score=seen.score - seen.score.min() - 0.1))


@pytest.mark.parametrize("times", [2.0, 2.0**-26], ids=["cider", "likelihood"])
def test_scores_above_1_or_all_near_0_are_shares_of_a_ceiling(times: float) -> None:
    seen = _observed(pictures=30)
    assert 0.5 < seen.score.max() < 1
    assert seen.influence is not None
    scaled = replace(seen, score=times * seen.score, influence=times * seen.influence)
    share, other = fit(seen), fit(scaled)
    places = seen.vision[:5], seen.language[:5]
    assert np.allclose(other.draws(*places, 20) / times, share.draws(*places, 20))
    for name in ("mean", "deviation", "low", "high"):
        one, of_other = (getattr(found.predict(*places), name) for found in (share, other))
        assert np.allclose(of_other / times, one)


def test_three_allocations_are_no_map() -> None:
    with pytest.raises(SpecError, match="needs 4 allocations with a score, there are 3"):
        fit(_observed(cells=3))


@pytest.mark.parametrize("slope", [SIZE, SUM], ids=["parameters", "sum"])
def test_a_line_keeps_its_quantity_and_goes_through_the_equal_split(slope: Slope) -> None:
    line = line_through(slope, 0.6, vision=ALL, language=(0.1, 0.8))
    assert line is not None
    assert slope.at(line.vision, line.language) == pytest.approx(line.level)
    assert line.level == pytest.approx(slope.at(0.6, 0.6))
    assert line.vision.min() >= 0 and line.vision.max() <= 0.8
    assert line.language.min() >= 0.1 - 1e-9 and line.language.max() <= 0.8 + 1e-9


def test_a_line_outside_the_map_is_none() -> None:
    assert line_through(SUM, 0.9, vision=(0.1, 0.5), language=(0.1, 0.5)) is None


def test_the_best_of_a_line_is_where_the_truth_has_it(surrogate: Surrogate) -> None:
    line = line_through(SIZE, 0.55, vision=ALL, language=ALL)
    assert line is not None
    found = best_of(surrogate, line, margin=1.0)
    truth = _truth(line.vision, line.language)
    best = float(line.vision[truth.argmax()])
    assert found.vision_low <= best <= found.vision_high
    share = 1 / (1 + np.exp(-truth.max()))
    assert found.low - 0.01 <= share <= found.high + 0.01
    assert SIZE.at(found.vision, found.language) == pytest.approx(line.level)


def test_a_best_at_the_edge_of_what_was_searched_is_said_to_be(surrogate: Surrogate) -> None:
    def edge(vision: tuple[float, float], language: tuple[float, float]) -> str | None:
        line = line_through(SIZE, 0.55, vision=vision, language=language)
        assert line is not None
        return best_of(surrogate, line, margin=1.0).edge

    whole = line_through(SIZE, 0.55, vision=ALL, language=ALL)
    assert whole is not None
    best = best_of(surrogate, whole, margin=1.0)
    assert best.edge is None
    more, less = (best.vision + 0.05, 0.8), (0.0, best.vision - 0.05)
    assert (edge(more, ALL), edge(less, ALL)) == ("vision_low", "vision_high")
    assert edge(ALL, (0.0, best.language - 0.05)) == "language_high"
    assert edge(ALL, (best.language + 0.05, 0.8)) == "language_low"


def test_beyond_a_dense_tower_nothing_was_left_out() -> None:
    line = line_through(SUM, 0.3, vision=(0.0, 0.8), language=(0.0, 0.8))
    assert line is not None and line.edges == (None, None)


def test_a_wider_margin_is_met_more_surely(surrogate: Surrogate) -> None:
    line = line_through(SIZE, 0.6, vision=ALL, language=ALL)
    assert line is not None
    found = [best_of(surrogate, line, margin=margin) for margin in (0.2, 1.0, 5.0)]
    for field in ("within_margin", "equal_within_margin"):
        values = [getattr(one, field) for one in found]
        assert values == sorted(values)


def test_a_line_is_settled_by_what_ran_near_its_best(surrogate: Surrogate) -> None:
    line = line_through(SIZE, 0.6, vision=ALL, language=ALL)
    assert line is not None
    places = line.vision, line.language
    order = surrogate.draws(*places, 500).mean(axis=0).argsort()
    best, worst = np.zeros(len(order), bool), np.zeros(len(order), bool)
    best[order[-3:]], worst[order[:3]] = True, True
    nothing = np.zeros(len(order), bool)
    assert settled(surrogate, *places, nothing, 1.0) == 0
    assert settled(surrogate, *places, worst, 1.0) < 0.01
    assert settled(surrogate, *places, best, 2.0) > 0.8
    assert settled(surrogate, *places, best, 2.0) >= settled(surrogate, *places, best, 0.5)


def test_the_chart_compares_places_of_equal_size(surrogate: Surrogate) -> None:
    found = chart(surrogate, SIZE, margin=1.0, places=13)
    assert found.mean.shape == found.deviation.shape == found.within_margin.shape == (13, 13)
    size = SIZE.at(*np.meshgrid(found.vision, found.language, indexing="ij"))
    same = np.abs(size - SIZE.at(0.55, 0.55)) < 0.02 * (VISION + LANGUAGE)
    likely = np.where(same, found.within_margin, -1).argmax()
    best = np.where(same, found.mean, -1).argmax()
    assert found.within_margin.ravel()[best] > 0.5
    assert found.mean.ravel()[likely] > found.mean.ravel()[best] - 0.02


def test_a_stored_sweep_becomes_a_table_of_lines(sweep: SweepStore) -> None:
    found = line_table([sweep], margin=1.0)
    assert found["line"].unique().tolist() == ["sum", "parameters"]
    assert found["equal"].tolist() == [0.5, 0.6, 0.7] * 2
    assert found["score"].between(found["low"], found["high"]).all()
    assert found["within_margin"].between(0, 1).all()


def test_a_map_is_fitted_again_only_where_scores_are_new(sweep: SweepStore) -> None:
    def fitted(state: str | None = None) -> Fitted:
        return fitted_to(mapped_trials([sweep], state=state))

    first = fitted()
    assert fitted("repaired") is first
    assert fitted("pruned") is not first
    commit(sweep, "t050", "0.2", "0.2")
    assert len(fitted().trials) == len(first.trials) + 1


def test_a_pattern_is_not_on_the_map(sweep: SweepStore) -> None:
    trials = mapped_trials([sweep])[sweep]
    assert not trials["vision_target"].str.contains(":").any()
    everything = sweep.trials()
    searched = everything["role"] == "search"
    assert 0 < len(trials) < searched.sum()


def test_a_trial_that_two_sweeps_share_counts_once(sweep: SweepStore) -> None:
    other = begin(sweep.store, "again")
    for name in ("t000", "t001"):
        row = next(iter(sweep.read("trials", where={"trial": name}).to_pylist()))
        for made in (sweep, other):
            made.commit("trials", [{**row, "key": name}], trial=name, epoch=1, attempt=1)
    commit(other, "t002", "0.2", "0.2")
    trials = mapped_trials([sweep, other])
    assert trials[other]["trial"].tolist() == ["t002"]


def test_sweeps_without_answers_cannot_be_laid_over_each_other(sweep: SweepStore) -> None:
    other = begin(sweep.store, "again")
    commit(other, "t000", "0.2", "0.2")
    with pytest.raises(NotFoundError, match="no repaired answers"):
        observed(mapped_trials([sweep, other]))


def test_trials_that_differ_in_method_are_two_maps(sweep: SweepStore) -> None:
    commit(sweep, "t050", "0.2", "0.2", point={"vision_sparsity": "0.2", "prune.method": "random"})
    with pytest.raises(SpecError, match=r"differ in more than sparsity and seeds.*random"):
        mapped_trials([sweep])


def test_seeds_do_not_make_two_maps(sweep: SweepStore) -> None:
    point = {"vision_sparsity": "0.2", "prune.calibration.seed": "3", "replicate": "1"}
    commit(sweep, "t050", "0.2", "0.2", point=point)
    trials = mapped_trials([sweep])
    assert len(observed(trials).score) == len(trials[sweep])


def test_bytes_and_operations_have_slopes_of_their_own(sweep: SweepStore) -> None:
    trials = mapped_trials([sweep])[sweep]
    counts = {
        "vision_packed_bytes": 4 * VISION * (1 - trials["vision"]) + VISION / 8,
        "language_packed_bytes": 4 * LANGUAGE * (1 - trials["language"]) + LANGUAGE / 8,
        "vision_macs": 65 * VISION * (1 - trials["vision"]),
        "language_macs": 9 * LANGUAGE * (1 - trials["language"]),
    }
    found = slopes(trials.assign(**counts))
    assert found["bytes"].vision == pytest.approx(4 * VISION)
    assert found["bytes"].base == pytest.approx((VISION + LANGUAGE) / 8)
    assert found["operations"].language == pytest.approx(9 * LANGUAGE)
    line = line_through(found["operations"], 0.5, vision=ALL, language=ALL)
    assert line is not None
    assert found["operations"].at(line.vision, line.language) == pytest.approx(line.level)


def test_an_empty_sweep_has_no_map(tmp_path: Path) -> None:
    empty = open_store(tmp_path / "results", create=True).create_sweep("empty", "name: empty\n")
    with pytest.raises(NotFoundError, match="no trial of empty has a pruned score yet"):
        mapped_trials([empty])
