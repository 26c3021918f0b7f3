"""Every fault at once, each with its line, its field and what to do."""

from pathlib import Path

import pytest

BAD = """\
ressa: 2
name: My Sweep!
model: pocket-blip
learning_rate: 5e-3
prune:
  methd: wanda
  method: wnada
  calibration: {task: easy-vqas, samples: 0}
space:
  vision_sparsity: {low: 0.9, high: 0.1}
  language_sparsity: {choices: [50, 0.5, "3:2"]}
  repair.stps: 5
  repair.learning_rate: {low: 0.1, high: 0.2, step: -1}
  prune.method: {choices: [wanda, magnitud]}
budget: [0.5, 50]
search: {sampler: gird, trials: many, parallel: 0}
repair:
  data: {split: test}
  train: [vision, vision]
  distillation: {weight: 2}
  steps: 10.0
evaluate: [{task: easy-vqa, split: test}]
objective: {maximize: easy-vqa.balanced_acuracy}
resources: {gpus_per_worker: .inf}
baselines: [dens]
store:
"""

EXPECTED = """\
1: ressa: this version of ressa reads format 1, got 2.
2: name: a name of a-z, 0-9, - and _, got 'My Sweep!'. Did you mean 'my-sweep'?
3: model: unknown model 'pocket-blip'. Did you mean 'pocket-blip2'? Known:
4: learning_rate: unknown key 'learning_rate'. Did you mean 'repair.learning_rate'?
6: prune.methd: unknown key 'methd'. Did you mean 'method'?
7: prune.method: unknown prune method 'wnada'. Did you mean 'wanda'?
8: prune.calibration.samples: an integer ≥ 1, got 0.
8: prune.calibration.task: unknown task 'easy-vqas'. Did you mean 'easy-vqa'?
10: space.vision_sparsity: low must not be above high, got low 0.9 and high 0.1.
11: space.language_sparsity.choices[0]: a fraction in [0, 1], got 50. Did you mean 0.5?
11: space.language_sparsity.choices[2]: a pattern N:M keeps N of every M weights, 1 ≤ N < M
12: space.repair.stps: no field that can be swept. Did you mean 'repair.steps'?
13: space.repair.learning_rate: step must be above 0, got -1.
14: space.prune.method.choices[1]: unknown prune method 'magnitud'. Did you mean 'magnitude'?
15: budget[1]: a fraction in [0, 1], got 50. Did you mean 0.5?
16: search.sampler: one of grid, random, qmc, tpe, gp, nsga2, map, got 'gird'. Did you mean 'grid'?
16: search.trials: an integer, got 'many'.
16: search.parallel: an integer ≥ 1, got 0.
18: repair.data.split: repair learns from split 'train' alone, got 'test'.
19: repair.train: each part once, got vision, vision.
20: repair.distillation.weight: a number ≤ 1, got 2.
21: repair.steps: an integer, got 10.0. Did you mean 10?
22: evaluate[0].split: a sweep is scored on split 'validation' alone, got 'test'.
23: objective.maximize: task.metric, one of easy-vqa.exact_match
24: resources.gpus_per_worker: a finite number, got
25: baselines[0]: one of dense, dense_repaired, got 'dens'. Did you mean 'dense'?
26: store: text, got nothing.
"""


def test_every_fault_is_reported_at_once_with_its_line_and_a_hint(faults):
    found = faults(BAD)
    expected = [f"sweep.yaml:{line}" for line in EXPECTED.splitlines()]
    for line in expected:
        assert any(fault.startswith(line) for fault in found), (line, found)
    assert len(found) == len(expected)


def test_missing_keys_are_said_with_what_they_are_for(faults):
    found = faults("name: x")
    assert found == [
        "sweep.yaml:1: ressa: missing. Version of the file format.",
        "sweep.yaml:1: model: missing. The model: a name alone, or a mapping.",
        "sweep.yaml:1: space: missing. What varies: vision_sparsity and language_sparsity, or one "
        "sparsity for both, and any field of prune or repair under its dotted name. A range, "
        "choices, or a constant.",
    ]


def cases() -> list[tuple[str, str]]:
    """Reads one_fault_each.txt: the text of each sweep file, and how its fault begins."""
    text = (Path(__file__).parent / "one_fault_each.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    blocks = [block for block in "\n".join(lines).split("\n\n") if block.strip()]
    found = []
    for block in blocks:
        content, fault = block.strip("\n").split("\n> ")
        model = "" if "model:" in content else "model: pocket-blip2\n"
        found.append((f"ressa: 1\n{model}{content}\n", fault))
    return found


@pytest.mark.parametrize(("text", "fault"), cases())
def test_a_fault_says_where_it_is_and_what_is_possible(faults, text, fault):
    found = faults(text)
    assert any(line.startswith(f"sweep.yaml:{fault}") for line in found), found
    assert len(found) == 1


def test_faults_in_the_form_and_in_the_fields_come_together(faults, least):
    found = faults(f"{least}store: a\nstore: b\nprune: !x {{method: wnada}}\n")
    assert [fault.split(": ")[0] for fault in found] == [f"sweep.yaml:{n}" for n in (5, 6, 6)]
