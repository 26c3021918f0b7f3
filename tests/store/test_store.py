"""What is committed is read back once, whatever happened around it."""

import logging
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ressa.errors import ConflictError, NotFoundError, SpecError, StoreError
from ressa.store import TABLES, Store, SweepStore, compaction, open_store, rows
from ressa.store.schema import arrow_schema

from .conftest import commit_trial


def test_importing_the_store_imports_no_arrow_and_no_pandas() -> None:
    code = "import sys, ressa.store; print({'pyarrow', 'duckdb', 'pandas'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_every_column_says_what_it_means() -> None:
    for table in TABLES.values():
        names = [column.name for column in table.columns]
        assert len(names) == len(set(names))
        assert set(table.key) <= set(names)
        assert all(column.meaning for column in table.columns)
        assert arrow_schema(table.name).field(names[0]).metadata[b"description"]


def test_a_sweep_is_found_by_its_name(store: Store, sweep: SweepStore) -> None:
    assert store.sweeps() == ["quickstart"]
    assert store.sweep("quickstart").spec_text() == "ressa: 1\nname: quickstart\n"
    with pytest.raises(NotFoundError, match="Did you mean 'quickstart'"):
        store.sweep("quickstrat")
    for unsafe in ("../quickstart", "", ".", "a/b"):
        with pytest.raises(NotFoundError):
            store.sweep(unsafe)


def test_a_spec_is_stored_once(store: Store, sweep: SweepStore) -> None:
    with pytest.raises(ConflictError, match=r"'quickstart' .* already"):
        store.create_sweep("quickstart", "another")
    assert sweep.spec_text() == "ressa: 1\nname: quickstart\n"


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a\\b", "a b", "ü", "x" * 101, "a\n"])
def test_an_unsafe_name_makes_no_sweep(store: Store, name: str) -> None:
    with pytest.raises(SpecError, match="sweep name"):
        store.create_sweep(name, "")
    assert store.sweeps() == []


def test_every_kind_of_value_survives(sweep: SweepStore) -> None:
    row = {
        "role": "search",
        "number": np.int64(3),
        "state": "succeeded",
        "vision_target": "98304/196608",
        "vision_sparsity": Fraction(1, 3),
        "budget": Decimal("0.5"),
        "score": np.float32(0.25),
        "score_repaired": math.nan,
        "zeros_after_merge_ok": np.bool_(True),
        "point": {"vision_sparsity": "1/3"},
    }
    sweep.commit("trials", [row], trial="t003", epoch=1)
    (read,) = sweep.trials().to_dict("records")
    assert read["number"] == 3
    assert read["vision_target"] == "98304/196608"
    assert read["vision_sparsity"] == 1 / 3
    assert read["budget"] == 0.5
    assert read["score"] == 0.25
    assert read["zeros_after_merge_ok"] is np.True_ or read["zeros_after_merge_ok"] is True
    assert read["point"] == '{"vision_sparsity": "1/3"}'
    assert sweep.read("trials")["score_repaired"].to_pylist() == [None]  # NaN would sort as largest
    assert sweep.trials().dtypes["number"] == "Int64"


def test_a_column_that_does_not_exist_is_refused(sweep: SweepStore) -> None:
    with pytest.raises(ValueError, match=r"no column 'scor'. Did you mean 'score'"):
        sweep.commit("trials", [{"scor": 1.0}], trial="t000", epoch=1)
    with pytest.raises(ValueError, match=r"trials.workers \(integer\): 1.5"):
        sweep.commit("trials", [{"workers": 1.5}], trial="t000", epoch=1)


def test_repeating_a_commit_doubles_no_row(sweep: SweepStore) -> None:
    for _ in range(3):
        commit_trial(sweep, "t000", 0.8)
        sweep.event("started", {"planned": 1}, epoch=1)
    assert len(sweep.trials()) == 1
    assert len(sweep.scores()) == 2
    assert len(sweep.events()) == 1


def test_the_same_attempt_committed_with_other_values_counts_once(sweep: SweepStore) -> None:
    commit_trial(sweep, "t000", 0.8)
    commit_trial(sweep, "t000", 0.9)
    assert list(sweep.trials()["score"]) == [0.9]
    assert list(sweep.scores()["value"]) == [0.45, 0.9]


def test_rows_count_once_their_attempt_is_finished(sweep: SweepStore) -> None:
    sweep.commit("curves", [{"step": 1, "loss": 2.0}], trial="t000", epoch=1)
    assert sweep.curves().empty
    commit_trial(sweep, "t000", 0.8)
    assert len(sweep.curves()) == 1


def test_a_newer_attempt_replaces_an_older_one_and_both_are_kept(sweep: SweepStore) -> None:
    commit_trial(sweep, "t000", 0.9, attempt=1, epoch=2)
    commit_trial(sweep, "t000", 0.8, attempt=0, epoch=1)
    assert list(sweep.trials()["score"]) == [0.9]
    assert list(sweep.scores()["value"]) == [0.45, 0.9]
    assert list(sweep.attempts()["score"]) == [0.8, 0.9]


def test_a_stale_drivers_late_commit_changes_nothing(sweep: SweepStore) -> None:
    commit_trial(sweep, "t000", 0.9, epoch=2)
    commit_trial(sweep, "t000", 0.1, epoch=1)
    assert list(sweep.trials()["score"]) == [0.9]
    assert list(sweep.scores()["value"]) == [0.45, 0.9]


def test_baselines_come_first_then_trials_by_number(sweep: SweepStore) -> None:
    for trial in ("t010", "t002", "dense-repaired", "t000", "dense"):
        commit_trial(sweep, trial, 0.5)
    assert list(sweep.trials()["trial"]) == ["dense", "dense-repaired", "t000", "t002", "t010"]


def test_layers_keep_their_order(sweep: SweepStore) -> None:
    names = ["z", "a", "m"]
    sweep.commit("layers", [{"name": name, "rows": 4} for name in names], trial="t000", epoch=1)
    commit_trial(sweep, "t000", 0.5)
    assert list(sweep.layers()["name"]) == names


def test_a_live_reader_sees_each_new_commit(sweep: SweepStore) -> None:
    reader = open_store(sweep.store.location).sweep(sweep.name)
    assert reader.trials().empty
    commit_trial(sweep, "t000", 0.5)
    assert len(reader.trials()) == 1
    commit_trial(sweep, "t001", 0.5)
    assert len(reader.trials()) == 2


def test_what_many_threads_hold_in_memory_is_counted_once(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "FAN_IN", 100)
    for number in range(32):
        sweep.event("resumed", {"planned": number}, epoch=number)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    for _ in range(5):
        reader = open_store(sweep.store.location).sweep(sweep.name)
        reader.store.objects.folder = None  # as of a bucket, whose files threads wait for
        files = reader.files["events"]
        sizes = [part.rows.nbytes for part in files.parts() if part.rows is not None]
        assert (len(sizes), files._held) == (32, sum(sizes))
    sys.setswitchinterval(interval)


def test_damaged_and_foreign_files_are_named_and_skipped(
    sweep: SweepStore, caplog: pytest.LogCaptureFixture
) -> None:
    commit_trial(sweep, "t000", 0.5)
    commit_trial(sweep, "t001", 0.6)
    folder = Path(sweep.store.location, sweep.prefix, "trials")
    (whole,) = folder.glob("t001-*")
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    (folder / "empty.parquet").write_bytes(b"")
    (folder / "notes.txt").write_text("mine")
    shutil.copy(next((folder.parent / "scores").glob("*.parquet")), folder / "scores.parquet")

    with caplog.at_level(logging.WARNING):
        fresh = open_store(sweep.store.location).sweep(sweep.name)
        assert list(fresh.trials()["trial"]) == ["t000"]
        fresh.trials()
    names = {path.rsplit("/", 1)[1] for path in fresh.skipped}
    assert names == {whole.name, "empty.parquet", "notes.txt", "scores.parquet"}
    assert len(caplog.records) == 4  # each named once, not at every read
    commit_trial(sweep, "t001", 0.6, attempt=1, epoch=2)  # done again, it counts
    assert list(fresh.trials()["trial"]) == ["t000", "t001"]


def test_a_file_cut_at_any_byte_never_stops_a_reader(sweep: SweepStore) -> None:
    commit_trial(sweep, "t000", 0.5)
    (file,) = Path(sweep.store.location, sweep.prefix, "scores").glob("*")
    content = file.read_bytes()
    for length in range(0, len(content), 7):
        with pytest.raises(rows.NotOurs):
            rows.decode("scores", content[:length])


def test_rows_of_an_older_and_a_later_ressa_are_read_together(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    commit_trial(sweep, "t000", 0.5)
    folder = Path(sweep.store.location, sweep.prefix, "trials")
    (file,) = folder.glob("*")
    table = pq.read_table(file)
    pq.write_table(table.drop_columns(["mask_hash"]), folder / "older.parquet")
    renamed = table.set_column(1, "trial", [["t001"]]).append_column("new_column", [["x"]])
    pq.write_table(renamed, folder / "later.parquet")
    read = sweep.trials()
    assert list(read["trial"]) == ["t000", "t001"]
    assert read["new_column"].isna().tolist() == [True, False]


def test_rows_of_a_newer_schema_version_are_refused(sweep: SweepStore) -> None:
    import pyarrow.parquet as pq

    commit_trial(sweep, "t000", 0.5)
    (file,) = Path(sweep.store.location, sweep.prefix, "trials").glob("*")
    table = pq.read_table(file)
    pq.write_table(
        table.replace_schema_metadata({"ressa.table": "trials", "ressa.version": "99"}), file
    )
    with pytest.raises(StoreError, match=r"schema version 99.*Upgrade ressa"):
        sweep.trials()


def test_a_store_can_be_copied_and_read_elsewhere(sweep: SweepStore, tmp_path: Path) -> None:
    commit_trial(sweep, "t000", 0.5)
    shutil.copytree(sweep.store.location, tmp_path / "elsewhere")
    shutil.rmtree(sweep.store.location)
    copied = open_store(tmp_path / "elsewhere").sweep(sweep.name)
    assert len(copied.trials()) == 1
    assert len(copied.scores()) == 2


def test_a_store_can_be_sent_to_another_process(sweep: SweepStore) -> None:
    commit_trial(sweep, "t000", 0.5)
    sent = pickle.loads(pickle.dumps(sweep))
    assert len(sent.trials()) == 1


@pytest.mark.parametrize("after_seconds", [0.02, 0.1, 0.3])
def test_killing_a_writer_leaves_only_whole_commits(
    sweep: SweepStore, after_seconds: float
) -> None:
    code = textwrap.dedent(
        f"""
        from ressa.store import open_store
        sweep = open_store({sweep.store.location!r}).sweep({sweep.name!r})
        answers = [{{"example_id": str(i), "answer": "red"}} for i in range(300)]
        for n in range(10**6):
            trial = f"t{{n:06d}}"
            sweep.commit("answers", answers, trial=trial, epoch=1)
            sweep.commit("trials", [{{"number": n, "state": "succeeded"}}], trial=trial, epoch=1)
            print(n, flush=True)
        """
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        said = [int(writer.stdout.readline())]
        time.sleep(after_seconds)
        os.kill(writer.pid, signal.SIGKILL)
        said += [int(line) for line in writer.stdout if line.endswith("\n")]
    trials, answers = sweep.trials(), sweep.answers()
    assert len(trials) in (said[-1] + 1, said[-1] + 2)  # committed, perhaps not yet said
    assert len(answers) == 300 * len(trials)
    assert sweep.skipped == {}
