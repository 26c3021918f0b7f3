"""Whatever a file holds, loading it gives a spec or a SpecError that says what is wrong."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ressa.errors import SpecError
from ressa.spec import LoadedSpec, load_spec, spec_from_yaml

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))
FULL = """\
ressa: 1
name: all-fields
model: {id: pocket-blip2, dtype: float32}
prune: {method: wanda, group: row, calibration: {task: easy-vqa, samples: 8, seed: 0}}
space:
  vision_sparsity: {low: 0.0, high: 0.8, step: 0.1}
  repair.steps: {choices: [50, 100]}
  prune.vision.group: {choices: [row, matrix]}
budget: [0.4, 0.5]
search: {sampler: grid, trials: 26, parallel: 2, window: 4, seed: 0}
repair:
  data: {task: easy-vqa, split: train, samples: 60, seed: 0}
  train: [vision, connector, language]
  rank: {vision: 4, language: 8, connector: 2}
  distillation: {weight: 0.1, temperature: 1.0}
evaluate: [{task: easy-vqa, split: validation, samples: 20}]
objective: {maximize: easy-vqa.balanced_accuracy}
resources: {workers: 2, gpus_per_worker: 0, cpus_per_worker: 1}
"""
TOKENS = (
    *("0", "1", "-1", "50", "0.5", "1e9", "1e999", "1e-99", "9" * 50, ".inf", ".nan", "0x1F"),
    *("2:4", "4:2", "0:0", "1/0", "~", "true", "''", '"', "'", "{", "}", "[", "]", "[]", "{}"),
    *(":", ",", "- ", "? ", "!", "!!int", "&a", "*a", "<<", "|", ">", "#", "%", "@", "`", "---"),
    *("\n", "\t", " ", "  ", "\r", "\x85", "\u2028", "\x00", "\x1b", "é", "💥", "\\", "...", "…"),
    *("low", "high", "step", "log", "choices", "vision_sparsity", "repair.data", "prune", "wanda"),
)
SCALE = int(os.environ.get("RESSA_TEST_SCALE", "1"))
"""How many times the inputs of the CI tier: `make chaos` sets it."""
pytestmark = pytest.mark.timeout(900 * SCALE)

fuzz = settings(
    max_examples=150 * SCALE,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def loads_or_explains(path: Path, content: bytes, sets: tuple[str, ...] = ()) -> LoadedSpec | None:
    path.write_bytes(content)
    try:
        loaded = load_spec(path, sets)
    except SpecError as error:
        faults = error.faults
    else:
        faults = None
    if faults is not None:
        assert faults
        assert all(fault.startswith((str(path), "--set ")) for fault in faults)
        assert all(len(fault) < 2_000 for fault in faults)
        return None
    assert spec_from_yaml(loaded.spec.to_yaml()) == loaded.spec
    return loaded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sweep.yaml"


def test_the_text_that_is_mutated_is_valid(path):
    assert loads_or_explains(path, FULL.encode()) is not None


@fuzz
@given(content=st.binary(max_size=200))
def test_random_bytes_are_refused_with_a_reason(path, content):
    assert loads_or_explains(path, content) is None


@fuzz
@given(content=st.lists(st.sampled_from(TOKENS), max_size=40).map("".join))
def test_random_yaml_is_refused_with_a_reason(path, content):
    assert loads_or_explains(path, content.encode()) is None


@settings(fuzz, max_examples=400 * SCALE)
@given(seed=st.integers(0, 2**32), edits=st.integers(1, 4))
def test_a_mutated_sweep_file_loads_or_says_what_is_wrong(path, seed, edits):
    chance, text = random.Random(seed), FULL
    for _ in range(edits):
        start = chance.randrange(len(text))
        end = start + chance.choice((0, 0, 1, 3, 10, 40))
        text = text[:start] + chance.choice(("", *TOKENS)) + text[end:]
    loads_or_explains(path, text.encode())


@settings(fuzz, max_examples=200 * SCALE)
@given(seed=st.integers(0, 2**32))
def test_a_sweep_file_with_exchanged_values_loads_or_says_what_is_wrong(path, seed):
    chance, words = random.Random(seed), FULL.replace("\n", " \n").split(" ")
    for _ in range(chance.randrange(1, 4)):
        words[chance.randrange(len(words))] = chance.choice(TOKENS)
    loads_or_explains(path, " ".join(words).encode())


@fuzz
@given(
    key=st.lists(st.sampled_from(("prune", "method", "space", "0", "", "evaluate", "steps",
                                  "repair", "vision_sparsity", "low", "model")), max_size=4),
    value=st.lists(st.sampled_from(TOKENS), max_size=4).map("".join),
)  # fmt: skip
def test_a_random_set_applies_or_says_what_is_wrong(path, key, value):
    loads_or_explains(path, FULL.encode(), (f"{'.'.join(key)}={value}",))


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: sweep.stem)
def test_the_sweeps_that_ship_are_valid_and_ask_a_question(sweep):
    loaded = load_spec(sweep)
    assert loaded.spec.name == sweep.stem
    assert sweep.read_text(encoding="utf-8").startswith("# ")
    assert "?" in sweep.read_text(encoding="utf-8").splitlines()[0]
