"""README and docs say what is so: commands run, Python runs, sweep files are valid, messages exist.

The commands are run in a place of their own, on a small sweep of the name `quickstart`: real trials
of a file like the one that ships with less to do, without Ray. What cannot be run here is listed,
with the reason, and is parsed all the same.
"""

import ast
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer._click.exceptions import BadOptionUsage, MissingParameter
from typer.main import get_command

from ressa.cli import app, main
from ressa.spec import load_spec
from ressa.store import open_store
from ressa.sweep import rows
from ressa.sweep.confirm import confirmation
from ressa.sweep.ledger import Attempt, Ledger
from ressa.sweep.plan import make_plan
from tests.sweep.place import Place
from tests.sweep.test_confirm import finish
from tests.sweep.test_shipping import run_through

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
STUDY = ROOT / "docs" / "study.md"
VERBS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]

NOT_RUN = {
    "make": "installs, or takes minutes; its target must exist",
    "python3.11 -m venv|pip install": "installs",
    "for file in": "hours",
    "ressa run sweeps/half.yaml": "minutes; the slow test of the study runs it",
    "ressa best half": "of that sweep, likewise",
    "ressa landscape half": "likewise",
    "ressa confirm half": "likewise",
    "ressa verdict half": "likewise",
    "ressa export half": "likewise",
    "ressa verify half": "likewise",
    "python ask.py": "likewise",
    "python -m benchmarks": "minutes to hours; test_repository imports each",
    "export": "is kept for the page's later commands",
    "ressa run sweeps/pruning": "minutes; the file is valid",
    "ressa run sweeps/quickstart.yaml --store s3:": "needs a bucket; the tests of stores have one",
    "ressa confirm quickstart --top 3 --per-line --seeds 5$": "minutes; the study confirms",
    "ressa order SWEEP": "stands for any sweep; tests/landscape has some that vary these fields",
    "ressa submit": "needs a cluster: make cluster",
    "ressa watch two_workers": "needs a cluster: make cluster",
    "ressa data check": "needs a data set; tests/data checks one",
    "ressa report quickstart --watch": "goes on until Ctrl-C; tests/landscape serves one",
}
"""How commands begin that are only parsed (patterns), and why."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Its command lines, without comments."""
        found = re.sub(r"\\\n", " ", self.text)
        lines = re.findall(r"^\$ (.*)$", found, re.MULTILINE)
        return [shlex.join(shlex.split(line, comments=True)) for line in lines]


@cache
def blocks(language: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            line = text[: match.start()].count("\n") + 1
            found.append(Block(page, line, match[1], match[2]))
    return [one for one in found if one.language == language]


def pages_with(language: str) -> list[Any]:
    pages = dict.fromkeys(block.page for block in blocks(language))
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


def reason(command: str) -> str | None:
    """Why a command is not run, if it is not."""
    return next((why for start, why in NOT_RUN.items() if re.match(start, command)), None)


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sweeps that ship, a small quickstart that has run, and its confirmation.

    Only the rows of the confirmation are made up.
    """
    folder = tmp_path_factory.mktemp("shop")
    shutil.copytree(ROOT / "sweeps", folder / "sweeps")
    file = folder / "sweeps" / "quickstart.yaml"
    text = file.read_text()
    for large, small in (
        ("trials: 14, parallel: 2", "trials: 5, parallel: 1"),
        ("steps: 100 ", "steps: 1 "),
        ("samples: 6000", "samples: 64"),
        ("samples: 2000", "samples: 60"),
        ("samples: 128", "samples: 16"),
    ):
        assert text.count(large) == 1, large
        text = text.replace(large, small)
    file.write_text(text.replace("repair:\n", "repair:\n  batch_size: 32\n"))
    store = open_store(folder / "results", create=True)
    asked = load_spec(file).spec
    plan = make_plan(asked)
    sweep = store.create_sweep(asked.name, asked.model_copy(update={"store": "."}).to_yaml())
    sweep.commit("data", plan.data, epoch=1)
    ledger = Ledger(sweep, plan, epoch=1)
    sweep.event("started", {"planned": ledger.planned}, epoch=1)
    while isinstance(attempt := ledger.next(), Attempt):
        outcome = run_through(attempt.spec, store.location)
        ledger.finish(attempt, rows.succeeded(attempt, outcome, plan, started=datetime.now(UTC)))
    sweep.event("finished", epoch=1)
    spec = confirmation(sweep, top=1, per_line=True, seeds=3).spec
    made = sweep.store.create_sweep(spec.name, spec.model_copy(update={"store": "."}).to_yaml())
    finish(made, make_plan(spec), lambda point: 0.9)
    return folder


@pytest.fixture
def here(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as the working directory."""
    for variable in ("RESSA_STORE", "RESSA_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    copy = Path(shutil.copytree(shop, tmp_path / "here"))
    monkeypatch.chdir(copy)
    return copy


def call(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", pages_with("console"))
def test_commands_of_the_page_run(
    page: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    for block in blocks("console"):
        if block.page != page:
            continue
        assert block.commands, f"{page}:{block.line}: no line begins with '$ '"
        for command in block.commands:
            if reason(command) is not None:
                parsed(command)
                continue
            line, _, target = command.partition(" '>' ")
            code = call(shlex.split(line), monkeypatch)
            said = capsysbinary.readouterr()
            assert code == 0, f"{page}:{block.line}: {command}\n{said.err.decode()}"
            if target:
                assert said.out
    for block in blocks("python"):
        if block.page == page and page != STUDY and "PruneMethodContract" not in block.text:
            (here / "example.py").write_text(block.text)
            runpy.run_path("example.py")


def parsed(command: str, *, may_lack: bool = False) -> None:
    """Checks a command that is not run: its verb and options, its file, its target."""
    words = shlex.split(command.partition(" '>' ")[0])
    if words[0] == "make" and len(words) > 1:
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
    if words[0] != "ressa":
        return
    for word in words:
        if word.endswith(".yaml"):
            assert (ROOT / word).is_file(), f"{command}: there is no {word}"
    assert words[1] in VERBS, f"{command}: no such verb"
    verb, rest = VERBS[words[1]], words[2:]
    if hasattr(verb, "commands") and rest:
        assert rest[0] in verb.commands, f"{command}: no such verb"
        verb, rest = verb.commands[rest[0]], rest[1:]
    try:
        verb.make_context(words[1], list(rest))
    except (MissingParameter, BadOptionUsage):
        assert may_lack, command


def test_examples_in_the_help_have_verbs_and_options_that_exist() -> None:
    verbs = [*VERBS.values(), *VERBS["stages"].commands.values(), *VERBS["data"].commands.values()]
    epilogs = [verb.epilog for verb in verbs if verb.epilog]
    assert len(epilogs) > 15
    for line in "\n".join(epilogs).splitlines():
        if line.startswith("  "):
            parsed(line.strip().replace(" sweep.yaml", " sweeps/quickstart.yaml"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_in_the_text_have_verbs_and_options_that_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"(?<!\\)`(ressa [a-z]+[^`]*)`", text):
        if "…" not in span:
            parsed(" ".join(span.split()).replace("FILE", "file"), may_lack=True)


def test_every_reason_not_to_run_a_command_is_for_one() -> None:
    commands = [command for block in blocks("console") for command in block.commands]
    unused = [
        start for start in NOT_RUN if not any(re.match(start, command) for command in commands)
    ]
    assert unused == []


def test_commands_are_in_console_blocks_alone() -> None:
    for language in ("", "sh", "bash", "shell"):
        for block in blocks(language):
            where = f"{block.page}:{block.line}"
            assert not block.commands, f"{where}: commands belong into ```console"
            assert language == "", f"{where}: console, not {language}"


def fragments() -> Iterator[Any]:
    for block in blocks("yaml"):
        where = block.page.relative_to(ROOT)
        yield pytest.param(block, id=f"{where}:{block.line}".replace("/", "-"))


@pytest.mark.parametrize("block", list(fragments()))
def test_sweep_files_and_parts_of_them_are_valid(block: Block, tmp_path: Path) -> None:
    content = YAML(typ="safe").load(block.text)
    rest = {"ressa": "1", "model": "pocket-blip2", "space": "{sparsity: 0.5}"}
    if {"budget", "space", "points"} & set(content):
        rest.pop("space")
    lines = [f"{key}: {value}\n" for key, value in rest.items() if key not in content]
    file = tmp_path / "part.yaml"
    file.write_text(block.text + "".join(lines))
    assert load_spec(file).spec.name == "part"


@pytest.mark.timeout(900)
def test_sql_of_the_pages_is_answered(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert blocks("sql")
    for block in blocks("sql"):
        assert call(["ressa", "query", block.text], monkeypatch) == 0, f"{block.page}:{block.line}"


def test_plug_ins_of_the_readme_are_declared_as_entry_points() -> None:
    (block,) = blocks("toml")
    assert tomllib.loads(block.text)["project"]["entry-points"]["ressa.methods"]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_the_study_goes_from_its_question_to_a_model_that_plain_transformers_loads(
    tmp_path: Path,
) -> None:
    shutil.copytree(ROOT / "sweeps", tmp_path / "sweeps")
    (ask,) = (block.text for block in blocks("python") if block.page == STUDY)
    (tmp_path / "ask.py").write_text(ask)
    for block in blocks("console"):
        for command in block.commands if block.page == STUDY else ():
            program, *words = shlex.split(command)
            if program == "ressa":
                done = Place(tmp_path).ressa(*words)
            else:
                asked = [sys.executable, *words]
                done = subprocess.run(
                    asked, cwd=tmp_path, capture_output=True, text=True, check=False
                )
            assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert "['blue']" in done.stdout


@pytest.mark.slow
def test_the_readmes_pruning_method_passes_the_contract_as_the_readme_tests_it(
    tmp_path: Path,
) -> None:
    text = [block.text for block in blocks("python") if "PruneMethod" in block.text]
    (tmp_path / "test_energy.py").write_text("\n".join(text))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


MESSAGES = re.findall(
    r"^### `(.+)`", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE
)


@cache
def said_by_the_code() -> tuple[str, ...]:
    """Every text of the package's code, with a hole where a value stands."""
    found = []
    for path in sorted((ROOT / "ressa").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "\0" for p in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_troubleshooting_page_is_one_of_the_code(message: str) -> None:
    """In order in one text, or each part in one: messages are put together of several."""
    parts = [re.escape(part.strip()) for part in message.replace("\\`", "`").split("…")]
    pattern = re.compile(".*".join(filter(None, parts)), re.DOTALL)
    if any(pattern.search(text) for text in said_by_the_code()):
        return
    for part in filter(None, (part.strip() for part in message.replace("\\`", "`").split("…"))):
        assert any(part in text for text in said_by_the_code()), part
