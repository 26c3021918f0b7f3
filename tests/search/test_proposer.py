"""Proposals as a pure function of the spec and of the results that they may see."""

import json
from collections import Counter

import pytest

from ressa.catalog import MODELS
from ressa.search import Proposer, Seen
from ressa.spec import SweepSpec, apply_point, spec_from_mapping

INVENTORY = MODELS["pocket-blip2"].inventory()
SPACE = {"vision_sparsity": {"low": 0.0, "high": 0.8, "step": 0.1}}


def make_spec(**changes: object) -> SweepSpec:
    content = {
        "ressa": 1,
        "model": "pocket-blip2",
        "space": SPACE,
        "budget": [0.5, 0.6],
        "search": {"sampler": "tpe", "trials": 20, "seed": 3},
    }
    return spec_from_mapping({**content, **changes}).spec


def make_proposer(spec: SweepSpec) -> Proposer:
    return Proposer(spec, lambda point: repr(apply_point(spec, INVENTORY, point)))


def score(point: dict[str, str]) -> float:
    return 1 - (float(point["vision_sparsity"]) - 0.6) ** 2 - float(point["budget"]) / 10


def search(spec: SweepSpec, trials: int, window: int = 2) -> list[dict[str, str]]:
    """Runs a whole search, each proposal seeing only what its window admits."""
    proposer, points = make_proposer(spec), []
    for number in range(trials):
        seen = [
            Seen(point=p, values=(score(p),) if n <= number - window else None)
            for n, p in enumerate(points)
        ]
        proposal = proposer.propose(number, seen)
        if proposal is None:
            break
        points.append(dict(proposal.point))
    return points


@pytest.mark.parametrize("sampler", ["grid", "random", "qmc", "tpe", "gp", "nsga2"])
def test_the_same_spec_and_results_give_the_same_proposals(sampler: str) -> None:
    spec = make_spec(search={"sampler": sampler, "trials": 8, "seed": 3})
    assert search(spec, 8) == search(spec, 8)


@pytest.mark.parametrize("sampler", ["grid", "random", "qmc", "tpe", "gp", "nsga2"])
def test_a_finite_space_is_visited_once_and_then_ends(sampler: str) -> None:
    spec = make_spec(search={"sampler": sampler, "trials": 100, "seed": 0})
    points = search(spec, 100)
    proposer = make_proposer(spec)
    assert proposer.trials is not None
    assert len(points) == len(proposer.trials)
    assert len({tuple(sorted(point.items())) for point in points}) == len(points)


def test_every_proposal_meets_its_budget() -> None:
    spec = make_spec(budget=[0.9])
    points = search(spec, 50)
    assert points
    assert all(float(point["vision_sparsity"]) >= 0.7 for point in points)


def test_tpe_learns_from_results_and_random_does_not() -> None:
    def mean_score(sampler: str) -> float:
        spec = make_spec(
            space={
                "vision_sparsity": {"low": 0.0, "high": 0.9},
                "language_sparsity": 0.5,
            },
            budget=None,
            search={"sampler": sampler, "trials": 40, "seed": 1},
        )
        proposer, points = make_proposer(spec), []
        for number in range(40):
            seen = [
                Seen(point=p, values=(-((float(p["vision_sparsity"]) - 0.3) ** 2),)) for p in points
            ]
            proposal = proposer.propose(number, seen)
            assert proposal is not None
            points.append(proposal.point)
        return sum(abs(float(p["vision_sparsity"]) - 0.3) for p in points[20:]) / 20

    assert mean_score("tpe") < 0.7 * mean_score("random")


def test_another_seed_proposes_other_points() -> None:
    one = make_spec(search={"sampler": "random", "trials": 5, "seed": 0})
    other = make_spec(search={"sampler": "random", "trials": 5, "seed": 1})
    assert search(one, 5) != search(other, 5)


def test_a_failed_trial_is_not_proposed_again() -> None:
    spec = make_spec(search={"sampler": "tpe", "trials": 5, "seed": 0})
    proposer = make_proposer(spec)
    first = proposer.propose(0, [])
    assert first is not None
    second = proposer.propose(1, [Seen(point=first.point, values=None, failed=True)])
    assert second is not None
    assert second.point != first.point


CONTINUOUS = {
    "vision_sparsity": {"low": 0.0, "high": 0.9},
    "language_sparsity": {"low": 0.0, "high": 0.9},
}


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe", "gp", "nsga2"])
def test_points_that_miss_a_constraint_are_never_proposed(sampler: str) -> None:
    spec = make_spec(
        space=CONTINUOUS,
        budget=None,
        constraints=["density >= 0.4", "sparsity > 0.5"],
        search={"sampler": sampler, "trials": 8, "seed": 3},
    )
    proposer, seen = make_proposer(spec), []
    for number in range(8):
        proposal = proposer.propose(number, seen)
        assert proposal is not None
        apply_point(spec, INVENTORY, proposal.point)  # raises where it cannot be
        towers = [float(proposal.point[f"{tower}_sparsity"]) for tower in ("vision", "language")]
        notes = proposal.system_attrs
        seen.append(Seen(point=proposal.point, values=(sum(towers),), system_attrs=notes))


def test_sobol_spreads_over_any_mix_of_dimensions() -> None:
    space = {
        "vision_sparsity": {"choices": [0.4, 0.5, "2:4", "4:8"]},
        "language_sparsity": {"low": 0.1, "high": 0.9},
        "prune.dampening": {"low": 0.001, "high": 1, "log": True},
        "repair.steps": {"low": 10, "high": 17},
    }
    spec = make_spec(space=space, budget=None, search={"sampler": "qmc", "trials": 64})
    proposer = make_proposer(spec)
    points = [proposal.point for n in range(64) if (proposal := proposer.propose(n, []))]
    for name, distinct in (("vision_sparsity", 4), ("repair.steps", 8)):
        counts = Counter(point[name] for point in points)
        assert len(counts) == distinct
        assert set(counts.values()) == {64 // distinct}, "as many of each"
    for name, middle in (("language_sparsity", 0.5), ("prune.dampening", 10**-1.5)):
        assert sum(float(point[name]) < middle for point in points) == 32


def make_proposer_without(field: str, spec: SweepSpec) -> Proposer:
    """As if no method read a field."""

    def identify(point: dict[str, str]) -> str:
        return repr({name: value for name, value in point.items() if name != field})

    return Proposer(spec, identify)


def test_a_large_space_is_not_listed_for_a_few_trials() -> None:
    axis = {"low": 0.1, "high": 0.9, "step": 0.01}
    space = {"vision_sparsity": axis, "language_sparsity": axis}
    spec = make_spec(space=space, budget=None, search={"sampler": "tpe", "trials": 20})
    asked: list[str] = []

    def identify(point: dict[str, str]) -> str:
        asked.append(repr(point))
        return asked[-1]

    proposer = Proposer(spec, identify)
    assert proposer.distinct(20, {"baseline"}) == 20
    assert proposer.propose(0, []) is not None
    assert len(asked) < 30


@pytest.mark.parametrize("sampler", ["grid", "random", "qmc"])
def test_samplers_that_look_at_nothing_visit_repeats_too(sampler: str) -> None:
    space = SPACE | {"prune.cycles": {"choices": [1, 2]}}
    spec = make_spec(space=space, search={"sampler": sampler, "trials": 99})
    proposer = make_proposer_without("prune.cycles", spec)
    points = [proposer.propose(number, []) for number in range(37)]
    assert proposer.trials is not None and len(proposer.trials) == 18
    assert points[36] is None
    assert len({repr(proposal) for proposal in points[:36]}) == 36


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2"])
def test_a_learner_repeats_at_most_twice_in_a_row_and_ends_when_all_was_tried(sampler: str) -> None:
    space = SPACE | {"prune.dampening": {"low": 0.0, "high": 1.0, "step": 0.01}}
    spec = make_spec(space=space, budget=[0.5], search={"sampler": sampler, "trials": 99})
    proposer, seen = make_proposer_without("prune.dampening", spec), []
    while (proposal := proposer.propose(len(seen), seen)) is not None:
        value = -float(proposal.point["vision_sparsity"])
        notes = proposal.system_attrs
        seen.append(Seen(point=proposal.point, values=(value,), system_attrs=notes))
    visited = [trial.point["vision_sparsity"] for trial in seen]
    assert len(set(visited)) == 9
    repeats = [value in visited[:index] for index, value in enumerate(visited)]
    assert not any(all(repeats[index : index + 3]) for index in range(len(repeats) - 2))
    assert len({repr(trial.point) for trial in seen}) == len(seen)


def test_generations_of_nsga2_survive_that_its_study_is_rebuilt() -> None:
    spec = make_spec(space=CONTINUOUS, budget=None, search={"sampler": "nsga2", "trials": 99})
    seen: list[Seen] = []
    for number in range(30):
        proposal = make_proposer(spec).propose(number, seen)
        assert proposal is not None
        value = -float(proposal.point["vision_sparsity"])
        notes = proposal.system_attrs
        seen.append(Seen(point=proposal.point, values=(value,), system_attrs=notes))
    generations = [json.loads(trial.system_attrs)["NSGAIISampler:generation"] for trial in seen]
    assert generations == [0] * 12 + [1] * 12 + [2] * 6


def test_a_gp_finds_the_best_point_in_fewer_trials_than_chance() -> None:
    def best(sampler: str) -> float:
        spec = make_spec(space=CONTINUOUS, budget=None, search={"sampler": sampler, "seed": 1})
        proposer, seen = make_proposer(spec), []
        for number in range(20):
            proposal = proposer.propose(number, seen)
            assert proposal is not None
            x, y = (float(proposal.point[f"{tower}_sparsity"]) for tower in ("vision", "language"))
            value = -((x - 0.2) ** 2) - (y - 0.7) ** 2
            seen.append(Seen(point=proposal.point, values=(value,)))
        return max(trial.values[0] for trial in seen if trial.values)

    assert best("gp") > 0.1 * best("random")  # both below 0: a tenth of the distance
