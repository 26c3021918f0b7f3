"""Rows as a terminal shows them: in percent and points; what all rows share is said once, above."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ressa.landscape.figures import split_of
from ressa.landscape.render import percent

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]
_STEPS = 20  # of a curve: more rows nobody reads


def once(rows: Sequence[Row], names: Sequence[str]) -> tuple[list[str], list[Row]]:
    """Takes columns out that are the same in all of several rows, or in the only one.

    Returns:
        What they are, as "name: value"; and the rows without them and without empty columns.
    """
    same = {n: rows[0][n] for n in names if len({str(row.get(n)) for row in rows}) == 1}
    empty = {n for n in (rows[0] if rows else ()) if all(row[n] in (None, "") for row in rows)}
    said = [f"{name}: {value}" for name, value in same.items() if value not in (None, "")]
    kept = [{n: v for n, v in row.items() if n not in (*same, *empty)} for row in rows]
    return said, kept


def compared(rows: Sequence[Row]) -> tuple[str, list[Row]]:
    """Shortens what `compare` found."""
    named = ["one", "other"]
    ours = [
        {
            **{n: row[n] for n in named},
            **{n: row.get(n) for n in ("vision", "language", "sparsity", "options")},
            "score one": percent(row["score_one"]),
            "score other": percent(row["score_other"]),
            "one − other": _points(row["difference_points"]),
            **_bounds(row),
            "p": _chance(row["p_value"]),
            "p_holm": _chance(row["p_holm"]) if len(rows) > 1 else None,
            "runs": row["runs"],
            "pictures": row["pictures"],
            "test": row["test"],
        }
        for row in rows
    ]
    if len(ours) > 1:  # allocations: what was asked says more than the name of a trial
        ours = [row | {side: row[side].partition("/")[0] for side in named} for row in ours]
    said, kept = once(_options(ours), [*named, "runs", "pictures", "test"])
    return " · ".join(said), kept


def ordered(rows: Sequence[Row], by: str | None) -> tuple[str, list[Row]]:
    """Shortens what `order` found."""
    ours = [
        {
            "one": row["one"],
            "other": row["other"],
            "scope": row["scope"],
            **{n: None if math.isnan(row[n]) else f"{row[n]:.2f}" for n in ("tau", "low", "high")},
            "swapped": f"{row['swapped']} of {row['pairs']}",
            **{n: row[n] for n in ("swapped_models", "swapped_allocations")},
            **{n: row[n] for n in ("allocations", "runs", "pictures")},
        }
        for row in rows
    ]
    said, kept = once(ours, ["allocations", "runs", "pictures"])
    about, kept = _conditions(kept, by)
    return " · ".join([*about, *said]), kept


def won(rows: Sequence[Row], by: str | None) -> tuple[str, list[Row]]:
    """Shortens what `order --winners` found."""
    ours = [
        {
            "one": row["one"],
            "other": row["other"],
            "line": f"{row['line']:g}",
            "best": row["subject"],
            "holds": row["answer"],
            "strongest": row["against"],
            "difference": _points(row["difference_points"]),
            **_bounds(row),
            "seeds": row["seeds"],
        }
        for row in rows
    ]
    said, kept = once(ours, ["seeds"])
    about, kept = _conditions(kept, by)
    return " · ".join([*about, *said]), kept


def layered(layers: "pandas.DataFrame", results: "pandas.DataFrame") -> tuple[str, list[Row]]:
    """Shortens the layers of a trial: names within their block, and a row for each block."""
    trial = layers["trial"].iloc[0]
    rows: list[Row] = []
    for (tower, block), own in layers.groupby(["tower", "block"], sort=False):
        start = os.path.commonpath([name.replace(".", "/") for name in own["name"]])
        lone = len(own) == 1
        rows += [
            {
                "tower": tower,
                "block": block,
                "layer": name.rpartition(".")[2] if lone else name[len(start) + 1 :],
                "sparsity": f"{sparsity:.3f}",
                "output_error": None if error != error else percent(error),
            }
            for name, sparsity, error in own[["name", "sparsity", "output_error"]].itertuples(
                index=False
            )
        ]
        if not lone:
            mean, weights = own["output_error"].astype(float).mean(), own["weights"].sum()
            rows.append(
                {
                    "tower": tower,
                    "block": block,
                    "layer": "all of it",
                    "sparsity": f"{own['zeros'].sum() / weights:.3f}" if weights else None,
                    "output_error": None if mean != mean else percent(mean),
                }
            )
    (row,) = results[results["trial"] == trial].to_dict("records")
    return f"layers of {_trial(row)}", once(rows, [])[1]


def curved(
    curves: "pandas.DataFrame", results: "pandas.DataFrame", *, chosen: bool
) -> tuple[str, list[Row]]:
    """Shortens curves of repair: a column a trial, with its split, and about twenty steps."""
    about = {row["trial"]: _trial(row, score=False) for row in results.to_dict("records")}
    shown = list(dict.fromkeys(curves["trial"]))
    losses = curves.pivot(index="step", columns="trial", values="loss")[shown]
    stride = math.ceil(len(losses) / _STEPS)
    rows = losses.iloc[sorted({*range(0, len(losses), stride), len(losses) - 1})]
    which = "" if chosen else ": of the dense model and of the best trials, best first"
    title = f"training loss by step of repair{which}"
    return title, [
        {"step": int(step), **{about[name]: f"{row[name]:.4f}" for name in shown}}
        for step, row in rows.iterrows()
    ]


def _trial(row: Row, *, score: bool = True) -> str:
    """Names a trial with its split, and its score."""
    said = f"{row['trial']} {split_of(row)}".strip()
    known = score and row["score"] is not None and row["score"] == row["score"]
    return f"{said}, score {percent(row['score'])}" if known else said


def _conditions(rows: list[Row], by: str | None) -> tuple[list[str], list[Row]]:
    """Shortens the names of two conditions, or takes out those that are the same in all rows."""
    sides = ("one", "other")
    said, rows = once(rows, sides)
    names = [row[side] for row in rows for side in sides if side in row]
    endings = {name.partition(", ")[2] for name in names}
    ending = endings.pop() if len(endings) == 1 else ""
    about = ", ".join(filter(None, (by, ending)))
    short = [
        row
        | {
            side: row[side].removeprefix(f"{by}=").removesuffix(f", {ending}")
            for side in sides
            if side in row
        }
        for row in rows
    ]
    return [*([about] if about else []), *said], short


def _options(rows: list[Row]) -> list[Row]:
    """Names the field that trials chose in the heading, where it is but one."""
    words = [str(row.get("options") or "") for row in rows]
    fields = {word.partition("=")[0] for word in words}
    if len(fields) != 1 or "" in fields or any(" " in word for word in words):
        return rows
    field = fields.pop()
    return [
        {(field if n == "options" else n): v for n, v in row.items()}
        | {field: row["options"].partition("=")[2]}
        for row in rows
    ]


def _bounds(row: Row) -> Row:
    return {n: _points(row[f"{n}_points"]) for n in ("low", "high")}


def _points(value: float | None) -> str | None:
    return None if value is None else f"{value:+.2f}"


def _chance(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"
