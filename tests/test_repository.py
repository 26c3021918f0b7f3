"""The repository keeps its own promises: sweeps validate, links resolve, versions agree."""

import re
import tomllib
from collections import Counter
from decimal import Decimal
from importlib import import_module
from inspect import getmembers, ismodule
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from packaging.requirements import Requirement
from packaging.version import Version
from typer.main import get_command

import ressa
from ressa.catalog import METHODS, MODELS, TASKS
from ressa.cli import app
from ressa.registry import Registry
from ressa.spec import grid_points, load_spec

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SWEEPS = sorted((ROOT / "sweeps").rglob("*.yaml"))
PAGES = [
    ROOT / "README.md",
    *(page for folder in ("sweeps", "docs", "cluster") for page in (ROOT / folder).rglob("*.md")),
]
VERBS = get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_that_ships_is_valid(sweep: Path) -> None:
    loaded = load_spec(sweep)
    assert loaded.spec.name


@pytest.mark.parametrize("model", ["blip2", "llava"])
@pytest.mark.parametrize(("total", "first", "last"), [(100, 2, 8), (120, 4, 8)])
def test_sweeps_of_an_equal_sum_list_its_pairs_three_times_and_no_other(
    model, total, first, last
) -> None:
    loaded = load_spec(ROOT / f"sweeps/studies/equal_sum_{total}_{model}.yaml")
    assert loaded.inventory is not None
    points, _ = grid_points(loaded.spec, loaded.inventory)
    pairs = [(Decimal(p["vision_sparsity"]), Decimal(p["language_sparsity"])) for p in points]
    expected = {
        (Decimal(tenth) / 10, Decimal(total - 10 * tenth) / 100): 3
        for tenth in range(first, last + 1)
    }
    assert Counter(pairs) == expected


def test_sweeps_hold_no_python() -> None:
    assert SWEEPS
    assert not list((ROOT / "sweeps").rglob("*.py"))
    assert not list((ROOT / "cluster").rglob("*.py"))


def test_every_sweep_is_in_the_list_of_questions() -> None:
    listed = (ROOT / "sweeps" / "README.md").read_text()
    for sweep in SWEEPS:
        assert f"({sweep.relative_to(ROOT / 'sweeps')})" in listed


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help_and_is_in_the_readme(verb: str) -> None:
    command = VERBS[verb]
    assert command.help
    for parameter in command.params:
        assert parameter.name == "help" or parameter.help, f"{verb} {parameter.name}"
    assert re.search(rf"`ressa {verb}\b", (ROOT / "README.md").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_inside_the_repository_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_row_of_a_table_stands_below_a_header(page: Path) -> None:
    read = MarkdownIt("commonmark").enable("table").parse(page.read_text())
    assert not [one.content for one in read if one.type == "inline" and one.content[:1] == "|"]


def test_every_file_of_the_readmes_tree_exists() -> None:
    tree = re.search(r"```\n(├── Makefile.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tree, "the README shows where things are"
    folders: list[str] = []
    for line in tree[1].splitlines():
        found = re.match(r"([│ ]*)[├└]── (\S+)", line)
        if found:
            depth = len(found[1]) // 4
            folders = [*folders[:depth], found[2]]
            assert ROOT.joinpath(*folders).exists(), "/".join(folders)


def test_the_public_names_are_those_listed() -> None:
    assert list(ressa.__all__) == sorted(ressa.__all__)
    for name in ressa.__all__:
        assert getattr(ressa, name) is not None
    own = {
        name
        for name, value in getmembers(ressa)
        if not name.startswith("_") and not ismodule(value) and name not in ("Any", "TYPE_CHECKING")
    }
    assert own <= set(ressa.__all__)


@pytest.mark.parametrize("registry", [METHODS, TASKS, MODELS], ids=lambda one: one.kind)
def test_every_registered_target_imports(registry: Registry[object]) -> None:
    for name, target in registry._targets.items():
        module, attribute = target.split(":")
        assert getattr(import_module(module), attribute) is registry[name]


def test_the_versions_agree() -> None:
    assert PROJECT["version"] == ressa.__version__
    assert f"## {ressa.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_pin_every_direct_dependency_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    pinned = {_plain(name): Version(v) for name, v in (pin.split("==") for pin in pins)}
    extras = PROJECT["optional-dependencies"].values()
    for text in [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]:
        wanted = Requirement(text)
        assert _plain(wanted.name) in pinned, f"constraints.txt lacks {wanted.name}"
        assert pinned[_plain(wanted.name)] in wanted.specifier, text


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", ["__main__", "obvious", "studies", "verdicts", "zoo.__main__"])
def test_the_benches_find_what_they_measure(name: str) -> None:
    import_module(f"benchmarks.{name}")
