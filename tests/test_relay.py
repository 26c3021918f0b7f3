"""Verbs with an address: what is sent, and what the far end makes of it, without a cluster."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from ressa.cli import relay
from ressa.cli.answer import longest_seconds
from ressa.cli.relay import passed_on
from ressa.errors import ClusterError, SpecError, StoreError
from ressa.store import SweepStore
from ressa.sweep.jobs import Frame, Request
from ressa.sweep.versions import CODE, installed
from tests.test_cli import QUICKSTART, Ressa, ressa, sweep  # noqa: F401

AT = "http://127.0.0.1:8265"


def answered(request: Request) -> list[Frame]:
    """Runs the far end, as a job does, and returns its frames."""
    done = subprocess.run(
        [sys.executable, "-m", "ressa.cli.answer", request.encode()],
        env={**os.environ, "RESSA_ADDRESS": "http://nowhere", "RESSA_STORE": "/nowhere"},
        capture_output=True,
        text=True,
    )
    frames = [Frame.of(line) for line in done.stdout.splitlines()]
    assert None not in frames, done.stdout + done.stderr
    assert done.returncode == int(frames[-1].content)  # type: ignore[union-attr]
    return [frame for frame in frames if frame is not None]


def content(frames: list[Frame], kind: str) -> str:
    return b"".join(frame.content for frame in frames if frame.kind == kind).decode()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that would have gone to a cluster."""
    words: list[list[str]] = []
    monkeypatch.setattr(relay, "relay", lambda _, context: words.append(relay.words_of(context)))
    return words


def test_options_travel_as_they_were_given(
    ressa: Ressa,  # noqa: F811
    sent: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RESSA_ADDRESS", AT)
    monkeypatch.setenv("RESSA_STORE", "s3://bucket/place")
    for arguments in (
        ["query", "SELECT 1", "-o", "json"],
        ["landscape", "small", "large", "--out", "here/map.png", "--store", "/shared"],
        ["stages", "gc", "--dry-run"],
        ["stop", "small", "--wait"],
        ["results", "--", "-odd"],
    ):
        said = ressa(*arguments)
        assert said.code == 0, said.err
    assert sent == [
        ["query", "--store=s3://bucket/place", "--output=json", "--", "SELECT 1"],
        ["landscape", "--store=/shared", "--out=map.png", "--", "small", "large"],
        ["stages", "gc", "--dry-run", "--store=s3://bucket/place"],
        ["stop", "--wait", "--store=s3://bucket/place", "--", "small"],
        ["results", "--store=s3://bucket/place", "--", "-odd"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "--address", AT], "the absolute path of a folder that they share"),
        (["ls", "--address", AT, "--store", "results"], "got 'results'"),
        (["submit", QUICKSTART, "--address", AT], "or set RESSA_STORE"),
        (["submit", QUICKSTART], "submit needs a cluster"),
        (["ls", "--address", "10.0.0.1:6379", "--store", "/s"], "the dashboard of a Ray's head"),
        (["report", "quickstart", "--watch", "--store", "/s", "--address", AT], "cluster's head"),
        (["run", QUICKSTART, "--address", AT], "`ressa submit` sends a sweep"),
        (["resume", "quickstart", "--address", AT], "the store must be named"),
    ],
)
def test_what_a_cluster_cannot_be_asked_is_said_here(
    ressa: Ressa,  # noqa: F811
    sweep: SweepStore,  # noqa: F811
    arguments: list[str],
    message: str,
) -> None:
    said = ressa(*arguments)
    assert (said.code, said.out) == (2, "")
    assert message in said.err


def test_the_far_end_answers_what_the_verb_says_here(
    ressa: Ressa,  # noqa: F811
    sweep: SweepStore,  # noqa: F811
    tmp_path: Path,
) -> None:
    store = f"--store={sweep.store.location}"
    here = ressa("status", "quickstart", store, "-o", "json")
    frames = answered(
        Request(words=["status", store, "--output=json", "--", "quickstart"], versions=installed())
    )
    assert json.loads(content(frames, "out")) == json.loads(here.out)
    assert content(frames, "exit") == "0"
    frames = answered(
        Request(
            words=["landscape", store, "--out=my map.svg", "--", "quickstart"],
            versions={**installed(), CODE: "0.0.1"},
        )
    )
    assert "warning: ressa 0.0.1 here" in content(frames, "err")
    assert passed_on(frames, tmp_path, file="my map.svg") == 0
    assert (tmp_path / "my map.svg").read_text().startswith("<?xml")


def test_the_far_end_ends_as_the_verb_does(sweep: SweepStore) -> None:  # noqa: F811
    words = ["results", f"--store={sweep.store.location}", "--", "nope"]
    frames = answered(Request(words=words, versions=installed()))
    assert "Sweeps here: quickstart." in content(frames, "err")
    assert content(frames, "exit") == "3"


def test_hints_name_the_address_that_was_typed(sweep: SweepStore) -> None:  # noqa: F811
    words = ["status", f"--store={sweep.store.location}", "--", "quickstart"]
    frames = answered(Request(words=words, versions=installed(), told_address=AT))
    assert f"--address {AT}" in content(frames, "err")


def test_a_driver_with_other_packages_is_refused() -> None:
    versions = {**installed(), "torch": "1.0"}
    frames = answered(Request(words=["run"], versions=versions, drives=True, spec="ressa: 1\n"))
    assert "torch 1.0 here" in content(frames, "err")
    assert "--ship-code" in content(frames, "err")
    assert content(frames, "exit") == "5"


def test_bytes_and_cut_characters_come_as_they_were_sent(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = "±–ü".encode() + bytes(range(256))
    frames = [Frame("out", sent[:4]), Frame("out", sent[4:])]
    frames += [Frame("err", sent[:4]), Frame("err", sent[4:7]), Frame("exit", b"0")]
    assert passed_on(frames, tmp_path) == 0
    said = capfdbinary.readouterr()
    assert (said.out, said.err) == (sent, "±–ü".encode())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert passed_on([Frame("out", sent[:4]), Frame("out", sent[4:7]), frames[-1]], tmp_path) == 0
    assert capfdbinary.readouterr().out == "±–ü".encode()


def test_what_a_cluster_writes_steers_no_terminal(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    display = "\x1b[?25l\x1b[1;31mred\x1b[0m\r\x1b[2K\x1b[1A\x1b[?25h\n"
    sent = f"\x1b]0;title\x07\x1b[6n\x9b2J\x1bc{display}".encode()
    taken = f"]0;title[6n2Jc{display}".encode()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for cut in (1, 9, 23, 25, 40, len(sent)):
        for kind in ("out", "err"):
            frames = [Frame(kind, sent[:cut]), Frame(kind, sent[cut:]), Frame("exit", b"0")]
            assert passed_on(frames, tmp_path) == 0
            said = capfdbinary.readouterr()
            assert (said.out, said.err) == ((taken, b"") if kind == "out" else (b"", taken))


def test_rows_come_whole_from_the_far_end(
    sweep: SweepStore,  # noqa: F811
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    sql = "SELECT trial, repeat('–', 50000) AS dashes FROM trials"  # more than is read at once
    words = ["query", f"--store={sweep.store.location}", "--output=parquet", "--", sql]
    assert passed_on(answered(Request(words=words, versions=installed())), tmp_path) == 0
    rows = pandas.read_parquet(io.BytesIO(capfdbinary.readouterr().out))
    assert len(rows) == 7
    assert set(rows["dashes"]) == {"–" * 50_000}


def test_a_parquet_file_is_refused_to_this_terminal_before_anything_is_asked(
    ressa: Ressa,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    said = ressa("ls", "--store", "/s", "--address", AT, "-o", "parquet")
    assert said.code == 2
    assert "> rows.parquet" in said.err


def test_the_file_that_was_asked_for_comes_or_its_lack_is_said(tmp_path: Path) -> None:
    frames = [Frame("file", b"x", "map.svg"), Frame("exit", b"0")]
    folder = tmp_path / "made" / "on the way"
    assert passed_on(frames, folder, file="map.svg") == 0
    assert (folder / "map.svg").read_bytes() == b"x"
    with pytest.raises(ClusterError, match=r"sent no 'other\.svg'"):
        passed_on(frames, folder, file="other.svg")
    with pytest.raises(StoreError, match="cannot write"):
        passed_on(frames, folder / "map.svg", file="map.svg")


def test_a_sweep_may_be_followed_for_days() -> None:
    assert {longest_seconds(verb) for verb in ("watch", "logs", "stop", "cancel")} == {7 * 86_400}
    assert longest_seconds("query") == 3600


def test_a_sweep_that_a_driver_holds_is_told_from_one_that_ended(tmp_path: Path) -> None:
    ended = Frame("exit", b"0")
    assert passed_on([Frame("taken"), ended], tmp_path, until="taken") is None
    assert passed_on([ended], tmp_path, until="taken") == 0


def test_no_file_is_written_that_was_not_asked_for(tmp_path: Path) -> None:
    names = ("Makefile", "../../etc/passwd", "map.svg")
    frames = [*(Frame("file", b"x", name) for name in names), Frame("exit", b"0")]
    assert passed_on(frames, tmp_path) == 0
    assert not list(tmp_path.iterdir())
    assert passed_on(frames, tmp_path, file="map.svg") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["map.svg"]


def test_a_store_has_one_name_for_jobs_however_it_was_typed() -> None:
    assert relay.there("/s/") == relay.there("/s") == "/s"
    assert relay.there("s3://bucket/place/") == "s3://bucket/place"
    for relative in ("~/mine", "results/", ""):
        with pytest.raises(SpecError, match="the absolute path of a folder"):
            relay.there(relative)
