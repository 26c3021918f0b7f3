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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the file that takes longest first: at the end one process would be alone with it."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/sweep/test_attempts.py"))
