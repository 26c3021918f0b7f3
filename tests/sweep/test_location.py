"""Where the sweep of a file lies."""

import pytest

from ressa.sweep.location import placed


def test_a_store_that_is_relative_gives_way_to_the_environments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RESSA_STORE", "/elsewhere")
    assert placed("results") == "/elsewhere"
    for whole in ("/s", "~/mine", "s3://bucket/place"):
        assert placed(whole) == whole
