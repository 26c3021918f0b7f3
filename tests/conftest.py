"""What holds for all tests."""

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no failure.
settings.register_profile("ressa", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ressa")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names an object by its type: processes that share the tests out must name them alike."""
    is_named = hasattr(val, "__name__") or " at 0x" not in repr(val)
    return None if is_named else type(val).__name__.lower()


_AS_IF_NAMED = {"tests/sweep/test_attempts.py": "", "tests/sweep/test_sweep.py": "tests/prune"}
"""The two files that take longest: if they came last, one process would be alone with them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files before others, in an order that all processes agree on."""
    paths = {item: item.nodeid.partition("::")[0] for item in items}
    items.sort(key=lambda item: _AS_IF_NAMED.get(paths[item], paths[item]))
