"""The page of tables is what the schema says."""

from pathlib import Path

from ressa.store import reference
from ressa.store.schema import TABLES

PAGE = Path(__file__).parents[2] / "docs" / "tables.md"


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text() == reference.page(), "run `make docs`"


def test_every_column_of_every_table_is_on_the_page() -> None:
    page = reference.page()
    for table in TABLES.values():
        assert f"## `{table.name}`\n" in page
        for column in table.columns:
            assert f"\n| `{column.name}` |" in page
