"""Whether a trial can ever be placed: what its workers ask for, and what nodes have."""

import pytest

from ressa.errors import SpecError
from ressa.spec import Resources
from ressa.sweep.joined_ray import is_autoscaled
from ressa.sweep.places import Place, bundle, check_fits
from ressa.sweep.trainable import placement

GIB = 2**30
LARGE = Place(
    name="large", has={"CPU": 8, "GPU": 2, "memory": 32 * GIB, "accelerator_type:A100": 1}
)
SMALL = Place(name="small", has={"CPU": 2, "memory": 4 * GIB})


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ({"workers": 10}, True),
        ({"workers": 11}, False),
        ({"workers": 2, "gpus_per_worker": 1}, True),
        ({"workers": 3, "gpus_per_worker": 1}, False),
        ({"workers": 1, "gpus_per_worker": 0.5}, True),
        ({"workers": 5, "cpus_per_worker": 2}, True),
        ({"workers": 1, "cpus_per_worker": 9}, False),
        ({"workers": 5, "memory_gib": 7}, False),
        ({"workers": 4, "memory_gib": 8}, True),
        ({"workers": 1, "gpus_per_worker": 1, "accelerator": "A100"}, True),
        ({"workers": 1, "gpus_per_worker": 1, "accelerator": "H100"}, False),
    ],
)
def test_what_idle_nodes_hold_is_counted(asked: dict[str, object], fits: bool) -> None:
    resources = Resources(**asked)  # type: ignore[arg-type]
    if fits:
        check_fits(resources, [LARGE, SMALL])
    else:
        with pytest.raises(SpecError):
            check_fits(resources, [LARGE, SMALL])


def test_the_node_that_is_too_small_is_named_with_what_it_has() -> None:
    wanted = Resources(workers=2, gpus_per_worker=2, memory_gib=16, accelerator="H100")
    with pytest.raises(SpecError) as refused:
        check_fits(wanted, [LARGE, SMALL])
    said = str(refused.value)
    assert "2 workers with 1 CPU, 2 GPU, 16 GiB memory, a H100 each" in said
    assert "large is too small: it has 8 CPU, 2 GPU, 32 GiB memory, no H100" in said
    assert "small is too small: it has 2 CPU, 0 GPU, 4 GiB memory, no H100" in said
    with pytest.raises(SpecError, match="large holds 2: it has 8 CPU, 2 GPU"):
        check_fits(Resources(workers=3, gpus_per_worker=1), [LARGE])
    with pytest.raises(SpecError, match="no node is there"):
        check_fits(Resources(), [])


def test_a_gang_is_one_bundle_a_worker_behind_an_empty_one() -> None:
    asked = Resources(workers=2, gpus_per_worker=1, memory_gib=0.5, placement="spread")
    each = {"CPU": 1.0, "GPU": 1.0, "memory": GIB / 2}
    assert bundle(asked) == each
    factory = placement(asked)
    assert factory.bundles == [each, each]
    assert factory.strategy == "SPREAD"
    assert placement(Resources()).bundles == [{"CPU": 1.0}]
    assert placement(Resources(workers=2)).strategy == "PACK"


def test_a_cluster_whose_nodes_have_kinds_adds_nodes_by_itself() -> None:
    by_hand = {"autoscaler_report": {"active_nodes": {"node_0a1b": 1}}}
    assert not is_autoscaled(None, [{}])
    assert not is_autoscaled(by_hand, [{}])
    assert is_autoscaled({"autoscaler_report": {"active_nodes": {"ray.head.default": 1}}}, [{}])
    assert is_autoscaled(by_hand, [{"ray.io/node-group": "gpus"}])
