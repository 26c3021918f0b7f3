"""Timing, and the table: rows are printed, kept in `results.json` and shown in `README.md`."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
_MARKS = "<!-- results: written by `make bench` -->", "<!-- end of results -->"
_PACKAGES = ["torch", "numpy", "scipy", "transformers", "llmcompressor", "peft"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing measured, ours beside a peer's; the ratio says how many times ours is better."""

    name: str
    shape: str
    peer_name: str
    ours: float
    peer: float
    unit: str
    rounds: int
    floor: float | None = None
    """What the median over the shapes of this name and peer has to reach."""
    goal: float | None = None

    @property
    def ratio(self) -> float:
        """How many times ours is better."""
        return self.peer / self.ours


def interleaved(rounds: int, **work: Callable[[], Callable[[], object]]) -> dict[str, float]:
    """Times several pieces of work in turns: the median process CPU seconds of each.

    Each is given as a function that prepares it, which is not timed, and returns it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, prepare in work.items():
            run = prepare()
            began = time.process_time()
            run()
            seconds[name].append(time.process_time() - began)
            del run
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def publish(groups: Mapping[str, Sequence[Row]]) -> None:
    """Prints the rows and writes them; those that were not measured this time stay as they are."""
    path = HERE / "results.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    runs, rows = known.get("runs", {}), known.get("rows", [])
    for group, measured in groups.items():
        runs[group] = {"date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", **_surroundings()}
        again = {(group, row.name, row.peer_name) for row in measured}
        rows = [r for r in rows if (r["group"], r["name"], r["peer_name"]) not in again]
        rows += [{"group": group, **asdict(row), "ratio": row.ratio} for row in measured]
    path.write_text(json.dumps({"runs": runs, "rows": rows}, indent=1) + "\n")
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(_MARKS[0])
    after = rest.partition(_MARKS[1])[2]
    readme.write_text(f"{before}{_MARKS[0]}\n\n{_markdown(runs, rows)}\n{_MARKS[1]}{after}")
    _print([row for row in rows if row["group"] in groups])


def medians(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """The median ratio over the shapes, by name and peer."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        ratios.setdefault((row["name"], row["peer_name"]), []).append(row["ratio"])
    return {key: statistics.median(values) for key, values in ratios.items()}


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    over_shapes = medians(rows)
    return [
        [
            row["name"],
            row["shape"],
            row["peer_name"],
            f"{row['ours']:.3g} {row['unit']}",
            f"{row['peer']:.3g} {row['unit']}",
            f"{row['ratio']:.3g}×",
            f"{(median := over_shapes[row['name'], row['peer_name']]):.3g}×",
            f"{row['floor']:g}× / {row['goal']:g}×" if row["floor"] else "",
            _verdict(median, row),
        ]
        for row in rows
    ]


def _verdict(median: float, row: Mapping[str, Any]) -> str:
    if not row["floor"]:
        return ""
    return "goal" if median >= row["goal"] else "floor" if median >= row["floor"] else "below"


_COLUMNS = ["what", "shape", "peer", "ours", "peer's", "ratio", "median", "floor / goal", "reached"]


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(*_COLUMNS)
    for cells in _cells(rows):
        table.add_row(*cells)
    Console(width=150).print(table)


def _markdown(runs: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for group, run in runs.items():
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        lines += [f"### {group}", "", f"{run['date']}, {run['machine']}; {versions}.", ""]
        lines += [f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS)]
        of_group = [row for row in rows if row["group"] == group]
        lines += [f"| {' | '.join(cells)} |" for cells in _cells(of_group)] + [""]
    return "\n".join(lines)


def _surroundings() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    kind = next((name for name in ("avx512f", "avx2") if name in flags), "")
    machine = f"{models[0] if models else platform.processor()} {kind}, one thread"
    return {"machine": machine, "versions": versions}
