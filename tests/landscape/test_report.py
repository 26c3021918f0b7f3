"""The report: one page, whatever a sweep's strings are, and what it does in a real Chromium."""

import json
import math
import re
import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.browser import CHROMIUM, Browser, browser
from ressa.landscape import plot
from ressa.landscape.report import gather, page, serve, write_page
from ressa.landscape.report.page import as_script
from ressa.spec import spec_from_mapping
from ressa.store import SweepStore, acquire, open_store
from tests.landscape.conftest import begin, commit
from tests.sweep.waiting import wait_for

EVIL = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
)
CONTENT: dict[str, Any] = {
    "ressa": 1,
    "name": "asked",
    "model": "pocket-blip2",
    "space": {"vision_sparsity": {"choices": ["0.3", "0.5", "0.7", "2:4"]}},
    "budget": [0.5, 0.6],
}


@pytest.fixture
def asked(tmp_path: Path) -> SweepStore:
    """A sweep with baselines, seven trials with curves and layers, and one that failed."""
    return lay_out(tmp_path)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> SweepStore:
    """The same, left as it is: its surrogate is fitted once for all tests."""
    return lay_out(tmp_path_factory.mktemp("kept"))


def lay_out(folder: Path) -> SweepStore:
    """Makes `asked` in a folder."""
    store = open_store(folder / "results", create=True)
    made = store.create_sweep("asked", spec_from_mapping(CONTENT).spec.to_yaml())
    made.event("started", {"planned": 10}, epoch=1)
    commit(made, "dense", "0", "0", repair=False)
    commit(made, "dense-repaired", "0", "0")
    points = [("0.3", "127795/196608"), ("0.5", "0.5"), ("0.7", "68813/196608"), ("2:4", "0.5")]
    points += [("0.5", "132710/196608"), ("0.7", "103219/196608"), ("2:4", "132710/196608")]
    for number, (vision, language) in enumerate(points):
        trial = f"t{number:03d}"
        commit(made, trial, vision, language, budget=0.5 if number < 4 else 0.6)
        steps = [{"step": n, "loss": 1 / (n + number), "ce": None} for n in range(1, 101)]
        layers = [
            {"name": f"{tower}.{n}", "tower": tower, "block": n // 2, "sparsity": 0.5}
            | {"output_error": 0.01 * (n + 1)}
            for tower in ("vision", "language")
            for n in range(6)
        ]
        made.commit("curves", steps, epoch=1, trial=trial)
        made.commit("layers", layers, epoch=1, trial=trial)
    failed = {"role": "search", "number": 7, "state": "failed", "failure_stage": "repair"}
    failed |= {"failure_class": "numeric", "error": EVIL, "traceback": EVIL, "host": EVIL}
    failed |= {"point": json.dumps({"vision_sparsity": "0.3", "prune.method": EVIL})}
    made.commit("trials", [failed], epoch=1, trial="t007")
    return made


def test_it_says_what_was_asked_found_and_failed(kept: SweepStore) -> None:
    data = gather(kept)
    assert "pocket-blip2" in data["question"]
    assert "50.0 %, 60.0 %" in data["question"]
    assert data["trials"]["trial"][:2] == ["dense", "dense-repaired"]
    assert len(data["lines"]) == 2
    assert data["facts"][0][1].startswith("t0")
    assert data["facts"][0][1].endswith(", not confirmed")
    assert data["headline"].startswith("Best of the search, not confirmed; biased upwards: ressa ")
    assert not data["confirmed"]
    assert len(data["curves"]) == 7
    assert len(data["layers"]["t000"]) == 12
    assert data["verdicts"] == []
    assert {line["name"] for line in data["along"]} == {"budget 0.5"}
    ends = [end for best in data["charts"]["repaired"]["bests"] for end in best["ends"]]
    assert all(0 <= sparsity <= 1 for end in ends for sparsity in end)
    (failure,) = data["failures"]
    assert failure["error"] == EVIL
    assert failure["command"].startswith("ressa resume asked t007 --store ")
    assert data["redo"].startswith("ressa resume asked --failed --store ")
    assert dict(data["provenance"])["seeds"].startswith("search 0, calibration 0, repair 0")
    json.dumps(data, allow_nan=False)  # no number that JSON does not have


def test_a_sweep_without_a_row_has_a_page_too(tmp_path: Path) -> None:
    store = open_store(tmp_path / "results", create=True)
    made = store.create_sweep("asked", spec_from_mapping(CONTENT).spec.to_yaml())
    data = gather(made)
    assert data["trials"]["trial"] == []
    assert "asked" in page(data)


def test_no_string_ends_the_data_and_nothing_is_asked_of_the_network(kept: SweepStore) -> None:
    text = page(gather(kept))
    (held,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert json.loads(held)["failures"][0]["error"] == EVIL
    assert text.count("<script") == 2
    assert "onerror=" not in text.replace(r"onerror=\"", "")
    assert not re.findall(r"""(?:src|href)=|@import|url\(""", text.replace(held, ""))
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)[0]
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert "unsafe" not in policy
    assert "\\u2028" in as_script("\u2028")
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_script(math.nan)


def test_a_trial_that_is_tried_again_right_now_is_no_failure_as_in_status(
    asked: SweepStore,
) -> None:
    assert [row["trial"] for row in gather(asked)["failures"]] == ["t007"]
    with acquire(asked) as lease:
        asked.event("trial_started", {"attempt": 1}, epoch=lease.epoch, trial="t007", attempt=1)
        assert asked.status().running == ("t007",)
        assert gather(asked)["failures"] == []


def test_a_sweep_that_confirms_has_the_lines_of_its_budgets(asked: SweepStore) -> None:
    (row,) = asked.read("trials", where={"trial": "t000"}).to_pylist()
    confirming = begin(asked.store, "confirming")
    confirming.commit("trials", [row | {"role": "confirm"}], trial="t000", epoch=1)
    assert gather(confirming)["lines"] == gather(asked)["lines"][:1]


def test_the_page_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_page(tmp_path / "made" / "page.html", text)
        assert (tmp_path / "made" / "page.html").read_text() == text
    assert len(list((tmp_path / "made").iterdir())) == 1


def fetch(address: str, **headers: str) -> tuple[int, str, str]:
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode(), answer.headers["ETag"]
    except urllib.error.HTTPError as error:
        return error.code, "", ""


def test_it_is_served_to_this_machine_alone_and_says_whether_it_is_new(
    asked: SweepStore, monkeypatch
) -> None:
    monkeypatch.setattr("ressa.landscape.report.serving.EVERY", 0.5)
    written = []
    with serve(lambda: gather(asked), changed=written.append) as address:
        assert address.startswith("http://127.0.0.1:")
        code, text, version = fetch(address)
        assert code == 200
        assert "connect-src 'self'" in text
        assert fetch(address + "data.json", **{"If-None-Match": version})[0] == 304
        assert fetch(address + "data.json", Host="evil.example:80")[0] == 403
        assert fetch(address + "data.json", Host="localhost")[0] == 200  # as of port 80
        assert fetch(address + "etc/passwd")[0] == 404
        commit(asked, "t008", "0.4", "0.6")

        def looked_again() -> tuple[int, str, str] | None:
            found = fetch(address + "data.json", **{"If-None-Match": version})
            return None if found[0] == 304 else found

        code, text, newer = wait_for(looked_again)
        assert code == 200
        assert newer != version
        assert "t008" in json.loads(text)["trials"]["trial"]
    assert "t008" in written[-1]["trials"]["trial"]
    assert "t008" not in written[0]["trials"]["trial"]
    with pytest.raises(urllib.error.URLError):
        fetch(address)


def test_a_page_that_was_long_in_the_making_asks_for_what_is_newer(
    asked: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep's last rows come while it is made: told that it is new, it would stay behind."""
    monkeypatch.setattr("ressa.landscape.report.serving.EVERY", 0.2)
    data, newer = gather(asked), threading.Event()

    def made(data: dict[str, Any], *, watch: float) -> str:
        shown.append(data["spec"])
        assert newer.wait(300)
        return page(data, watch=watch)

    def told(now: Mapping[str, Any]) -> None:
        if now["spec"] == "the last":
            newer.set()

    def gathered() -> dict[str, Any]:
        return data | {"spec": "the last"} if shown else data

    shown: list[str] = []
    monkeypatch.setattr("ressa.landscape.report.serving.page", made)
    with serve(gathered, changed=told) as address:
        version = fetch(address)[2]
        code, text, _ = fetch(address + "data.json", **{"If-None-Match": version})
    assert (code, json.loads(text)["spec"]) == (200, "the last")


def test_a_page_that_is_closed_before_its_answer_is_no_fault(
    asked: SweepStore, capsys: pytest.CaptureFixture[str]
) -> None:
    data, begun, closed = gather(asked), threading.Event(), threading.Event()

    def made(data: dict[str, Any], *, watch: float) -> str:
        begun.set()
        assert closed.wait(300)
        return "x" * 10_000_000

    with pytest.MonkeyPatch.context() as patch, serve(lambda: data) as address:
        patch.setattr("ressa.landscape.report.serving.page", made)
        port = int(address.rstrip("/").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as reader:
            reader.sendall(f"GET / HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            assert begun.wait(300)
            # Closed at once, as by a reader that ends.
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        closed.set()
        wait_for(lambda: not any("process_request" in t.name for t in threading.enumerate()))
    assert capsys.readouterr().err == ""


def test_a_look_that_fails_is_said_and_made_again(asked: SweepStore, monkeypatch) -> None:
    monkeypatch.setattr("ressa.landscape.report.serving.EVERY", 0.2)
    broken: list[Exception] = []
    data, written, said = gather(asked), [], []
    first_said, written_again = threading.Event(), threading.Event()

    def gathered() -> dict[str, Any]:
        if broken:
            raise broken[0]
        return data

    def write(data: Any) -> None:
        if len(written) == 1 and not first_said.is_set():
            raise OSError("the disk is full")
        written.append(data)
        if len(written) == 2:
            written_again.set()

    def failed(why: str) -> None:
        said.append(why)
        first_said.set()

    with serve(gathered, changed=write, failed=failed) as address:
        data = data | {"spec": "other"}
        assert first_said.wait(300)
        assert written_again.wait(300)
        assert said == ["not fresh: OSError: the disk is full"]
        broken.append(ValueError("a file is half there\nmore"))
        first_said.clear()
        assert first_said.wait(300)
        assert fetch(address)[0] == fetch(address + "data.json")[0] == 503
        assert said[1:] == ["not fresh: ValueError: a file is half there"]
        broken.clear()
        assert fetch(address)[0] == 200


def test_the_verb_writes_it(asked: SweepStore, tmp_path: Path, monkeypatch, capsys) -> None:
    from ressa.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ressa", "report", "asked", "--out", "page.html"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert "asked" in (tmp_path / "page.html").read_text()
    assert capsys.readouterr().out == ""


# ---- in a real Chromium ------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt-get install chromium"
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture
def shown(kept: SweepStore, tmp_path: Path, chromium: Browser) -> Browser:
    """The page, opened from its file."""
    chromium.look(width=1200, height=900)
    write_page(tmp_path / "page.html", page(gather(kept)))
    chromium.problems.clear()
    chromium.asked.clear()
    chromium.open((tmp_path / "page.html").as_uri())
    return chromium


def trials_of(page: Browser) -> list[str]:
    found: list[str] = page.run(
        "[...document.querySelectorAll('#body button')].map(b => b.textContent.replace('★ ', ''))"
    )
    return found


def sort_by(page: Browser, heading: str) -> None:
    page.run(
        "[...document.querySelectorAll('#heads button')]"
        f".find(b => b.textContent.startsWith({heading!r})).click()"
    )


def filter_by(page: Browser, text: str) -> None:
    page.run(
        "document.getElementById('filter').value = ''; document.getElementById('filter').focus()"
    )
    page.write(text)


@needs_chromium
def test_it_loads_without_a_complaint_and_asks_for_nothing(shown: Browser) -> None:
    assert shown.problems == []
    assert len(shown.asked) == 1
    assert shown.run("document.title") == "asked: ressa report"
    told = shown.run("document.getElementById('headline').innerText")
    assert told.startswith(
        "Best of the search, not confirmed; biased upwards: ressa confirm asked "
    )
    height = "document.getElementById('verdicts').offsetHeight"
    assert shown.run(height) == 0, "none without confirmed rows"
    assert shown.run("document.images.length") == 0, "a stranger's words stay words"
    assert EVIL in shown.run("document.getElementById('failures').textContent")
    assert len(trials_of(shown)) == 10


@needs_chromium
def test_the_first_repaired_trial_turns_the_map_and_then_the_reader_does(shown: Browser) -> None:
    early = (
        "(() => { const early = structuredClone(data), full = data;"
        " early.trials.repaired = early.trials.repaired.map(() => null);"
        " $('switch').hidden = true; state.after = false; take(early); everything();"
        " const told = [[$('switch').hidden, state.after]];"
        " take(full); everything(); told.push([$('switch').hidden, state.after]);"
        " turn(false); take(full); everything(); told.push([$('switch').hidden, state.after]);"
        " return told; })()"
    )
    assert not shown.run("$('switch').hidden")
    assert shown.run("state.after")
    assert shown.run(early) == [[True, False], [False, True], [False, False]]


@needs_chromium
def test_a_page_that_a_stranger_wrote_into_runs_nothing(
    kept: SweepStore, tmp_path: Path, chromium: Browser
) -> None:
    """Even where a string came to stand as HTML, the page's policy lets it do nothing."""
    text = page(gather(kept)).replace("<h1", f"{EVIL.removeprefix('</script>')}<h1", 1)
    write_page(tmp_path / "page.html", text)
    chromium.problems.clear()
    chromium.open((tmp_path / "page.html").as_uri())
    assert chromium.run("document.title") == "asked: ressa report"
    assert any("Content Security Policy" in problem for problem in chromium.problems)


@needs_chromium
def test_sorting_and_filtering_change_the_table_and_the_map(shown: Browser) -> None:
    drawn = "[...spots].map(s => s.row.trial).sort().join(' ')"
    sort_by(shown, "trial")
    assert trials_of(shown)[0] == "dense"
    sort_by(shown, "trial")
    assert trials_of(shown)[0] == "t007"
    sort_by(shown, "vision")
    assert (
        shown.run("document.querySelector('#heads [aria-sort=descending]').textContent")
        == "vision ↓"
    )
    filter_by(shown, "sparsity>=0.55 vision!=2:4")
    assert set(trials_of(shown)) == {"t004", "t005"}
    assert shown.run(drawn) == "t004 t005"
    assert shown.run("document.getElementById('count').textContent") == "2 of 10 trials"
    filter_by(shown, "owned")
    assert trials_of(shown) == ["t007"]
    filter_by(shown, "colour=red")
    assert "no column colour" in shown.run("document.getElementById('fault').textContent")
    filter_by(shown, "t00")
    shown.run("document.getElementById('state').value = 'failed'; choose()")
    assert trials_of(shown) == ["t007"]


@needs_chromium
def test_hovering_tells_a_trial_and_a_click_chooses_it(shown: Browser) -> None:
    shown.run("document.getElementById('map').scrollIntoView()")
    box = shown.run(
        "(() => { const b = document.getElementById('map').getBoundingClientRect();"
        " const { x, y } = spots.find(s => s.row.trial === 't001');"
        " return [b.left + x, b.top + y] })()"
    )
    shown.point(*box)
    told = shown.run("document.getElementById('tip').textContent")
    assert told.startswith(("t001", "t003"))  # 2:4 lies on 0.5
    assert "before repair" in told
    shown.point(*box, click=True)
    chosen = told.split("\n")[0].removesuffix(" ★")
    assert shown.run("document.querySelectorAll('tr.chosen').length") == 1
    assert shown.run("document.querySelectorAll('#curves polyline').length") == 1
    assert shown.run("document.getElementById('layered').textContent") == f"of {chosen}"
    assert shown.run("document.querySelectorAll('#layers rect').length") == 12
    shown.run("document.getElementById('before').click()")
    assert shown.run("document.getElementById('before').getAttribute('aria-pressed')") == "true"
    shown.point(1, 1)
    assert shown.run("document.getElementById('tip').hidden")


@needs_chromium
def test_what_the_surrogate_says_is_drawn_and_switched(shown: Browser) -> None:
    """Seven trials of which five are unstructured: enough for a map of their own."""
    assert shown.run("data.charts.repaired.bests.length") > 0
    rows = "document.querySelectorAll('#bests tr').length"
    assert shown.run(rows) == 3, "a heading and a row for each budget"
    for name in ("deviation", "within", "score"):
        shown.run(f"document.getElementById('layer-{name}').click()")
        pressed = f"document.getElementById('layer-{name}').getAttribute('aria-pressed')"
        assert shown.run(pressed) == "true"
    shown.run("state.kind = 'sum'; map()")
    assert shown.run("document.querySelector('#bests tr:last-child td').textContent") == "60.0"
    assert shown.run("document.querySelectorAll('#along circle').length") == 3
    assert shown.problems == []


@needs_chromium
def test_lines_whose_names_differ_at_their_ends_are_told_apart(shown: Browser) -> None:
    names = "[0.0001, 0.001].map((rate) => `budget 0.5 prune.method=wanda repair.steps=100 "
    names += "repair.learning_rate=${rate}`)"
    shown.run(f"data.along = {names}.map((name) => ({{...data.along[0], name}})); along()")
    said = "[...document.querySelectorAll('#along text')].map((one) => one.textContent)"
    legend = [text for text in shown.run(said) if text.startswith("budget")]
    assert [text[-6:] for text in legend] == ["0.0001", "=0.001"]
    fits = "[...document.querySelectorAll('#along text')].every((one) => one.getBBox().x + "
    fits += "one.getBBox().width <= 560 && one.getBBox().y + one.getBBox().height <= "
    fits += "document.querySelector('#along svg').viewBox.baseVal.height)"
    assert shown.run(fits)
    assert shown.problems == []


@needs_chromium
def test_lines_whose_names_differ_in_the_middle_are_told_apart(shown: Browser) -> None:
    """Four options with their values, and one that has no space at which it could be wrapped."""
    one = (
        "budget 0.5 prune.pattern=2:4 prune.method={} repair.steps=100 repair.learning_rate=0.0001"
    )
    names = [one.format(method) for method in ("wanda", "magnitude", "sparsegpt")]
    names += [f"budget 0.5 model.path=/{'folder' * 12}/{place}/{'x' * 40}" for place in "ab"]
    made = f"{json.dumps(names)}.map((name) => ({{...data.along[0], name}}))"
    shown.run(f"data.along = {made}; along()")
    every = "[...document.querySelectorAll('#along text')]"
    said = shown.run(f"{every}.map((one) => one.textContent)")
    assert [text for text in said if text.startswith("budget")] == names
    boxes = shown.run(
        f"{every}.map((one) => one.getBBox()).map((one) => [one.x, one.y, one.width, one.height])"
    )
    height = shown.run("document.querySelector('#along svg').viewBox.baseVal.height")
    assert all(x + width <= 560 and y + tall <= height for x, y, width, tall in boxes)
    legend = [box for box, text in zip(boxes, said, strict=True) if text.startswith("budget")]
    assert all(one[1] + one[3] <= other[1] + 1 for one, other in pairwise(legend))
    assert shown.problems == []


@needs_chromium
def test_a_page_of_the_map_alone_has_no_more(
    kept: SweepStore, tmp_path: Path, chromium: Browser
) -> None:
    plot([kept], tmp_path / "map.html")
    chromium.problems.clear()
    chromium.open((tmp_path / "map.html").as_uri())
    assert len(trials_of(chromium)) == 10
    assert chromium.run("document.getElementById('provenance').offsetHeight") == 0
    assert chromium.problems == []


@needs_chromium
def test_it_fits_narrow_windows_and_follows_the_users_scheme(shown: Browser) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = shown.run(paper)
    for width in (320, 700, 1600):
        shown.look(width=width, height=800, dark=True)
        assert shown.run("document.documentElement.scrollWidth") <= width
    assert shown.run(paper) != light


@needs_chromium
def test_a_served_page_shows_new_rows_and_keeps_what_was_chosen(
    asked: SweepStore, chromium: Browser, monkeypatch
) -> None:
    monkeypatch.setattr("ressa.landscape.report.serving.EVERY", 1)
    with serve(lambda: gather(asked)) as address:
        chromium.problems.clear()
        chromium.open(address)
        filter_by(chromium, "t00")
        commit(asked, "t008", "0.4", "0.6")
        chromium.until("rows.some(row => row.trial === 't008')")
        assert chromium.run("document.getElementById('filter').value") == "t00"
        assert chromium.run("document.getElementById('count').textContent") == "9 of 11 trials"
        assert [p for p in chromium.problems if "favicon" not in p and "404" not in p] == []
    chromium.until("document.getElementById('fresh').textContent.startsWith('the server is gone')")


@needs_chromium
def test_ten_thousand_trials_are_sorted_and_filtered(
    kept: SweepStore, tmp_path: Path, chromium: Browser
) -> None:
    data = gather(kept)
    count = 10_000
    trials = {name: (values * count)[:count] for name, values in data["trials"].items()}
    trials["trial"] = [f"t{number:05d}" for number in range(count)]
    for number, name in enumerate(("vision_sparsity", "language_sparsity", "repaired")):
        trials[name] = [(n * (number + 1) * 0.618034) % 1 for n in range(count)]
    write_page(tmp_path / "page.html", page({**data, "trials": trials}))
    chromium.open((tmp_path / "page.html").as_uri())
    assert chromium.run("rows.length") == count
    assert chromium.run("document.querySelectorAll('#body tr').length") < 100
    chromium.run("state.sort = 'repaired'; state.down = false; state.filter = 'repaired>0.5 t0'")
    chromium.run("choose()")
    assert chromium.run("shown.every((row, n) => !n || shown[n - 1].repaired <= row.repaired)")
    assert 4_000 < chromium.run("shown.length") < 6_000
    chromium.run("document.getElementById('scroll').scrollTop = 1e9")
    chromium.until("document.getElementById('body').textContent.includes(shown.at(-1).trial)")
