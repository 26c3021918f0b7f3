"""The report of 10,000 trials in a real Chromium: `python -m benchmarks.page [FOLDER]`.

A sweep is laid out as its driver leaves it, gathered and written as a page, which is then opened,
sorted and filtered; medians of five, wall time and the page's own processor time, which other work
on the machine does not move. Pictures of it go to the folder, if one is named.
"""

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.browser import CHROMIUM, Browser, browser
from benchmarks.store import lay_out
from ressa.landscape.report import gather, page, write_page
from ressa.spec import spec_from_mapping
from ressa.store import open_store

TRIALS, TIMES = 10_000, 5

_WORK = {
    "sort by score": "state.down = !state.down; state.sort = 'score'; choose()",
    "sort by name": "state.down = !state.down; state.sort = 'trial'; choose()",
    "filter by number": "state.filter = state.filter ? '' : 'sparsity>0.5'; choose()",
    "filter by words": "state.filter = state.filter === 't00' ? '' : 't00'; choose()",
    "switch the map": "state.after = !state.after; map()",
}
_TIMED = "(() => {{ const t = performance.now(); {}; document.body.offsetHeight; "
_TIMED += "return performance.now() - t }})()"


def main() -> None:
    """Measures, prints, and takes pictures."""
    if CHROMIUM is None:
        sys.exit("no Chromium here: apt-get install chromium")
    folder = Path(tempfile.mkdtemp(prefix="ressa-bench-"))
    try:
        measure(folder, Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, pictures: Path | None) -> None:
    """Lays a sweep out, makes its page and times what a reader does."""
    axis = {"low": 0.1, "high": 0.8}
    content = {"ressa": 1, "name": "bench", "model": "pocket-blip2"}
    content |= {"space": {"vision_sparsity": axis, "language_sparsity": axis}}
    content |= {"search": {"sampler": "random", "trials": TRIALS}}
    spec = spec_from_mapping(content).spec
    sweep = open_store(folder / "results", create=True).create_sweep("bench", spec.to_yaml())
    lay_out(sweep, TRIALS)
    began, used = time.perf_counter(), time.process_time()
    text = page(gather(sweep))
    used, took = time.process_time() - used, time.perf_counter() - began
    print(f"made in {took:.2f} s ({used:.2f} s of processor), {len(text) / 2**20:.1f} MiB")
    write_page(folder / "page.html", text)
    with browser() as reader:
        reader.look(width=1280, height=900)
        address = (folder / "page.html").as_uri()
        reader.call("Performance.enable", timeDomain="threadTicks")
        timed("load", reader, lambda: reader.open(address))
        for name, script in _WORK.items():
            asked = _TIMED.format(script)
            timed(name, reader, lambda asked=asked: reader.run(asked) / 1000)
        if pictures is not None:
            pictures.mkdir(parents=True, exist_ok=True)
            for name, width, dark in (("light", 1280, 0), ("dark", 1280, 1), ("narrow", 390, 0)):
                reader.look(width=width, height=900, dark=bool(dark))
                reader.open(address)
                reader.picture(pictures / f"{name}.png")


def timed(name: str, reader: Browser, work: Callable[[], float]) -> None:
    """Prints the median seconds of a piece of work that says its own wall time."""
    walls, used = [], []
    for _ in range(TIMES):
        before = _processor(reader)
        walls.append(work())
        after = _processor(reader)
        used.append(after - before if after > before else after)  # a new page counts from 0
    wall, own = statistics.median(walls), statistics.median(used)
    print(f"{name:20} {wall:.3f} s wall, {own:.3f} s of processor")


def _processor(reader: Browser) -> float:
    found = {one["name"]: one["value"] for one in reader.call("Performance.getMetrics")["metrics"]}
    return float(found["TaskDuration"])


if __name__ == "__main__":
    main()
