"""`make models`: every model type through every stage; writes docs/models.md and docs/models.json.

python -m benchmarks.zoo TYPE … tries some types and replaces their rows.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from benchmarks.zoo.configs import VARIANTS
from benchmarks.zoo.stages import STAGES, quiet, run

DOCS = Path(__file__).parents[2] / "docs"

_JSON = DOCS / "models.json"
_WIDTH = 200  # letters of a reason; all of it is in models.json

_HEAD = """# Which models work

Written by `make models`, with transformers {version}. Each type behind
`AutoModelForImageTextToText` is built small and random, and taken through the stages of a trial by
the code that runs trials: its towers found; both calibrated on questions about pictures, through
the whole model; both pruned to 50 % by Wanda, zeros counted; repaired one step by SparseLoRA in the
DeepSpeed loop; merged, zeros counted and logits compared; saved; loaded by plain transformers,
logits equal to 1e-5.

The inputs are tensors made from the configuration (`benchmarks/zoo/tensors.py`), not by each type's
processor: most processors need torchvision, or a vocabulary and template that come with a
checkpoint. So the table speaks for model classes. The pocket models, a BLIP-2 and a LLaVA, run with
their processors in every test of trials.

**{found} types have their towers found; {passed} pass every stage, of {types} tried.** Transformers
has {known}; one that is not in the table has not been tried yet. The stage that a type fails says
why, [models.json](models.json) in full. A variant (another language model) stands behind a colon
and is not counted as a type. `ONLY="llava git" make models` tries some.

`ressa models MODEL` shows the parts of a checkpoint, from its configuration alone. Where one is not
found, the sweep file names it:

```yaml
model:
  id: org/name
  towers: {{vision: model.encoder, connector: [model.bridge]}}   # language, other: likewise
```

A tower that is given replaces what is found; connector and other are added to it. A parameter that
no part claims is an error, at `validate` already. Experts of mixtures are matrices of their own;
one that no calibration token reached is pruned as if its inputs were alike. Embeddings, heads,
norms, routers, connector and query tokens stay dense; repair may train the connector.

Weights come from safetensors, one file or several, and are mapped into memory: workers of a node
share them until one changes them. Seen with a LLaVA of 524 MB in six bfloat16 files, two processes
and every weight read: the files are 262 MB of each process's memory (PSS), and 10 MB more are its
own (`python -m pytest -m slow tests/models/test_loading.py`). A `model.dtype` that is not the
files' makes each worker a copy of its own.

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
    passed = sum(row["loaded"] == "yes" for row in rows)
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
        passed=sum(row["loaded"] == "yes" for row in types),
    )
    lines = [f"| type | {' | '.join(STAGES)} |", "|---" * (len(STAGES) + 1) + "|"]
    lines += [f"| {row['type']} | {' | '.join(map(_cell, map(row.get, STAGES)))} |" for row in rows]
    (DOCS / "models.md").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    _JSON.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _cell(answer: str) -> str:
    """A stage's "yes", nothing, or the reason why not, as much of it as a table holds."""
    reason = answer.replace("|", "\\|")
    return reason if len(reason) <= _WIDTH else f"{reason[:_WIDTH]} …"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
