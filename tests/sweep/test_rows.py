"""What a row says of the circumstances."""

import subprocess
from pathlib import Path

import pytest

import ressa
from ressa.sweep import rows

CHECKOUT = Path(ressa.__file__).parents[1]


@pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="no checkout: ressa is installed")
def test_a_row_names_the_commit_of_the_checkout_that_ran(monkeypatch, tmp_path):
    head = ["git", "rev-parse", "HEAD"]
    found = subprocess.run(head, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    rows._commit.cache_clear()
    assert rows._commit().removesuffix("-dirty") == found.stdout.strip()
    rows._commit.cache_clear()
    monkeypatch.setattr(ressa, "__file__", str(tmp_path / "ressa" / "__init__.py"))
    assert rows._commit() is None, "another repository's commit is not ours"
    rows._commit.cache_clear()
