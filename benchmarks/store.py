"""The store at scale: appends, results, SQL, merging; `python -m benchmarks --only store`.

A sweep of up to 100,000 trials with 50 curve rows and 100 answers each is laid out as its driver
would have left it: what was merged is written as merged files, the rest is committed.
"""

import argparse
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.report import Row
from ressa.landscape import results_table
from ressa.store import SweepStore, open_store, query
from ressa.store import rows as row_files
from ressa.store.compaction import FAN_IN, LARGEST_ROWS
from ressa.store.parts import attempt_name, merged_name
from ressa.store.schema import plain_schema

TRIALS, CURVE, ANSWERS = 100_000, 50, 100
COMMITTED = 1_700_000_000_000_000
TABLES = ("proposals", "events", "scores", "curves", "answers", "trials")


def lay_out(sweep: SweepStore, trials: int) -> None:
    """Fills a sweep with finished trials: merged as often as they would be, and as committed."""
    dense = {"role": "baseline", "state": "succeeded", "score": 0.99, "score_pruned": 0.99}
    sweep.commit("trials", [dense], trial="dense", epoch=1)
    for table in TABLES:
        for level, numbers in _merges(table, trials):
            _write_merged(sweep, table, numbers, level)
    for number in range(trials - trials % FAN_IN, trials):
        commit(sweep, number)


def _merges(table: str, trials: int) -> Iterator[tuple[int, range]]:
    """Yields the merged files that a table has after so many trials: their level and trials."""
    each = _columns(table, range(1)).num_rows
    levels: dict[int, list[range]] = defaultdict(list)
    for first in range(0, trials - FAN_IN + 1, FAN_IN):
        level, merged = 1, range(first, first + FAN_IN)
        while len(merged) * each <= LARGEST_ROWS // 2:
            levels[level].append(merged)
            if len(levels[level]) < FAN_IN:
                break
            taken = max(1, LARGEST_ROWS // (each * len(levels[level][0])))
            merged = range(levels[level][0].start, levels[level][:taken][-1].stop)
            del levels[level][:taken]
            level += 1
        else:
            yield level, merged
    for level, found in levels.items():
        yield from ((level, numbers) for numbers in found)


def commit(sweep: SweepStore, number: int) -> None:
    """Commits one trial's rows as a driver does."""
    trial = _name(number)
    for table in TABLES:
        rows = _columns(table, range(number, number + 1)).to_pylist()
        sweep.commit(table, rows, trial=trial, epoch=1)


def rows(given: argparse.Namespace) -> Iterator[Row]:
    """Measures the store at 1,000, 10,000 and 100,000 trials."""
    folder = Path(tempfile.mkdtemp(prefix="ressa-bench-"))
    try:
        for trials in (1_000, 10_000, TRIALS):
            sweep = open_store(folder / str(trials), create=True).create_sweep("bench", "")
            lay_out(sweep, trials)
        yield from _appends(folder)
        yield from _questions(folder / str(TRIALS))
    finally:
        shutil.rmtree(folder)


def _appends(folder: Path) -> Iterator[Row]:
    seconds = {trials: _append(folder / str(trials), trials) for trials in (1_000, 10_000, TRIALS)}
    for trials in (10_000, TRIALS):
        yield Row(
            name=f"append a trial to {trials:,}",
            shape=f"{len(TABLES)} commits, {CURVE} curve rows, {ANSWERS} answers, merging included",
            peer_name="the same to 1,000",
            ours=seconds[trials],
            peer=seconds[1_000],
            unit="s",
            rounds=1,
            floor=0.67,
            goal=0.8,
        )


def _append(folder: Path, trials: int) -> float:
    """Returns the seconds that a new driver's trials take, on average, with what they set off."""
    sweep, count = open_store(folder).sweep("bench"), 2 * FAN_IN  # each table is merged twice
    commit(sweep, trials)
    new = range(trials + 1, trials + 1 + count)
    return _seconds(lambda: [commit(sweep, number) for number in new]) / count


def _questions(folder: Path) -> Iterator[Row]:
    shape = f"{TRIALS:,} trials, {TRIALS * CURVE:,} curve rows, {TRIALS * ANSWERS:,} answers"

    def asked(name: str, limit: float, ask: Callable[[], object]) -> Row:
        taken = [_seconds(ask) for _ in range(3)]
        return Row(
            name=name,
            shape=shape,
            peer_name="at most",
            ours=sorted(taken)[1],
            peer=limit,
            unit="s",
            rounds=3,
            floor=1.0,
            goal=2.0,
        )

    def sql(text: str) -> Callable[[], object]:
        return lambda: query(open_store(folder), text)

    yield asked("results", 1, lambda: results_table(open_store(folder).sweep("bench")))
    yield asked("status", 1, lambda: open_store(folder).sweep("bench").status())
    best = "SELECT trial, score FROM trials ORDER BY score DESC LIMIT 1"
    yield asked("best trial, in SQL", 1, sql(best))
    grouped = (
        "SELECT vision_method, round(vision_sparsity, 1) AS v, max(score) FROM trials GROUP BY ALL"
    )
    yield asked("grouped query of trials", 1, sql(grouped))
    of_answers = "SELECT state, answer, count(*), avg(correct::int) FROM answers GROUP BY ALL"
    yield asked("grouped query of answers", 5, sql(of_answers))
    joined = (
        "SELECT t.vision_method, avg(a.correct::int) FROM answers a JOIN trials t USING (trial) "
        "GROUP BY ALL"
    )
    yield asked("answers joined with trials", 5, sql(joined))
    curves = "SELECT step, avg(loss) FROM curves GROUP BY step"
    yield asked("grouped query of curves", 5, sql(curves))
    one = f"SELECT * FROM answers WHERE trial = '{_name(TRIALS // 2)}'"
    yield asked("one trial's answers", 1, sql(one))
    files = [path for path in folder.rglob("*") if path.is_file()]
    yield Row(
        name="size on disk",
        shape=f"{len(files)} files",
        peer_name="1 KiB a trial",
        ours=sum(path.stat().st_size for path in files) / 2**20,
        peer=TRIALS / 2**10,
        unit="MiB",
        rounds=1,
    )


def _seconds(work: Callable[[], object]) -> float:
    """Returns how long it takes, as whoever waits for it sees it."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _name(number: int) -> str:
    return f"t{number:03d}"


def _write_merged(sweep: SweepStore, table: str, numbers: range, level: int) -> None:
    own = _columns(table, numbers)
    each = own.num_rows // len(numbers)
    names = pa.array([_name(n) for n in numbers])
    whose = pa.DictionaryArray.from_arrays(np.repeat(np.arange(len(numbers)), each), names)
    constant = {"sweep": sweep.name, "attempt": 0, "epoch": 1}
    schema = plain_schema(table)
    known = {column: own[column] for column in own.column_names} | {
        "trial": whose.cast(pa.string()),
        "committed": pa.array(COMMITTED + np.repeat(np.array(numbers), each) * 10**6).cast(
            schema.field("committed").type
        ),
    }
    columns = [
        known[field.name].cast(field.type)
        if field.name in known
        else pa.repeat(pa.scalar(constant.get(field.name), field.type), own.num_rows)
        for field in schema
    ]
    merged = pa.table(columns, schema=schema)
    order = sorted(range(len(numbers)), key=lambda at: _name(numbers[at]))
    if order != list(range(len(numbers))):  # t999 comes after t1000
        merged = merged.sort_by([("trial", "ascending")])
    commits = [f"{attempt_name(_name(numbers[at]), 0, 1)}-{at:012x}.parquet" for at in order]
    content = row_files.encode_merged(table, merged, commits)
    path = sweep.files[table].path(merged_name(level, merged.num_rows, f"{numbers[0]:012x}"))
    sweep.store.objects.put(path, content)


def _columns(table: str, numbers: range) -> pa.Table:
    """The table's own columns of some trials: plausible values, the same for the same trials."""
    count, chance = len(numbers), np.random.default_rng(numbers[0])

    def repeated(values: list[Any], each: int) -> pa.Array:
        """Values in turns, for `each` rows of every trial."""
        at = np.resize(np.arange(len(values)), each)
        return pa.DictionaryArray.from_arrays(np.tile(at, count), pa.array(values)).cast(
            pa.string()
        )

    number = np.array(numbers)
    match table:
        case "proposals":
            given = {"number": number, "point": repeated(['{"vision_sparsity": "0.5"}'], 1)}
        case "events":
            given = {"kind": repeated(["trial_started"], 1), "detail": repeated(["{}"], 1)}
        case "scores":
            given = {
                "task": repeated(["easy-vqa"], 8),
                "split": repeated(["validation"], 8),
                "state": repeated(["dense", "dense", "pruned", "pruned"], 8),
                "image": repeated(["real", "blank"], 8),
                "metric": repeated(["exact_match"] * 4 + ["balanced_accuracy"] * 4, 8),
                "value": chance.random(8 * count),
                "items": np.full(8 * count, 2000),
            }
        case "curves":
            step = np.tile(np.arange(1, CURVE + 1), count)
            given = {
                "step": step,
                "loss": chance.random(CURVE * count) + 1 / step,
                "ce": chance.random(CURVE * count),
                "kl": chance.random(CURVE * count),
                "learning_rate": 0.005 * (1 - step / CURVE),
                "gradient_norm": chance.random(CURVE * count),
                "examples_per_second": 900 + chance.random(CURVE * count),
                "peak_memory_gib": np.full(CURVE * count, 1.5),
                "micro_batch": np.full(CURVE * count, 32),
            }
        case "answers":
            words = ["red", "blue", "yes", "no", "circle", "green", "triangle", "black"]
            at = chance.integers(0, len(words), ANSWERS * count)
            given = {
                "task": repeated(["easy-vqa"], ANSWERS),
                "split": repeated(["validation"], ANSWERS),
                "state": repeated(["pruned"] * 50 + ["repaired"] * 50, ANSWERS),
                "image": repeated(["real"], ANSWERS),
                "example_id": repeated([f"validation/{n}" for n in range(50)], ANSWERS),
                "image_id": repeated([f"image/{n // 3}" for n in range(50)], ANSWERS),
                "answer": pa.DictionaryArray.from_arrays(at, pa.array(words)).cast(pa.string()),
                "correct": chance.random(ANSWERS * count) < 0.7,
            }
        case _:
            prunable = np.full(count, 196_608)
            given = {
                "role": repeated(["search"], 1),
                "number": number,
                "key": pa.array([f"{n:032x}" for n in numbers]),
                "state": repeated(["succeeded"], 1),
                "model": repeated(["pocket-blip2"], 1),
                "metric": repeated(["easy-vqa.balanced_accuracy"], 1),
                "items": np.full(count, 2000),
                "point": pa.array([f'{{"vision_sparsity": "{n}/{TRIALS}"}}' for n in numbers]),
                "host": repeated(["node"], 1),
                "cpu": repeated(["Xeon"], 1),
                "whole_parameters": np.full(count, 1_000_000),
            }
            scores = ("score", "score_pruned", "score_repaired", "score_repaired_se")
            times = ("calibration", "prune", "teacher", "repair", "evaluate", "total")
            for name in (*scores, "score_pruned_se", *(f"{t}_seconds" for t in times)):
                given[name] = chance.random(count)
            given |= {"sparsity": chance.random(count), "whole_sparsity": chance.random(count)}
            for tower in ("vision", "language"):
                given[f"{tower}_target"] = pa.array([f"{n}/{TRIALS}" for n in numbers])
                given[f"{tower}_sparsity"] = number / TRIALS
                given[f"{tower}_prunable"] = prunable
                given[f"{tower}_zeros"] = (prunable * number) // TRIALS
                given[f"{tower}_method"] = repeated(["wanda" if numbers[0] % 2 else "random"], 1)
                given[f"{tower}_group"] = repeated(["row"], 1)
    return pa.table({name: pa.array(column) for name, column in given.items()})
