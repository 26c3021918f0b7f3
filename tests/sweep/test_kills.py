"""A node is asked how many processes it has ended for lack of memory; one that is gone is not."""

import pytest

from ressa.sweep.local_ray import local_ray

pytest.importorskip("ray")


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_node_of_a_trial_is_asked_and_not_the_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    with local_ray(cpus=1):
        from ressa.sweep import kills
        from ressa.sweep.kills import memory_kills, memory_kills_on, this_node

        monkeypatch.setattr(kills, "_PATIENCE_SECONDS", 300)  # a process starts for the answer
        before = memory_kills()
        assert before <= memory_kills_on(this_node()) <= memory_kills()
        assert memory_kills_on("0" * 56) == 0, "there is no such node"
