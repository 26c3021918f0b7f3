"""The model card of an export: what it is, how it was made, what it scores, what it is not."""

from collections.abc import Mapping
from typing import Any

_STATES = {
    "dense": "dense",
    "pruned": "pruned",
    "repaired": "repaired",
    "repaired_unmerged": "repaired, not merged",
    "majority": "most frequent answer",
}

_LOAD_MERGED = """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(folder, dtype="{dtype}")
processor = AutoProcessor.from_pretrained(folder)
```

`masks.safetensors` holds one bit a weight of each pruned layer, row by row, 1 where it stays:
`numpy.unpackbits(bits, count=rows * columns)`; the shapes are in `certificate.json`."""

_LOAD_ADAPTERS = """This folder holds masks and what repair trained. It needs the dense model
`{id}`, whose files' hashes are in `certificate.json`.

```python
from pathlib import Path
from ressa.export import load

vlm = load(Path(folder))  # vlm.model and vlm.processor, as transformers has them
```"""


def model_card(said: Mapping[str, Any]) -> str:
    """Writes README.md from what the certificate says."""
    parts = [_what(said), _use(said), _zeros(said), _recipe(said), _scores(said), _limits(said)]
    return "\n\n".join(parts) + "\n"


def _what(said: Mapping[str, Any]) -> str:
    towers = said["towers"]
    shares = " and ".join(
        f"{_percent(towers[tower]['sparsity'])} of the {tower} tower's prunable weights"
        for tower in towers
    )
    repair = said["repair"]
    how = "not repaired" if repair is None else f"repaired by {repair['method']}"
    return (
        f"# {_text(said['sweep'])} {_text(said['trial'])}\n\n"
        f"`{_code(said['model']['id'])}` with {shares} exactly zero, {how}. "
        f"Made by [ressa](https://arxiv.org/abs/2404.02424) {said['made_by']['ressa']} as trial "
        f"{_text(said['trial'])} of the sweep {_text(said['sweep'])}."
    )


def _use(said: Mapping[str, Any]) -> str:
    model = said["model"]
    how = _LOAD_MERGED if said["format"] == "merged" else _LOAD_ADAPTERS
    said_of_size = ""
    if model["image_size"] is not None:
        said_of_size = (
            f"\n\nIt looks at pictures of {model['image_size']} pixels, its position embeddings "
            "interpolated: with plain transformers, pass `interpolate_pos_encoding=True`."
        )
    text = how.format(dtype=model["dtype"], id=_code(model["id"]))
    return (
        f"## Use\n\n{text}{said_of_size}\n\n`ressa verify FOLDER` counts every zero again, offline."
    )


def _zeros(said: Mapping[str, Any]) -> str:
    lines = [
        "## Sparsity",
        "",
        "| tower | prunable weights | pruned | zeros before merge | zeros now | pattern |",
        "|---|---|---|---|---|---|",
    ]
    for tower, found in said["towers"].items():
        lines.append(
            f"| {tower} | {found['weights']:,} | {found['pruned']:,} "
            f"({_percent(found['sparsity'])}) | {found['zeros_before_merge']:,} | "
            f"{found['zeros']:,} | {', '.join(found['patterns']) or 'unstructured'} |"
        )
    lines += ["", "No pruned weight is anything but +0.0; embeddings, heads and norms are dense."]
    return "\n".join(lines)


def _recipe(said: Mapping[str, Any]) -> str:
    recipe = said["recipe"]
    lines = ["## Recipe", ""]
    for tower in ("vision", "language"):
        asked = recipe[tower]
        lines.append(
            f"- {tower}: {_text(asked['method'])}, sparsity {_text(asked['target'])}, weights "
            f"compete per {asked['group']}"
        )
    calibration, repair = recipe["calibration"], said["repair"]
    lines.append(
        f"- calibration: {calibration['samples']} questions of {_text(calibration['task'])}, seed "
        f"{calibration['seed']}, activations {calibration['activations']}"
    )
    if repair is not None:
        weight = repair["distillation"]["weight"]
        taught = f", distillation {weight:g}" if weight else ""
        lines.append(
            f"- repair: {repair['method']}, {repair['steps']} steps of {repair['batch_size']} "
            f"questions of {_text(repair['data']['task'])} {_text(repair['data']['split'])}, "
            f"learning rate {repair['learning_rate']:g}{taught}; trains "
            f"{', '.join(repair['train'])}"
        )
    lines.append("\nAll of it is in `certificate.json`.")
    return "\n".join(lines)


def _scores(said: Mapping[str, Any]) -> str:
    lines = [
        "## Scores",
        "",
        "| task | split | metric | model | picture | score | standard error | questions |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in said["scores"]:
        if "/" in row["metric"]:
            continue  # of one kind of question: in the certificate
        error = row["standard_error"]
        cells = [
            _text(row["task"]),
            _text(row["split"]),
            _text(row["metric"]),
            _STATES.get(row["state"], row["state"]),
            row["image"],
            "–" if row["value"] is None else f"{row['value']:.4f}",
            "" if error is None else f"{error:.4f}",
            f"{row['items']:,}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _limits(said: Mapping[str, Any]) -> str:
    checked = said["checked"]
    return "\n".join(
        [
            "## Limits",
            "",
            "- The scores are those of the sweep's search, on the split it chose by: the best of "
            "many cells is biased upwards, and one seed says nothing about the next.",
            "- Zeros take as much memory and time as other weights in plain transformers: an "
            "unstructured or N:M model is faster only where a kernel knows of it. None was "
            "measured here.",
            "- Whatever the dense model gets wrong, was trained on or is licensed under holds for "
            "this one too.",
            f"- How it was made again for this export: {_text(checked['how'])}",
        ]
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _text(value: object) -> str:
    """A stranger's string, as one that Markdown does not read."""
    text = " ".join(str(value).split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#!&" else c for c in text)


def _code(value: object) -> str:
    """A stranger's string between backticks."""
    return " ".join(str(value).replace("`", "'").split())
