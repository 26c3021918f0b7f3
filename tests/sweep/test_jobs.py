"""What a client and a cluster's head say to each other."""

import hashlib
import socket
from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from ressa.errors import ClusterError, ConflictError, SpecError
from ressa.sweep.jobs import Frame, Head, Request, next_name
from ressa.sweep.joined_ray import joined_ray
from ressa.sweep.versions import CODE, differences, installed


def test_any_bytes_travel_in_one_line() -> None:
    for name in ("map.png", "my map – 100%20.png", "a\nb"):
        frame = Frame("file", bytes(range(256)) * 3 + b"\n\r\n", name)
        assert frame.line().count("\n") == 1
        assert Frame.of(frame.line().rstrip("\n")) == frame
    assert Frame.of(Frame("taken").line().rstrip("\n")) == Frame("taken", b"", "-")


@pytest.mark.parametrize(
    "line", ["", "~ressa", "~ressa out - %%%", "(raylet) ~ressa out - eA==", "x"]
)
def test_what_others_write_into_a_log_is_no_frame(line: str) -> None:
    assert Frame.of(line) is None


def test_a_request_is_one_word_of_a_command_line() -> None:
    request = Request(
        words=["query", "SELECT 'ü\n' -- \"$x\""], versions={"a": "1"}, spec="a: 1\n" * 1000
    )
    word = request.encode()
    assert word.replace("-", "").replace("_", "").replace("=", "").isalnum()
    assert Request.decode(word) == request


def test_versions_that_differ_are_named_and_what_the_client_lacks_is_not() -> None:
    here = installed()
    assert {"python", CODE, "ray"} <= here.keys()
    assert "(code " in here[CODE]
    assert differences(here, here) == []
    there = {**here, "torch": "1.0", "more": "2"}
    del there["optuna"]
    assert differences(here, there) == [
        f"torch {here['torch']} here, 1.0 on the cluster",
        f"optuna {here['optuna']} here, none on the cluster",
    ]


def test_a_name_is_new_though_earlier_jobs_were_deleted() -> None:
    names = ["ressa-s-0a-2", "ressa-s-0a-10", "ressa-s-0a-x", "ressa-s-0b-99", "None"]
    assert next_name("ressa-s-0a-", names) == "ressa-s-0a-11"
    assert next_name("ressa-t-0a-", names) == "ressa-t-0a-1"


def test_an_address_that_cannot_be_one_is_refused() -> None:
    with pytest.raises(SpecError, match=r"http://10\.0\.0\.1:8265, got '10"):
        Head("10.0.0.1:6379")
    with pytest.raises(SpecError, match="`ressa submit`"), joined_ray("http://h:8265", threads=1):
        pass


def test_where_nothing_answers_is_said_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"  # nobody listens while we hold it
        with pytest.raises(ClusterError, match=r"no Ray answers at http://.*Connection refused"):
            Head(f"http://{address}")
        refused = pytest.raises(ClusterError, match="no Ray answers at 127")
        with refused, joined_ray(address, threads=1):
            pass


def head_with(*jobs: SimpleNamespace) -> tuple[Head, list[dict[str, Any]]]:
    """A head that has these jobs, and the list of what is handed in to it."""
    head, handed_in = Head.__new__(Head), []
    head.address = "http://h:8265"

    def submit_job(**job: Any) -> str:
        handed_in.append(job)
        return str(job["submission_id"])

    head._client = SimpleNamespace(list_jobs=lambda: list(jobs), submit_job=submit_job)
    return head, handed_in


def as_listed(job: dict[str, Any]) -> SimpleNamespace:
    status = SimpleNamespace(is_terminal=lambda: False)
    return SimpleNamespace(
        submission_id=job["submission_id"], metadata=job["metadata"], status=status
    )


DRIVER = Request(words=["run"], versions={}, drives=True)


def test_a_sweep_sent_again_finds_its_driver_and_one_that_grew_is_refused() -> None:
    asked: dict[str, Any] = {"sweep": "s", "store": "/s", "identity": "one"}
    grown = {"search.trials": 20, "verdict.margin": Decimal("0.1"), "retry.on": ("oom",)}
    head, handed_in = head_with()
    assert not head.drive(DRIVER, **asked, growing=grown)[1]
    head, later = head_with(as_listed(handed_in[0]))
    assert head.drive(DRIVER, **asked, growing=grown)[1]
    with pytest.raises(ConflictError, match=r"search\.trials \(20 there, 50 here\)\. Ask again"):
        head.drive(DRIVER, **asked, growing=grown | {"search.trials": 50})
    assert not later


def test_trials_are_not_redone_by_a_driver_that_has_begun(caplog: pytest.LogCaptureFixture) -> None:
    head, handed_in = head_with()
    head.drive(DRIVER, sweep="s", store="/s")
    head, later = head_with(as_listed(handed_in[0]))
    assert head.drive(DRIVER, sweep="s", store="/s")[1]
    with pytest.raises(ConflictError, match="redoes nothing of what failed"):
        head.drive(DRIVER, sweep="s", store="/s", redoes=True)
    # That one goes on with what is stored, which is not known here.
    assert head.drive(DRIVER, sweep="s", store="/s", growing={"search.trials": 50})[1]
    assert "does not count before it has ended" in caplog.text
    assert not later


def test_what_no_shell_would_take_is_refused_before_it_is_sent() -> None:
    head, handed_in = head_with()
    texts = [f"{hashlib.sha256(bytes([n % 256, n // 256])).hexdigest()}\n" for n in range(5000)]
    long = replace(DRIVER, spec="".join(texts))
    with pytest.raises(SpecError, match=r"the sweep takes \d+ KiB in the command of a job"):
        head.drive(long, sweep="s", store="/s")
    with pytest.raises(SpecError, match="the command line takes"):
        head.ask(replace(long, spec=None, words=texts))
    assert not handed_in
