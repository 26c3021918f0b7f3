"""The command line says one clear thing, in the right place, with the documented exit code."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pandas
import pyarrow.parquet as pq
import pytest

import ressa as library
from ressa.cli import following, main, reading
from ressa.errors import ConflictError
from ressa.spec import load_spec
from ressa.spec.schema import Sampler
from ressa.store import LogName, SweepStatus, SweepStore, lease, open_store, put_log
from ressa.terminal import live
from tests.landscape.conftest import commit

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "sweeps" / "quickstart.yaml")
RUNS_TRIALS = (
    "torch",
    "ray",
    "transformers",
    "deepspeed",
    "optuna",
    "easy_vqa",
    "matplotlib",
    "scipy",
    "PIL",
    "safetensors",
    "jaxtyping",
)


@dataclass(frozen=True)
class Said:
    """How one call ended, and what it wrote."""

    code: int
    out: str
    err: str


Ressa = Callable[..., Said]


@pytest.fixture
def ressa(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ressa:
    """Runs the command in an empty working directory, as if its output were piped."""
    monkeypatch.chdir(tmp_path)
    for name in ("RESSA_STORE", "COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["ressa", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return Said(stop.value.code, said.out, said.err)

    return call


@pytest.fixture
def sweep(tmp_path: Path) -> SweepStore:
    """A finished sweep in ./results: both baselines, four trials, one more that failed."""
    store = open_store(tmp_path / "results", create=True)
    made = store.create_sweep("quickstart", load_spec(QUICKSTART).spec.to_yaml())
    made.event("started", {"planned": 7}, epoch=1)
    commit(made, "dense", "0", "0", repair=False)
    commit(made, "dense-repaired", "0", "0")
    for number, vision in enumerate(("0.5", "0.6", "0.7", "2:4")):
        commit(made, f"t{number:03d}", vision, "98304/196608", budget=0.5)
    row = {
        "role": "search",
        "number": 4,
        "state": "failed",
        "failure_stage": "repair",
        "failure_class": "numeric",
        "error": "the loss is [NaN]",
    }
    made.commit("trials", [row], trial="t004", epoch=1)
    made.event("finished", epoch=1)
    return made


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("frob", 2, "No such command 'frob'"),
        ("reslts", 2, "Did you mean 'results', 'best'?"),
        ("validate", 2, "Missing argument 'FILE'"),
        ("results quickstart -o xml", 2, "'table', 'json', 'csv'"),
        ("ls --stroe x", 2, "No such option: --stroe"),
        ("validate nope.yaml", 2, "nope.yaml: no such file"),
        ("validate results", 2, "results: is a folder"),
        (f"validate {ROOT}/sweeps/quikstart.yaml", 2, "Did you mean 'quickstart.yaml'?"),
        (f"validate {QUICKSTART} --set repair.stpes=3", 2, "Did you mean 'steps'?"),
        (f"plan {QUICKSTART} --set steps", 2, "write it as key=value"),
        (f"run {QUICKSTART} --set model=pocket-blip", 2, "Did you mean 'pocket-blip2'?"),
        (f"run {QUICKSTART} --store=", 2, "store: must not be empty"),
        (f"run {QUICKSTART} --store file", 5, "is a file, not a folder"),
        (f"run {QUICKSTART} --store file/below", 5, "A file stands where a folder should"),
        (
            f"run {QUICKSTART} --set repair.steps=7",
            4,
            "they differ in repair.steps (100 there, 7 here)",
        ),
        (
            f"run {QUICKSTART} --set resources.cpus_per_worker=999",
            2,
            "this machine is too small: it has",
        ),
        ("results quickstat", 3, "Did you mean 'quickstart'?"),
        ("results ../quickstart", 3, "no sweep '../quickstart'"),
        ("status nope", 3, "Sweeps here: quickstart."),
        ("resume nope", 3, "Sweeps here: quickstart."),
        ("landscape nope", 3, "Sweeps here: quickstart."),
        ("ls --store nowhere", 3, "`ressa run` makes one"),
        ("ls --store file", 5, "is a file, not a folder"),
        ("ls --store other", 3, "other holds other files and no sweep"),
        ("verify nowhere", 3, "there is no folder nowhere"),
        ("ls --store=", 5, "the store is a folder or a URL"),
        (
            "export quickstart t000 --to x --store http://head:8265",
            5,
            "http://head:8265 is no store",
        ),
        ("confirm quickstart --store http://head:8265", 5, "such as on a node of the cluster"),
        ("verdict quickstart --store http://head:8265", 5, "--store then names the store as the"),
        ("ls --store foo://bar", 5, "cannot open store foo://bar"),
        ("landscape quickstart --out map.gif", 2, "ends in none of .png, .svg, .pdf"),
        ("landscape quickstart --show lines --by repair.steps", 2, "--show lines has no map"),
        ("landscape quickstart --trial t000", 2, "--trial is of --show layers and --show curves"),
        (
            "landscape quickstart --show curves --trial t0",
            3,
            "has no trial 't0'. Did you mean",
        ),
        ("landscape quickstart --out file/map.png", 5, "cannot write"),
        ("data check vqa ./nope", 2, "there is no folder ./nope"),
        ("data check vqa ~nobody-here/x", 2, "there is no folder ~nobody-here/x"),
        (
            "data check vqa . --set columns=x --set columns.image=y",
            2,
            "--set columns.image=y: columns is set to one value already",
        ),
        ("models ~nobody-here/x", 2, "there is no such folder"),
        ("models nope", 2, "instructblip-vicuna-7b, pocket-blip2, pocket-llava."),
        ("models ./nope", 2, "there is no such folder"),
        ("query SELEC", 2, "syntax error"),
        ("query DROP\tTABLE\ttrials", 2, "got DROP. The store is read only."),
        ("query COPY\ttrials\tTO\t'x.csv'", 2, "got COPY. The store is read only."),
        ("query SELECT\t1;SELECT\t2", 2, "got 2 statements"),
        ("query SELECT\t*\tFROM\ttrails", 2, 'Did you mean "trials"'),
        ("query SELECT\t*\tFROM\tread_csv('/etc/passwd')", 2, "disabled by configuration"),
    ],
)
def test_what_is_wrong_is_one_message_and_its_exit_code(
    ressa: Ressa, sweep: SweepStore, tmp_path: Path, arguments: str, code: int, message: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "other" / "folder").mkdir(parents=True)
    said = ressa(*(part.replace("\t", " ") for part in arguments.split(" ")))
    assert message in said.err
    assert (said.code, said.out) == (code, "")
    assert [line[:6] for line in said.err.splitlines()].count("error:") == 1
    assert "Traceback" not in said.err
    assert {path.name for path in tmp_path.iterdir()} == {"file", "other", "results"}


@pytest.mark.parametrize("asked", ["export quickstart t000 --to x", "confirm quickstart"])
def test_verbs_that_need_the_store_itself_say_so_beside_a_cluster(
    ressa: Ressa, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setenv("RESSA_ADDRESS", "http://head:8265")
    said = ressa(*asked.split(" "))
    assert (said.code, said.out) == (3, "")
    assert "RESSA_ADDRESS does not count here" in said.err


def test_a_folder_that_takes_no_files_is_one_message(ressa: Ressa) -> None:
    said = ressa("run", QUICKSTART, "--store", "/proc/ressa")
    assert (said.code, said.out) == (5, "")
    assert said.err.startswith("error: cannot open store /proc/ressa: ")


def test_several_faults_are_counted_and_each_has_a_line_of_its_own(
    ressa: Ressa, tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text(
        "ressa: 1\nmodel: pocket-blip2\nspace: {vision_sparsity: 50, language_sparsity: 0.5}\n"
        "prune: {method: wnada}\n"
    )
    said = ressa("validate", "bad.yaml")
    first, *faults = said.err.splitlines()
    assert (said.code, first) == (2, "error: 2 faults")
    assert [fault.split(": ")[0] for fault in faults] == ["bad.yaml:3", "bad.yaml:4"]


def test_validate_counts_the_points_that_are_left_out(ressa: Ressa, tmp_path: Path) -> None:
    (tmp_path / "light.yaml").write_text(
        "ressa: 1\nmodel: pocket-blip2\nspace: {vision_sparsity: {choices: [0.99, 0.05]}}\n"
        "budget: 0.05\n"
    )
    said = ressa("validate", "light.yaml")
    assert said.code == 0
    assert "is valid. 1 of its 2 points are left out: ressa plan light.yaml" in said.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["results", "quickstart"],
        ["ls"],
        ["status", "quickstart"],
        ["query", "SELECT trial, score, point, committed FROM trials"],
        ["models"],
        ["models", "pocket-llava"],
        ["plan", QUICKSTART],
    ],
    ids=lambda arguments: " ".join(arguments[:2])[:20],
)
def test_rows_come_as_table_json_and_csv(
    ressa: Ressa, sweep: SweepStore, arguments: list[str]
) -> None:
    rows = json.loads(ressa(*arguments, "-o", "json").out)
    plain = list(csv.DictReader(io.StringIO(ressa(*arguments, "-o", "csv").out)))
    assert rows
    assert len(rows) == len(plain)
    assert list(rows[0]) == list(plain[0])
    table = ressa(*arguments)
    assert table.code == 0
    assert table.out
    for row in rows:
        first = str(next(iter(row.values())))
        assert first in table.out
    for output in ("json", "csv"):
        said = ressa(*arguments, "-o", output)
        assert (said.code, said.err) == (0, "")


def test_results_are_chosen_and_come_in_every_form(
    ressa: Ressa, sweep: SweepStore, tmp_path: Path
) -> None:
    asked = ["results", "quickstart", "--where", "budget = 0.5", "--sort", "-score"]
    asked += ["--columns", "trial,score"]
    rows = json.loads(ressa(*asked, "-o", "json").out)
    assert [row["trial"] for row in rows][:2] == ["t000", "t003"]
    lines = ressa(*asked, "-o", "jsonl").out.splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert ressa(*asked, "-o", "latex").out.count(r" \\") == 1 + len(rows)
    with (tmp_path / "rows.parquet").open("wb") as file:
        call = [sys.executable, "-c", "from ressa.cli import main; main()", *asked, "-o", "parquet"]
        subprocess.run(call, stdout=file, check=True, cwd=tmp_path)
    assert pandas.read_parquet(tmp_path / "rows.parquet").to_dict("records") == rows


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--columns", "trial,scoer", "Did you mean 'score'?"),
        ("--sort", "-scores", "Did you mean 'score'?"),
        ("--where", "scoer > 0", 'Referenced column "scoer" not found'),
        ("--where", "true; DROP TABLE x", "more than one statement"),
        ("--where", "trial IN (FROM read_csv('/etc/passwd'))", "disabled by configuration"),
    ],
)
def test_what_cannot_be_chosen_is_said(
    ressa: Ressa, sweep: SweepStore, option: str, value: str, message: str
) -> None:
    said = ressa("results", "quickstart", option, value)
    assert (said.code, said.out) == (2, "")
    assert message in said.err


def test_that_nothing_is_best_yet_is_said(ressa: Ressa, tmp_path: Path) -> None:
    store = open_store(tmp_path / "results", create=True)
    store.create_sweep("quickstart", load_spec(QUICKSTART).spec.to_yaml())
    said = ressa("best", "quickstart")
    assert (said.code, said.out) == (0, "")
    assert "no trial of quickstart came to a result yet: ressa status" in said.err
    assert json.loads(ressa("best", "quickstart", "-o", "json").out) == []


def test_the_best_is_one_a_line_or_several(ressa: Ressa, sweep: SweepStore) -> None:
    (row,) = json.loads(ressa("best", "quickstart", "-o", "json").out)
    assert (row["trial"], row["budget"], row["runs"]) == ("t000", 0.5, 1)
    near = json.loads(ressa("best", "quickstart", "--within", "1se", "-o", "json").out)
    assert [one["trial"] for one in near] == ["t000", "t003"]
    assert near[1]["below_best"] <= near[0]["standard_error"]
    assert json.loads(ressa("best", "quickstart", "--budget", "0.5", "-o", "json").out) == [row]
    front = json.loads(ressa("best", "quickstart", "--pareto", "-o", "json").out)
    scores = [one["score"] for one in front]
    assert scores == sorted(scores, reverse=True)
    assert "ressa confirm quickstart" in ressa("best", "quickstart").err


@pytest.mark.parametrize(
    ("arguments", "headings"),
    [
        ("results quickstart", "trial vision language both before after ±"),
        ("best quickstart", "line trial vision language both score ±"),
        ("best quickstart --within 1se", "line trial vision language both score ± below best"),
        ("status quickstart", "trial attempt state stage class error"),
        (
            "landscape quickstart --show lines",
            "line through best vision between score within 1 equal split",
        ),
        ("ls", "sweep state trials failed best updated"),
    ],
)
def test_in_80_columns_no_heading_and_no_number_is_broken(
    ressa: Ressa,
    sweep: SweepStore,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    headings: str,
) -> None:
    for number, place in enumerate((("0.3", "0.3"), ("0.4", "0.6"), ("0.6", "0.4")), 5):
        commit(sweep, f"t{number:03d}", *place)
    monkeypatch.setenv("COLUMNS", "80")
    said = ressa(*arguments.split())
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 80
    above = " ".join(lines[: next(n for n, line in enumerate(lines) if set(line) == {"─"})])
    if arguments.startswith("status"):
        above = said.out
    assert set(headings.split()) <= set(above.replace("_", " ").split())
    assert "98304/196608" not in said.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("best quickstart --budget 0.7", 2, "quickstart has 0.5"),
        ("best quickstart --within 1", 2, "such as 1se"),
        ("compare quickstart quickstart/t000", 2, "two sweeps or two trials"),
        ("compare quickstart:t000 quickstart/t001", 3, "a trial is SWEEP/TRIAL, quickstart/t000"),
        ("compare quickstart/t000 quickstart/t001", 3, "no repaired answers of easy-vqa"),
        ("verdict quickstart", 1, "nothing of quickstart is confirmed yet: ressa confirm"),
        ("confirm quickstart --more 2", 3, "nothing of quickstart was confirmed yet"),
    ],
)
def test_what_cannot_be_judged_is_said(
    ressa: Ressa, sweep: SweepStore, arguments: str, code: int, message: str
) -> None:
    said = ressa(*arguments.split())
    assert (said.code, said.out) == (code, "")
    assert message in said.err


def test_a_confirmation_is_told_before_it_runs(ressa: Ressa, sweep: SweepStore) -> None:
    said = ressa("confirm", "quickstart", "--top", "2", "--seeds", "4", "--dry-run")
    assert (said.code, said.out) == (0, ""), said.err
    assert "vision 0.5 language 0.5: among the best, equal split" in said.err
    assert "vision 0 language 0.875: language only" in said.err
    assert "× 4 seeds" in said.err
    assert "9,673 questions of easy-vqa/test on 1,000 images; seeds from 1 on" in said.err
    assert not sweep.store.has_sweep("quickstart-confirm")


def test_json_keeps_what_pandas_would_lose(ressa: Ressa, sweep: SweepStore) -> None:
    sql = (
        "SELECT 0.1234567890123456::double AS f, 'infinity'::double AS i, NULL AS n, [1, 2] AS l, "
        "{'a': NULL} AS s, 1 AS x, 2 AS x, INTERVAL 3 DAY AS t, DATE '2020-01-02' AS d"
    )
    (row,) = json.loads(ressa("query", sql, "-o", "json").out)
    assert isinstance(row.pop("t"), str)
    assert row == {
        "f": 0.1234567890123456,
        "i": None,
        "n": None,
        "l": [1, 2],
        "s": {"a": None},
        "x": 1,
        "x_1": 2,
        "d": "2020-01-02",
    }


def test_an_empty_store_is_said_and_is_no_rows(ressa: Ressa, tmp_path: Path) -> None:
    open_store(tmp_path / "results", create=True)
    said = ressa("ls")
    assert (said.code, said.out) == (0, "")
    assert "no sweep in" in said.err
    assert json.loads(ressa("ls", "-o", "json").out) == []


def test_the_store_may_come_from_the_environment(
    ressa: Ressa, sweep: SweepStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("RESSA_STORE", "elsewhere")
    assert "quickstart" in ressa("ls").out


def test_status_says_what_failed_and_what_to_do(ressa: Ressa, sweep: SweepStore) -> None:
    said = ressa("status", "quickstart")
    for word in ("finished", "7", "98.3 %", "t000", "t004", "numeric", "the loss is [NaN]"):
        assert word in said.out
    assert f"ressa resume quickstart --failed --store {sweep.store.location}" in said.err


def test_status_of_an_interrupted_sweep_says_how_to_go_on(ressa: Ressa, sweep: SweepStore) -> None:
    sweep.event("interrupted", epoch=1)
    said = ressa("status", "quickstart")
    assert "interrupted" in said.out
    assert f"go on: ressa resume quickstart --store {sweep.store.location}" in said.err


def test_landscape_draws_here_and_as_a_picture(
    ressa: Ressa, sweep: SweepStore, tmp_path: Path
) -> None:
    said = ressa("landscape", "quickstart", "--out", "new/map.svg")
    assert "before repair (%)" in said.out
    assert said.err == "fitting the map …\nwrote new/map.svg\n"
    assert "<svg" in (tmp_path / "new" / "map.svg").read_text()


def test_run_and_plan_put_results_where_the_other_verbs_look(
    ressa: Ressa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").touch()
    monkeypatch.setenv("RESSA_STORE", "taken")
    said = ressa("run", QUICKSTART)
    assert said.code == 5
    assert "taken is a file, not a folder" in said.err
    assert ressa("plan", QUICKSTART, "--set", f"store={tmp_path / 'own'}").code == 0


def test_a_sweep_that_was_begun_in_the_files_store_is_not_begun_anew_elsewhere(
    ressa: Ressa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_spec(Path(QUICKSTART)).spec
    open_store(tmp_path / "results", create=True).create_sweep("quickstart", spec.to_yaml())
    monkeypatch.setenv("RESSA_STORE", "elsewhere")
    said = ressa("run", QUICKSTART)
    assert said.code == 4
    assert "begun in results" in said.err
    assert "--store results goes on" in said.err
    with pytest.raises(ConflictError, match="RESSA_STORE is elsewhere"):
        library.run(QUICKSTART)
    assert not (tmp_path / "elsewhere").exists()


def test_a_model_of_ones_own_on_our_shapes_is_warned_of(ressa: Ressa, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "ressa: 1\nmodel: Salesforce/blip2-flan-t5-xl\n"
        "space: {vision_sparsity: 0.5, language_sparsity: 0.5}\n"
    )
    said = ressa("validate", "own.yaml")
    assert "prune.calibration, repair.data, evaluate: easy-vqa, coloured shapes" in said.err
    assert "name your own: docs/tasks.md" in said.err


_CHOICES = [
    *("--set", 'space.vision_sparsity={choices: [0.4, 0.5, 0.6, 0.7, 0.8, "2:4"]}'),
    *("--set", "search.sampler=tpe"),
    *("--set", "constraints=[]"),
]
_ENDLESS = ["--set", "space.vision_sparsity={low: 0.4, high: 0.8}", "--set", "search.sampler=tpe"]


def test_plan_tells_asked_from_counted(ressa: Ressa) -> None:
    asked = ["plan", QUICKSTART, *_CHOICES]
    rows = json.loads(ressa(*asked, "-o", "json").out)
    pattern = next(row for row in rows if row["vision"] == "2:4")
    assert pattern["vision_zeros"] == 73_728
    said = ressa(*asked)
    assert "the dense model's scores: made at most once, used 20 times" in said.err
    assert "evaluate     2,000 questions on" in said.err
    assert "73,728" in said.out and "0.575" in said.out
    assert "easy-vqa/test" not in said.err


def test_plan_of_a_continuous_space_has_no_points_to_show(ressa: Ressa) -> None:
    said = ressa("plan", QUICKSTART, *_ENDLESS)
    assert (said.code, said.out) == (0, "")
    assert "the sampler draws from it" in said.err


def test_plan_of_what_run_would_refuse_shows_all_it_can_and_ends_with_1(
    ressa: Ressa, tmp_path: Path
) -> None:
    data = "data={mine: {task: vqa, format: vqav2, path: " + str(tmp_path) + "}}"
    more = ["--set", data, "--set", "evaluate=[{task: mine, split: validation}]"]
    more += ["--set", "objective.maximize=mine.accuracy", "--set", "confirm=[]"]
    said = ressa("plan", QUICKSTART, *more)
    assert said.code == 1, said.err
    assert "data         cannot be used here: evaluate: vqav2 wants" in said.err
    assert "0.575" in said.out
    assert "search" in said.err


def test_plan_says_which_points_cannot_be(ressa: Ressa) -> None:
    asked = ["plan", QUICKSTART, *_CHOICES, "--set", "budget=[0.7]"]
    assert "skipped" not in ressa(*asked).err
    said = ressa(*asked, "--set", "space.vision_sparsity.choices.0=0")
    assert "skipped      budget=0.7 vision_sparsity=0: " in said.err


def test_validate_warns_of_the_trivial_answer(ressa: Ressa, tmp_path: Path) -> None:
    (tmp_path / "free.yaml").write_text(
        "ressa: 1\nmodel: pocket-blip2\n"
        "space: {vision_sparsity: {low: 0, high: 0.8}, language_sparsity: {low: 0, high: 0.8}}\n"
    )
    said = ressa("validate", "free.yaml")
    assert (said.code, said.out) == (0, "")
    assert said.err.startswith("warning: objective: ")
    assert "free.yaml: sweep 'free' is valid." in said.err


def test_a_folder_is_looked_at_after_the_file_and_without_its_weights(
    ressa: Ressa, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    said = ressa("validate", QUICKSTART, "--set", f"model={folder}")
    assert said.code == 2
    *_, first, second = said.err.splitlines()
    assert first == f"reading the layers of {folder} …"
    assert second.startswith(f"error: model {folder} cannot be loaded")


def test_brackets_in_names_are_no_markup(ressa: Ressa) -> None:
    assert "[red]x[/red].yaml: no such file" in ressa("validate", "[red]x[/red].yaml").err


def test_help_version_and_no_arguments(ressa: Ressa) -> None:
    from ressa import __version__

    assert ressa("--version").out == f"ressa {__version__}\n"
    shown = ressa("--help")
    assert (shown.code, shown.err) == (0, "")
    assert "Exit codes:" in shown.out
    assert "..." not in shown.out.split("Commands:")[1].split("Exit codes")[0]
    assert ressa() == shown


def test_a_piped_table_is_cut_nowhere(ressa: Ressa, sweep: SweepStore) -> None:
    said = ressa("results", "quickstart")
    assert "of d.-r." in said.out
    assert "no room" not in said.out
    assert max(map(len, said.out.splitlines())) > 80
    assert not any(line.endswith(" ") for line in said.out.splitlines())
    long = ressa("query", f"SELECT repeat('x', 300) AS a, '{'y' * 300}' AS b")
    assert "x" * 300 + "  " + "y" * 300 in long.out


def test_a_narrow_terminal_is_told_what_it_does_not_see(
    ressa: Ressa, sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = ressa("results", "quickstart")
    assert "no room here for whole, recovery of d.-r.: -o csv has every column" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    assert max(map(len, ressa("ls").out.splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "60")
    said = ressa("results", "quickstart")
    assert max(map(len, said.out.splitlines())) <= 60
    assert "98.3" in said.out


def test_a_terminal_without_unicode_shows_question_marks(
    ressa: Ressa, sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["results", "quickstart"], ["landscape", "quickstart"], ["ls"]):
        out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", out)
        assert ressa(*arguments).code == 0
        out.seek(0)
        assert out.read().strip()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("output", ["table", "json", "csv"])
def test_a_full_disk_under_stdout_is_one_message(
    ressa: Ressa, sweep: SweepStore, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        said = ressa("results", "quickstart", "-o", output)
    assert said == Said(1, "", "error: cannot write to stdout: No space left on device.\n")


@pytest.mark.parametrize("output", ["table", "json", "csv"])
def test_a_reader_that_has_enough_ends_nothing_badly(
    ressa: Ressa, sweep: SweepStore, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    words = ressa("results", "quickstart", "-o", output).err
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert ressa("results", "quickstart", "-o", output) == Said(0, "", words)


def left_pipe() -> int:
    read, write = os.pipe()
    os.close(read)
    return write


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize("taker", [left_pipe, full_disk])
@pytest.mark.parametrize("verb", [["best", "quickstart"], ["plan", QUICKSTART]])
def test_words_that_nobody_takes_end_nothing(
    ressa: Ressa,
    sweep: SweepStore,
    monkeypatch: pytest.MonkeyPatch,
    verb: list[str],
    taker: Callable[[], int],
) -> None:
    data = ressa(*verb).out
    with os.fdopen(taker(), "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        assert ressa(*verb) == Said(0, data, "")


def test_a_closed_stream_takes_nothing_and_ends_nothing(sweep: SweepStore, tmp_path: Path) -> None:
    call = f"{sys.executable} -c 'from ressa.cli import main; main()' best quickstart"
    for closed, written in ((">&-", "stderr"), ("2>&-", "stdout")):
        done = subprocess.run(f"{call} {closed}", shell=True, cwd=tmp_path, capture_output=True)
        assert done.returncode == 0
        assert b"Traceback" not in done.stderr
        assert getattr(done, written)


def test_what_stays_is_not_written_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for terminal in ("1", ""):
        monkeypatch.setenv("FORCE_COLOR", terminal)
        with live() as shown:
            for text, is_new in (("one", True), ("one", False), ("two", True)):
                shown([text])
                assert (text in capsys.readouterr().out) == is_new


STEERING = "x\x1b]0;owned\x07\x1b[2J\x9b2J\x00\x1b[8m\rvanished"


def test_following_ends_when_a_driver_elsewhere_shows_no_life(
    ressa: Ressa, sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(following, "_GLANCE_SECONDS", 0.1)
    claim = {"host": "gpu-node-7", "machine": "another", "pid": 4242}
    sweep.store.objects.put(f"{sweep.prefix}/lease/000002.json", json.dumps(claim).encode())
    sweep.store.objects.put(f"{sweep.prefix}/lease/000002.beat", b'{"beats": 17}')
    sweep.event("resumed", {"planned": 8}, epoch=2)
    sweep.event("trial_started", epoch=2, trial="t005")
    put_log(sweep, "t005", LogName(0, 0), b"hello\n")
    for verb, *rest in (["watch"], ["logs", "t005", "-f"]):
        said = ressa(verb, "quickstart", *rest)
        assert said.code == 1
        assert "shows no life for 0 s. If it is dead, ressa resume quickstart" in said.err
    assert "hello" in said.out


def test_a_log_that_comes_as_its_trial_ends_is_followed(
    ressa: Ressa, sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = SweepStore.status

    def status_after_a_while(of: SweepStore) -> SweepStatus:
        put_log(of, "t000", LogName(0, 0), b"hello\n")
        return status(of)

    monkeypatch.setattr(SweepStore, "status", status_after_a_while)
    said = ressa("logs", "quickstart", "t000", "--follow")
    assert (said.code, "hello" in said.out) == (0, True)


def test_no_string_of_a_store_steers_the_terminal(
    ressa: Ressa, sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"role": "search", "number": 5, "state": "failed", "failure_stage": "repair"}
    row |= {"failure_class": "numeric", "error": STEERING, "vision_target": "\x1b[2J"}
    sweep.commit("trials", [row], trial="t005", epoch=1)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    for arguments in (
        ["status", "quickstart"],
        ["results", "quickstart"],
        ["results", "quickstart", "-o", "csv", "--columns", "vision"],
        ["query", "SELECT error FROM trials", "-o", "csv"],
        ["query", "SELECT error FROM trials"],
        ["results", STEERING],
    ):
        said = ressa(*arguments)
        left = re.sub(r"\x1b\[[\d;]*m", "", said.out + said.err)
        assert re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", left) == [], arguments
    monkeypatch.delenv("FORCE_COLOR")
    sql = "SELECT error FROM trials WHERE trial = 't005'"
    (kept,) = json.loads(ressa("query", sql, "-o", "json").out)
    assert kept["error"] == STEERING  # a file or pipe has what is there


ENDLESS = "SELECT 1 FROM range(1000000) a, range(1000000) b WHERE hash(a.range * b.range) = 1"


def test_no_warning_of_a_stores_bytes_steers_the_terminal(
    sweep: SweepStore, tmp_path: Path
) -> None:
    (part, *_) = (tmp_path / "results/sweeps/quickstart/trials").glob("t000-*")
    rows = pq.read_table(part)
    place = rows.schema.get_field_index("score")
    pq.write_table(rows.set_column(place, "score", [["\x1b]0;title\x07"] * len(rows)]), part)
    call = [sys.executable, "-c", "from ressa.cli import main; main()", "results", "quickstart"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "a column has another type" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_ctrl_c_ends_a_long_query(
    ressa: Ressa, sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A shell's background job, as these tests may be, is begun deaf to it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    module = import_module("ressa.store.query")
    ask = module._interruptible

    def ask_and_press(*asked: Any) -> Any:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        return ask(*asked)

    monkeypatch.setattr(module, "_interruptible", ask_and_press)
    try:
        assert ressa("query", ENDLESS) == Said(130, "", "")
    finally:
        signal.signal(signal.SIGINT, before)


def _python(program: str, *arguments: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=True,
    )
    return done.stdout.splitlines()[-1]


_LOADED = """
import sys
from ressa.cli import main
try:
    main()
except SystemExit:
    pass
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["validate", QUICKSTART]], ids=["help", "file"])
def test_help_and_validate_load_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    loaded = set(_python(_LOADED, *arguments, folder=tmp_path).split())
    assert "ressa" in loaded
    assert not loaded & {*RUNS_TRIALS, "pandas", "pyarrow", "duckdb", "obstore"}


_WITHOUT = """
import contextlib, io, json, sys
blocked, calls = map(json.loads, sys.argv[1:3])

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from ressa.cli import main
said = []
for call in calls:
    sys.argv = ["ressa", *call]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            said.append([stop.code, out.getvalue(), err.getvalue()])
print(json.dumps(said))
"""


def test_the_base_install_reads_and_says_what_running_needs(
    sweep: SweepStore, tmp_path: Path
) -> None:
    reads = [
        ["validate", QUICKSTART],
        ["plan", QUICKSTART],
        ["plan", QUICKSTART, *_ENDLESS],
        ["results", "quickstart"],
        ["query", "SELECT count(*) AS n FROM trials"],
        ["ls"],
        ["status", "quickstart"],
        ["landscape", "quickstart"],
        ["models"],
        ["models", "pocket-blip2"],
    ]
    folder = str(ROOT / "ressa" / "models" / "pocket" / "pocket-blip2")
    runs = [
        ["run", QUICKSTART, "--store", "new"],
        ["resume", "quickstart"],
        ["models", folder],
        ["landscape", "quickstart", "--out", "map.png"],
        ["validate", QUICKSTART, "--set", f"model={folder}"],
    ]
    said = json.loads(
        _python(_WITHOUT, json.dumps(RUNS_TRIALS), json.dumps([*reads, *runs]), folder=tmp_path)
    )
    for call, (code, out, err) in zip(reads, said, strict=False):
        assert code == 0, (call, err)
        assert out or call[0] == "validate" or "--set" in call
    assert "were not read: they need easy_vqa" in said[1][2]
    for call, (code, out, err) in zip(runs, said[len(reads) :], strict=True):
        assert (code, out) == (2, ""), call
        assert err.count("error:") == 1
        assert "pip install '.[run]' -c constraints.txt" in err
    assert {path.name for path in tmp_path.iterdir()} == {"results"}


def test_stages_are_listed_and_collected(ressa: Ressa, tmp_path: Path) -> None:
    store = open_store(tmp_path / "results", create=True)
    store.stages.put("dense", "k", {"content": b"c" * 2**20})
    (row,) = json.loads(ressa("stages", "ls", "-o", "json").out)
    assert (row["stage"], row["key"], row["needed_by"]) == ("dense", "k", None)
    assert row["mib"] > 1
    store.stages.put("dense", "l", {"content": b"d"})
    listed = ressa("stages", "ls")
    assert listed.out.splitlines()[-1].split()[:2] == ["dense", "2"]
    assert "the 0 that `ressa stages gc` removes" in listed.err
    assert ressa("stages", "ls", "--all").out.splitlines()[-1].split()[:2] == ["dense", "l"]
    store.stages.remove("dense", "l")
    assert ressa("stages", "gc", "--older-than", "999999d").err.startswith("removed 0 stages")
    young = ressa("stages", "gc").err.splitlines()
    assert young[0] == "removed 0 stages, 0.0 MiB"
    assert young[1].startswith("kept: 1 that no sweep needs and that were used in the last 7d")
    assert ressa("stages", "gc", "--older-than", "0", "--dry-run").err.startswith("would remove 1")
    assert store.stages.exists("dense", "k")
    assert ressa("stages", "gc", "--older-than", "0").err == "removed 1 stages, 1.0 MiB\n"
    assert not store.stages.exists("dense", "k")


@pytest.mark.parametrize("time", ["soon", "7", "-1d", "1w"])
def test_how_old_is_a_number_with_a_unit(ressa: Ressa, tmp_path: Path, time: str) -> None:
    open_store(tmp_path / "results", create=True)
    said = ressa("stages", "gc", f"--older-than={time}")
    assert said.code == 2
    assert "such as 12h or 7d" in said.err


def test_replay_asks_about_every_sampler_of_a_sweep_file():
    assert get_args(reading.Sampler) == get_args(Sampler)
