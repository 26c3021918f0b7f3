"""A query reads the store's tables and can do nothing else."""

import io
import re
from concurrent.futures import Future
from pathlib import Path

import pandas as pd
import pytest

from ressa.errors import SpecError
from ressa.store import Store, SweepStore, matching, parquet_bytes, query
from ressa.store.query import VIEWS

from .conftest import commit_trial


def test_a_query_sees_all_sweeps(store: Store, sweep: SweepStore) -> None:
    commit_trial(sweep, "t000", 0.5)
    commit_trial(store.create_sweep("other", ""), "t000", 0.75, epoch=4)
    found = query(store, "SELECT sweep, max(score) AS best FROM trials GROUP BY sweep ORDER BY 2")
    assert found.to_dict("records") == [
        {"sweep": "quickstart", "best": 0.5},
        {"sweep": "other", "best": 0.75},
    ]


def test_a_query_may_join_and_begin_with(store: Store, sweep: SweepStore) -> None:
    commit_trial(sweep, "t000", 0.5)
    sql = """
        WITH gain AS (SELECT trial, max(value) - min(value) AS gain FROM scores GROUP BY trial)
        SELECT t.trial, g.gain FROM trials t JOIN gain g USING (trial)
    """
    assert query(store, sql)["gain"].tolist() == [0.25]


def test_sums_of_whole_numbers_are_whole(store: Store, sweep: SweepStore) -> None:
    commit_trial(sweep, "t002", 0.5)
    commit_trial(sweep, "t003", 0.5)
    assert query(store, "SELECT sum(number) AS n FROM trials")["n"].tolist() == [5]


def test_what_parquet_has_no_type_for_becomes_text(store: Store) -> None:
    found = query(store, "SELECT INTERVAL 1 DAY AS took, 7 AS n")
    (row,) = pd.read_parquet(io.BytesIO(parquet_bytes(found))).to_dict("records")
    assert row["n"] == 7
    assert "days=1" in row["took"]


def test_every_view_is_there_in_an_empty_store(store: Store) -> None:
    for view in VIEWS:
        assert query(store, f"SELECT * FROM {view}").empty
    assert set(query(store, "SHOW TABLES")["name"]) == set(VIEWS)


def test_attempts_shows_what_trials_replaced(store: Store, sweep: SweepStore) -> None:
    commit_trial(sweep, "t000", 0.5)
    commit_trial(sweep, "t000", 0.6, attempt=1)
    assert len(query(store, "FROM trials")) == 1
    assert len(query(store, "FROM attempts")) == 2


@pytest.mark.parametrize(
    "attack",
    [
        "COPY trials TO '{folder}/out.csv'",
        "ATTACH '{folder}/out.db'",
        "INSTALL httpfs",
        "LOAD json",
        "SET enable_external_access = true",
        "PRAGMA database_list",
        "CALL pragma_version()",
        "EXPORT DATABASE '{folder}/out'",
        "CREATE TABLE x AS SELECT 1",
        "INSERT INTO trials SELECT * FROM trials",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY trials TO '{folder}/out.csv'",
        "",
        "-- nothing",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_blob('/etc/passwd')",
        "SELECT * FROM read_parquet('{folder}/results/sweeps/*/*/*.parquet')",
        "SELECT * FROM sniff_csv('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM 'https://example.org/x.parquet'",
        "SELECT * FROM query('COPY trials TO ''{folder}/out.csv''')",
        "SELECT * FROM enable_logging(storage = 'file', storage_path = '{folder}/out')",
        "SELECT getenv('HOME')",
        "SELECT * FROM parquet_metadata('{folder}/results/sweeps/quickstart/trials/*.parquet')",
        "SELECT * FROM read_json('/proc/self/environ')",
        "SELECT * FROM read_csv('https://127.0.0.1/x.csv')",
        "SELECT * FROM 's3://bucket/x.parquet'",
        "SELECT * FROM '{folder}/results/sweeps/quickstart/spec.yaml'",
        "WITH x AS (COPY trials TO '{folder}/out.csv') SELECT 1",
        "WITH x AS MATERIALIZED (FROM read_text('/etc/passwd')) SELECT * FROM x",
        "SELECT (SELECT content FROM read_text('/etc/passwd'))",
        "FROM query_table('/etc/passwd')",
        "FROM query_table(['/etc/passwd'])",
        "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
        "CREATE SECRET s (TYPE s3, KEY_ID 'k', SECRET 's')",
        "CREATE MACRO m() AS TABLE FROM read_text('/etc/passwd')",
        "DETACH memory",
        "USE memory",
        "VACUUM",
        "CHECKPOINT",
        "IMPORT DATABASE '{folder}'",
        "EXPLAIN ANALYZE COPY trials TO '{folder}/out.csv'",
        "PREPARE p AS SELECT 1",
        "EXECUTE p",
        "RESET enable_external_access",
        "SET lock_configuration = false",
        "SELECT * FROM duckdb_extensions() e, read_blob(e.install_path)",
        "SELECT * FROM sqlite_scan('{folder}/x.db', 't')",
        "SELECT * FROM arrow_scan(1, 2, 3)",
        "SELECT * FROM pandas_scan(1)",
        "SELECT * FROM python_map_function(1)",
        "SELECT * FROM store",
        "SELECT * FROM attack",
    ],
)
def test_an_attack_is_refused_and_leaves_nothing(
    store: Store, sweep: SweepStore, tmp_path: Path, attack: str
) -> None:
    commit_trial(sweep, "t000", 0.5)
    with pytest.raises(SpecError, match=r"^query: "):
        query(store, attack.format(folder=tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"results"}


def test_a_typing_error_gets_duckdbs_hint(store: Store) -> None:
    with pytest.raises(SpecError, match=r"Candidate bindings.*score"):
        query(store, "SELECT scor FROM trials")


def test_ctrl_c_before_a_statement_has_begun_ends_it_too(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_once(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "result", at_once)
    for_hours = "FROM range(1000000) a, range(1000000) b WHERE hash(a.range * b.range) = 1"
    with pytest.raises(KeyboardInterrupt):
        query(store, for_hours)


EXAMPLES = re.findall(
    r"```sql\n(.*?)```", (Path(__file__).parents[2] / "docs" / "query.md").read_text(), re.DOTALL
)


@pytest.mark.parametrize("sql", EXAMPLES, ids=lambda sql: sql.split()[1])
def test_the_examples_of_the_page_run(store: Store, sweep: SweepStore, sql: str) -> None:
    commit_trial(sweep, "t000", 0.5)
    assert list(query(store, sql).columns)


def test_allocations_are_means_over_their_runs(store: Store, sweep: SweepStore) -> None:
    for run, score in enumerate((0.5, 0.7)):
        point = {"vision_sparsity": "0.5", "replicate": str(run)}
        row = {"state": "succeeded", "score": score, "point": point, "vision_target": "0.5"}
        sweep.commit("trials", [row], trial=f"t00{run}", epoch=1)
    (found,) = query(store, "FROM allocations").to_dict("records")
    assert (found["runs"], found["score"]) == (2, pytest.approx(0.6))
    assert found["spread"] == pytest.approx(0.2 / 2**0.5)
    assert list(found["trials"]) == ["t000", "t001"]


def test_seeds_that_were_searched_tell_runs_apart_too(store: Store, sweep: SweepStore) -> None:
    for seed in range(2):
        point = {"repair.seed": str(seed), "repair.steps": "9", "prune.calibration.seed": seed}
        row = {"state": "succeeded", "score": 0.5, "point": point | {"replicate": "0"}}
        sweep.commit("trials", [row], trial=f"t00{seed}", epoch=1)
    (found,) = query(store, "FROM allocations").to_dict("records")
    assert (found["runs"], found["point"]) == (2, '{"repair.steps": "9"}')


def test_an_expression_chooses_rows_in_their_order() -> None:
    frame = pd.DataFrame({"trial": ["a", "b", "c"], "score": [0.9, None, 0.8]})
    assert matching(frame, "score > 0.7").tolist() == [0, 2]
    assert matching(frame, "score IS NULL OR trial = 'c'").tolist() == [1, 2]


@pytest.mark.parametrize(
    "attack",
    [
        "true) UNION ALL SELECT 1, 2 --",
        "true; SELECT 1",
        "true, false",
        "*",
        "trial = 'a' ORDER BY score",
        "(SELECT count(*) FROM read_csv('/etc/passwd')) > 0",
        "(SELECT count(*) FROM glob('/*')) > 0",
        "getenv('HOME') = '/'",
        "score > 'much'",
        "scores > 0",
        "",
    ],
)
def test_an_expression_is_one_expression_and_sees_nothing_else(attack: str) -> None:
    frame = pd.DataFrame({"trial": ["a"], "score": [0.9]})
    with pytest.raises(SpecError, match=r"^--where: "):
        matching(frame, attack)
