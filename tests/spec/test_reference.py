"""The sweep file's reference is what the models say, and its JSON Schema takes what they take."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from ressa.spec import SweepSpec, load_spec, reference
from ressa.spec.space import SpecModel

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "sweeps").rglob("*.yaml"))
RESOLVED = ("quickstart", "pareto", "seeds", "ressa_vicuna_7b")
SCHEMA = reference.json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
LEAST = {"ressa": 1, "model": "pocket-blip2", "space": {"vision_sparsity": 0.5}}


def is_taken(content: object) -> bool:
    return bool(VALIDATOR.is_valid(content))


def test_the_reference_is_fresh() -> None:
    kept = {name: (ROOT / "docs" / name).read_text() for name in ("sweep-file.md",)}
    assert kept == {"sweep-file.md": reference.page()}, "run `make docs`"
    published = json.loads((ROOT / "docs" / "sweep.schema.json").read_text())
    assert published == SCHEMA, "run `make docs`"


def test_the_json_schema_is_one() -> None:
    VALIDATOR.check_schema(SCHEMA)


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda path: path.stem)
def test_the_json_schema_takes_every_sweep_that_ships(sweep: Path) -> None:
    VALIDATOR.validate(YAML(typ="safe").load(sweep.read_text()))


@pytest.mark.parametrize("name", RESOLVED)
def test_the_json_schema_takes_resolved_sweeps(name: str) -> None:
    sweep = next(path for path in SWEEPS if path.stem == name)
    resolved = load_spec(sweep).spec.to_yaml()
    VALIDATOR.validate(YAML(typ="safe").load(resolved))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"model": {"id": "org/model", "towers": {"vision": "encoder", "language": ["a", "b"]}}},
        {"points": [{"vision_sparsity": "2:4", "language_sparsity": 0.5}]},
        {"budget": 0.5, "constraints": "density >= 0.4"},
        {"budget": [0.4, 0.5], "constraints": ["density >= 0.4"]},
        {"space": {"vision_sparsity": {"choices": [0.5, "2:4"]}, "repair.steps": 5}},
        {"space": {"sparsity": {"low": 0, "high": 0.5, "step": 0.1}}},
        {"prune": {"layers": "owl", "vision": {"layers": {"*.0.*": 0.1}}}},
        {"repair": {"train": "vision, connector"}, "evaluate": [{"task": "easy-vqa"}]},
        {"objective": [{"maximize": "easy-vqa.accuracy"}, {"maximize": "sparsity"}]},
    ],
    ids=str,
)
def test_the_json_schema_takes_short_forms(more: dict[str, object]) -> None:
    VALIDATOR.validate({**LEAST, **more})


@pytest.mark.parametrize(
    "fault",
    [
        {"serach": {}},
        {"search": {"trails": 3}},
        {"search": {"sampler": "tpee"}},
        {"search": {"trials": 0}},
        {"search": {"trials": "3"}},
        {"budget": 50},
        {"prune": {"layers": "owls"}},
        {"prune": {"vision": {"layers": {"*": 2}}}},
        {"space": {"vision_sparsity": {"low": 0, "high": 1, "setp": 0.1}}},
        {"space": {"vision_sparsity": {"choices": []}}},
        {"repair": {"dropout": 1}},
        {"ressa": 2},
    ],
    ids=str,
)
def test_the_json_schema_refuses_what_one_field_alone_shows_to_be_wrong(
    fault: dict[str, object],
) -> None:
    assert is_taken(LEAST)
    assert not is_taken({**LEAST, **fault})


def test_every_field_of_every_section_is_on_the_page_with_its_meaning() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| .* \| (.*) \|$", reference.page(), re.MULTILINE)
    assert all(values and meaning for _, values, meaning in rows)
    listed = {name for name, _, _ in rows}

    def fields(model: type[SpecModel]) -> set[str]:
        return set(model.by_key())

    assert fields(SweepSpec) <= listed
    for definition in SCHEMA["$defs"].values():
        assert set(definition["properties"]) <= listed


def test_links_to_sections_lead_to_headings() -> None:
    page = reference.page()
    anchors = {reference._anchor(title) for title in re.findall(r"^## (.+)$", page, re.MULTILINE)}
    links = set(re.findall(r"\]\(#([^)]+)\)", page))
    assert links
    assert links <= anchors
