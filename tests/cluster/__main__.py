"""`python -m tests.cluster`: all tests on several machines; the last line counts them."""

import sys
from pathlib import Path

import pytest


class Count:
    """Counts what tests came to."""

    def __init__(self) -> None:
        self.passed = self.failed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Is told of each phase of each test."""
        self.passed += report.when == "call" and report.passed
        self.failed += report.failed
        if report.failed:
            print(report.longreprtext)  # noqa: T201  # at once: the rest takes half an hour


if __name__ == "__main__":
    count = Count()
    code = pytest.main([str(Path(__file__).parent), "-v", "-rs", *sys.argv[1:]], plugins=[count])
    print(f"{count.passed} passed, {count.failed} failed")  # noqa: T201
    sys.exit(code)
