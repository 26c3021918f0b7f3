"""The report's page: style, script and data in one file that asks for nothing else.

The script puts every string in as text. The data stand in the page as JSON in which no character
can end the element, and the page's own policy lets nothing run but its own script, by its hash.
"""

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from html import escape
from pathlib import Path
from string import Template
from tempfile import NamedTemporaryFile
from typing import Any

from ressa.errors import writing

_HERE = Path(__file__).parent


def page(data: Mapping[str, Any], *, watch: int | None = None) -> str:
    """Makes the page.

    Args:
        data: from `gather`; or from `gather_map`, of a page without the rest.
        watch: seconds after which it looks for newer data where it came from; None never looks.
    """
    style, script, frame = _part("report.css"), _part("report.js"), _part("report.html")
    asks = "'none'" if watch is None else "'self'"
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        f"connect-src {asks}; base-uri 'none'; form-action 'none'"
    )
    return Template(frame).substitute(
        policy=escape(policy, quote=True).replace("&#x27;", "'"),
        part="all" if "provenance" in data else "map",
        title=escape(f"{data['sweep']}: ressa report"),
        style=style,
        data=as_script(dict(data) | {"watch": watch}),
        script=script,
    )


def as_script(data: Any) -> str:
    """Writes JSON that can stand in a script element, whatever strings are in it."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def write_page(path: Path, text: str) -> None:
    """Writes the page; a reader meets the one before or this one, never half of it.

    Raises:
        StoreError: it cannot be written.
    """
    with writing(path):
        with NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _part(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
