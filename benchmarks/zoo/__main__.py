"""`make models`: every model type through every stage; docs/model-types.md and docs/models.json.

python -m benchmarks.zoo TYPE … tries some types and replaces their rows.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from textwrap import wrap

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from benchmarks.zoo.configs import VARIANTS
from benchmarks.zoo.stages import STAGES, quiet, run

DOCS = Path(__file__).parents[2] / "docs"

_JSON = DOCS / "models.json"
_WIDTH = 160  # letters of a reason; all of it is in models.json
_LINE = 100

_HEAD = """# Which types of model work

Written by `make models`, with transformers {version}. Each type behind
`AutoModelForImageTextToText` is built small and random, and taken through the stages of a trial by
the code that runs trials: its towers found; both calibrated on questions about pictures, through
the whole model; both pruned to 50 % by Wanda, zeros counted; repaired one step by SparseLoRA in the
DeepSpeed loop; merged, zeros counted and logits compared; saved; loaded by plain transformers,
logits equal to 1e-5; causal, so that no token of an answer moves a logit that comes before it;
answered by two beams, and in a batch as each question alone, logits equal to 1e-3.

The inputs are tensors made from the configuration (`benchmarks/zoo/tensors.py`), not by each type's
processor: most processors need torchvision, or a vocabulary and template that come with a
checkpoint. So this page speaks for model classes. The pocket models, a BLIP-2 and a LLaVA, run with
their processors in every test of trials; those of PaliGemma, Gemma 3 and LLaVA ask small models in
`tests/models/test_asked.py`.

Of the {known} types that transformers has, {types} were tried: **{passed} pass every stage, and of
{found} the towers are found.** `ONLY="llava git" make models` tries some. A variant (another
language model) stands behind a colon and is not counted.

"""


def main(asked: list[str]) -> int:
    """Runs the types and prints a line for each; returns the exit code."""
    quiet()
    kinds = asked or sorted({*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, *VARIANTS})
    known = [] if not asked or not _JSON.exists() else json.loads(_JSON.read_text("utf-8"))
    table = {row["type"]: row for row in known}
    rows = []
    for kind in kinds:
        rows.append(_row(kind))
        table[kind] = rows[-1]
        _write([table[name] for name in sorted(table)])
    passed = sum(row[STAGES[-1]] == "yes" for row in rows)
    print(f"{passed} passed, {len(rows) - passed} failed")
    return 0


def _row(kind: str) -> dict[str, str]:
    began = time.perf_counter()
    row = {"type": kind, **dict.fromkeys(STAGES, "")}
    with tempfile.TemporaryDirectory() as folder:
        for stage, answer in run(kind, Path(folder)):
            row[stage] = answer
    last = next((f"{s}: {row[s]}" for s in STAGES if row[s] != "yes"), "every stage")
    print(f"{kind:24} {last[:150]}  ({time.perf_counter() - began:.1f} s)", flush=True)
    return row


def _write(rows: list[dict[str, str]]) -> None:
    types = [row for row in rows if ":" not in row["type"]]
    head = _HEAD.format(
        version=transformers.__version__,
        types=len(types),
        known=len(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
        found=sum(row["towers"] == "yes" for row in types),
        passed=sum(row[STAGES[-1]] == "yes" for row in types),
    )
    fine = [row["type"] for row in rows if row[STAGES[-1]] == "yes"]
    lines = ["## Every stage", "", *wrap(", ".join(fine), _LINE, break_on_hyphens=False), ""]
    lines += ["## Not every stage", "", "In full: [models.json](models.json).", ""]
    lines += ["| type | first stage that fails | why |", "|---|---|---|"]
    for row in rows:
        stage = next((stage for stage in STAGES if row[stage] != "yes"), None)
        if stage is not None:
            lines.append(f"| {row['type']} | {stage} | {_cell(row[stage])} |")
    (DOCS / "model-types.md").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    _JSON.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _cell(answer: str) -> str:
    """The first sentence of the reason why not, as much of it as a table holds."""
    _, _, reason = answer.replace("|", "\\|").partition(": ")
    reason = reason.partition(". ")[0]
    return reason if len(reason) <= _WIDTH else f"{reason[:_WIDTH]} …"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
