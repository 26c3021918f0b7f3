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
    """Begins with files that start Ray: `make test` deals out whole files, the longest not last."""
    long = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in long)
