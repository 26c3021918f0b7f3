"""Proposals as a pure function of the spec and of the results that they may see."""

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
            Seen(point=p, value=score(p) if n <= number - window else None)
            for n, p in enumerate(points)
        ]
        proposal = proposer.propose(number, seen)
        if proposal is None:
            break
        points.append(dict(proposal.point))
    return points


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_the_same_spec_and_results_give_the_same_proposals(sampler: str) -> None:
    spec = make_spec(search={"sampler": sampler, "trials": 8, "seed": 3})
    assert search(spec, 8) == search(spec, 8)


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_a_finite_space_is_visited_once_and_then_ends(sampler: str) -> None:
    spec = make_spec(search={"sampler": sampler, "trials": 100, "seed": 0})
    points = search(spec, 100)
    proposer = make_proposer(spec)
    assert len(points) == proposer.size
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
                Seen(point=p, value=-((float(p["vision_sparsity"]) - 0.3) ** 2)) for p in points
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
    second = proposer.propose(1, [Seen(point=first.point, value=None, failed=True)])
    assert second is not None
    assert second.point != first.point
