"""A store in a bucket keeps what a store in a folder does, over HTTP to an S3 server."""

import multiprocessing
import os
from collections.abc import Iterator
from itertools import count

import pytest

from ressa.errors import ConflictError, StoreError
from ressa.store import Store, acquire, compaction, holder, open_store, query
from ressa.store.objects import Objects
from tests.s3 import s3_server
from tests.s3_server import BUCKET

from .conftest import commit_trial

numbers = count()


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield variables


@pytest.fixture
def bucket(server: dict[str, str]) -> Store:
    """An empty store in a folder of the server's bucket."""
    return open_store(f"s3://{BUCKET}/store-{next(numbers)}", create=True)


def _claim(location: str, start: "multiprocessing.synchronize.Barrier", wins: "object") -> None:
    objects = Objects(location)
    for number in range(20):
        start.wait(timeout=600)
        if objects.put_new(f"claims/{number}", str(os.getpid()).encode()):
            wins.put((number, os.getpid()))  # type: ignore[attr-defined]


def test_of_many_processes_that_create_an_object_one_does(bucket: Store) -> None:
    context = multiprocessing.get_context("spawn")
    start, wins = context.Barrier(4), context.Queue()
    arguments = (bucket.location, start, wins)
    racing = [context.Process(target=_claim, args=arguments) for _ in range(4)]
    for process in racing:
        process.start()
    for process in racing:
        process.join()
        assert process.exitcode == 0
    found = dict(wins.get(timeout=600) for _ in range(20))
    assert wins.empty()
    assert sorted(found) == list(range(20))
    for number, winner in found.items():
        assert bucket.objects.get(f"claims/{number}") == str(winner).encode()


def test_rows_are_committed_merged_and_asked_for(
    bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "FAN_IN", 3)
    sweep = bucket.create_sweep("s", "name: s\n")
    for number in range(10):
        commit_trial(sweep, f"t{number:03d}", number / 10)
        commit_trial(sweep, f"t{number:03d}", number / 10)  # again: nothing is doubled
    reader = open_store(bucket.location).sweep("s")
    assert [part.level for part in reader.scan("scores").unread]
    assert list(reader.trials()["score"]) == [number / 10 for number in range(10)]
    assert len(reader.scores()) == 20
    asked = query(bucket, "SELECT trial, max(value) AS v FROM scores GROUP BY 1 ORDER BY 2 DESC")
    assert asked.to_dict("records")[0] == {"trial": "t009", "v": 0.9}
    assert len(bucket.objects.names("sweeps/s/scores")) <= 6
    assert reader.skipped == {}


def test_stages_are_stored_once(bucket: Store) -> None:
    assert bucket.stages.put("teacher", "k", {"logits": b"first"})
    assert not bucket.stages.put("teacher", "k", {"logits": b"second"})
    assert bucket.stages.get("teacher", "k") == {"logits": b"first"}


def test_one_driver_holds_a_sweep(bucket: Store) -> None:
    sweep = bucket.create_sweep("s", "")
    with acquire(sweep) as lease:
        assert lease.epoch == 1
        with pytest.raises(ConflictError):
            acquire(open_store(bucket.location).sweep("s"))
    current = holder(sweep)
    assert current is not None and current.state == "released"
    with acquire(sweep) as lease:
        assert lease.epoch == 2


def test_a_claim_whose_answer_got_lost_is_still_ours(
    bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, put_new = bucket.create_sweep("s", ""), Objects.put_new

    def asked_twice(self: Objects, path: str, content: bytes) -> bool:
        return put_new(self, path, content) and put_new(self, path, content)

    monkeypatch.setattr(Objects, "put_new", asked_twice)
    with acquire(sweep) as lease:
        assert lease.epoch == 1
    assert bucket.create_sweep("other", "name: other").spec_text() == "name: other"


def test_a_bucket_that_is_not_there_is_one_clear_message(server: dict[str, str]) -> None:
    with pytest.raises(StoreError, match=r"^store s3://nowhere/x: cannot write [^\n]+$"):
        open_store("s3://nowhere/x", create=True)


@pytest.mark.parametrize(
    "url", ["s3://key:secret@bucket/prefix", "s3://bucket/prefix?aws_secret_access_key=secret"]
)
def test_a_url_with_credentials_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(StoreError, match="come from the environment") as refused:
        open_store(url)
    assert "secret@" not in str(refused.value)
    assert "=secret" not in str(refused.value)
