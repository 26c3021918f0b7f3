"""The page that lists the store's tables, made from their schema.

`python -m ressa.store.reference docs` writes it; `make docs` calls it.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from ressa.store.schema import IDENTITY, SCHEMA_VERSION, TABLES, Column, Kind, Table

PAGE_FILE = "tables.md"

_KINDS: dict[Kind, str] = {
    "text": "text",
    "integer": "integer",
    "float": "float",
    "boolean": "boolean",
    "time": "time, UTC",
    "texts": "list of texts",
    "json": "text: JSON",
}

_HEAD = """\
# The tables of a store, column by column

*Made from the store's schema by `make docs`; do not edit. Schema version {version}: a new column
keeps it, a new meaning raises it.*

`ressa query "SELECT …"` reads them by SQL; `SHOW TABLES` and `DESCRIBE trials` say the same as this
page. Where they lie as Parquet: [store.md](store.md); there each column carries its meaning and
unit as metadata. A value that is not known is null. Columns without a unit are pure numbers or no
numbers; scores are fractions unless their metric says otherwise ([tasks.md](tasks.md)).
"""


def page() -> str:
    """Returns the page, as Markdown."""
    parts = [
        _HEAD.format(version=SCHEMA_VERSION),
        "## Columns of every table",
        _columns(IDENTITY),
    ]
    for table in TABLES.values():
        parts += [f"## `{table.name}`", _about(table), _columns(table.own_columns)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _about(table: Table) -> str:
    key = ", ".join(f"`{name}`" for name in table.key)
    attempts = (
        " Rows are of attempts: in `trials` the newest attempt counts, the others are kept."
        if table.of_attempts and table.name == "trials"
        else " Rows count once their attempt's row in `trials` exists."
        if table.of_attempts
        else ""
    )
    return f"{table.meaning[0].upper()}{table.meaning[1:]}. One row for each {key}.{attempts}"


def _columns(columns: Iterable[Column]) -> str:
    lines = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    for column in columns:
        meaning = column.meaning.replace("|", "\\|").replace("*", "\\*")
        lines.append(f"| `{column.name}` | {_KINDS[column.kind]} | {column.unit} | {meaning} |")
    return "\n".join(lines)


def write(folder: Path) -> None:
    """Writes the page into a folder."""
    (folder / PAGE_FILE).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
