"""Which packages are installed: what a client and its cluster must have alike."""

import hashlib
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import ressa

PACKAGES = ("torch", "ray", "deepspeed", "transformers", "optuna", "pyarrow")
CODE = "ressa"


@cache
def installed() -> dict[str, str]:
    """Returns the versions of Python, of ressa and of what its results depend on, by name.

    That of ressa names its code too, since a checkout changes without its version.
    """
    found = {
        "python": ".".join(map(str, sys.version_info[:2])),
        CODE: f"{ressa.__version__} (code {_code()})",
    }
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a client that only submits needs but few
            continue
    return found


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Says what differs between a client, `here`, and its cluster, `there`."""
    return [
        f"{name} {version} here, {there.get(name, 'none')} on the cluster"
        for name, version in here.items()
        if there.get(name) != version
    ]


def _code() -> str:
    root = Path(ressa.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]
