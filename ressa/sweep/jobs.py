"""A cluster as a laptop sees it: its dashboard's port, which takes Ray jobs and shows their logs.

A job of ours runs `python -m ressa.cli.answer` on the head and answers in frames: lines that carry
what it wrote to stdout and stderr, files, and how it ended. Whatever else lands in a job's log,
such as Ray's own words, is no frame and is passed over.
"""

import base64
import json
import logging
import re
import shlex
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

from ressa.errors import ClusterError, ConflictError, SpecError, first_line
from ressa.sweep.joined_ray import TOKEN, is_autoscaled, node_name, refused, use_token
from ressa.sweep.places import Place

MARK = "~ressa"
_ANSWER_SECONDS = 30.0
_CONNECT_SECONDS = 5.0
_LOST_SECONDS = 60.0
"""How long a head that stops answering is asked again, while a job is followed."""
_QUICK, _SLOW = 0.2, 3.0
"""Seconds between two looks at a job's log: at first, and when it has said nothing for long."""
_TRIES = 30
"""How often a driver's job is given a name that another client may take first."""
_BYTES_A_SECOND = 1 << 19
"""A long log is read less often: each look transfers all of it."""
_NOT_SENT = ["/*", "!/.", "!/ressa"]
"""Of a checkout: all but the package, since results, models and .git may be large."""
_LONGEST_COMMAND = 120 << 10
"""Bytes: a shell runs it as one argument, for which Linux has 128 KiB."""
_SWEEP, _STORE, _IDENTITY = "ressa_sweep", "ressa_store", "ressa_identity"
_GROWING, _REDOES = "ressa_growing", "ressa_redoes"

log = logging.getLogger(__name__)

FrameKind = Literal["out", "err", "file", "taken", "exit"]


@dataclass(frozen=True, slots=True)
class Frame:
    """One piece of an answer; `taken`: a driver holds its sweep and goes on alone."""

    kind: FrameKind
    content: bytes = b""
    name: str = ""
    """Of a file."""

    def line(self) -> str:
        """Returns it as one line of a log."""
        name = quote(self.name, safe="") or "-"  # it may have blanks, and a line has four parts
        return f"{MARK} {self.kind} {name} {base64.b64encode(self.content).decode()}\n"

    @classmethod
    def of(cls, line: str) -> "Frame | None":
        """Reads a line; None if it is no frame."""
        parts = line.split(" ")
        if len(parts) != 4 or parts[0] != MARK:
            return None
        try:
            content = base64.b64decode(parts[3], validate=True)
            return cls(parts[1], content, unquote(parts[2]))  # type: ignore[arg-type]
        except ValueError:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a job of ours is to do."""

    words: Sequence[str]
    """A command line, without the program's name."""
    versions: Mapping[str, str]
    """What the client has installed: must be equal on the cluster for a driver."""
    spec: str | None = None
    """A resolved sweep file, for `run`: its path is put after the verb."""
    drives: bool = False
    """Whether the job is a sweep's driver, which goes on without its client."""
    told_address: str | None = None
    """The address that the user typed, for command lines that he is told to go on with."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """About the client's terminal."""

    def encode(self) -> str:
        """Returns it as one word of a command line."""
        return base64.urlsafe_b64encode(zlib.compress(json.dumps(asdict(self)).encode())).decode()

    @classmethod
    def decode(cls, text: str) -> "Request":
        """Reads `encode`'s word."""
        return cls(**json.loads(zlib.decompress(base64.urlsafe_b64decode(text))))


class _Taken(Exception):
    """A job of that name is there already."""


class Head:
    """The head of a cluster, by the address of its dashboard.

    Raises:
        SpecError: that is no such address.
        ClusterError: nothing answers there, it is no Ray, or it refuses our token.
    """

    def __init__(self, address: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise SpecError(
                f"--address: the dashboard of a Ray's head, such as http://10.0.0.1:8265, got "
                f"{address!r}."
            )
        self.address = address.rstrip("/")
        use_token()
        import requests
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray").setLevel(logging.ERROR)
        with self._reached():
            headers = _headers()
            url = f"{self.address}/api/version"
            # Ray's own client would wait for minutes.
            asked = requests.get(url, headers=headers, timeout=(_CONNECT_SECONDS, _ANSWER_SECONDS))
            if asked.status_code in (401, 403):
                raise refused(self.address)
            asked.raise_for_status()
            self._client = JobSubmissionClient(self.address)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        from ray.exceptions import AuthenticationError
        from requests import exceptions

        try:
            yield
        except AuthenticationError as error:
            raise refused(self.address) from error
        except (exceptions.RequestException, ConnectionError) as error:
            raise ClusterError(
                f"no Ray answers at {self.address} ({_why(error)}). It is the dashboard's port of "
                "the head, 8265 unless its --dashboard-port says otherwise; on the head, "
                "--dashboard-host must be an address that this machine reaches."
            ) from error

    def places(self) -> tuple[list[Place], bool]:
        """Lists the nodes that are there, and whether an autoscaler may add others."""
        from ray.util.state import list_nodes

        with self._reached():
            nodes: list[Any] = list_nodes(address=self.address, detail=True, limit=10_000)
            report = self._client._do_request("GET", "/api/cluster_status").json()
        alive = [node for node in nodes if node["state"] == "ALIVE"]
        labels = [node.get("labels") or {} for node in alive]
        found = [
            Place(name=node_name(node["node_ip"], own), has=node["resources_total"])
            for node, own in zip(alive, labels, strict=True)
        ]
        status = report.get("data", {}).get("clusterStatus")
        return found, is_autoscaled(status, labels)

    def ask(self, request: Request) -> str:
        """Starts a short job; returns its id."""
        return self._submit(entrypoint=_entrypoint(request))

    def drive(
        self,
        request: Request,
        *,
        sweep: str,
        store: str,
        identity: str | None = None,
        growing: Mapping[str, Any] | None = None,
        redoes: bool = False,
        code: Path | None = None,
    ) -> tuple[str, bool]:
        """Starts a sweep's driver, unless there is one that does the same.

        Args:
            request: what it is to do.
            sweep: the sweep's name.
            store: where its rows are.
            identity: of its spec; nothing is started beside another one of that name. None: any.
            growing: the spec's fields in which a stored sweep may grow, and their values. None:
                those that are stored.
            redoes: whether trials that failed are redone, which only a new driver does.
            code: a checkout whose ressa is sent and run; None runs what the cluster has installed.

        Returns:
            The job's id, and whether it was there already.

        Raises:
            ConflictError: a driver works on another spec of that name, or does not do all of this.
            SpecError: the request is too long.
        """
        metadata = {_SWEEP: sweep, _STORE: store, _IDENTITY: identity or ""}
        metadata |= {_GROWING: json.dumps(growing, default=str), _REDOES: json.dumps(redoes)}
        command = _entrypoint(request)
        environment = {} if code is None else {"working_dir": str(code), "excludes": _NOT_SENT}
        stem = f"ressa-{sweep}-{zlib.crc32(store.encode()):08x}-"
        for _ in range(_TRIES):
            with self._reached():
                jobs = self._client.list_jobs()
                live = [
                    job
                    for job in jobs
                    if _is_of(job, sweep, store) and not job.status.is_terminal()
                ]
                if live:
                    _check_same(live[0], sweep, identity)
                    _check_does_all(live[0], sweep, metadata)
                    return str(live[0].submission_id), True
                name = next_name(stem, [str(job.submission_id) for job in jobs])
            try:
                job = self._submit(
                    entrypoint=command,
                    submission_id=name,
                    metadata=metadata,
                    runtime_env=environment,
                )
            except _Taken:  # another client was quicker, and its job will be listed
                time.sleep(_QUICK)
                continue
            return job, False
        raise ClusterError(f"{self.address} says that the job {name} exists, and does not list it.")

    def _submit(self, **job: Any) -> str:
        """Hands in a job; returns its id."""
        with self._reached():
            try:
                return str(self._client.submit_job(**job))
            except RuntimeError as error:
                if "already exists" in str(error):
                    raise _Taken from error
                raise ClusterError(f"{self.address} did not take the job: {_why(error)}") from error

    def frames(self, job: str) -> Iterator[Frame]:
        """Yields what a job of ours answers, as it comes, to its end.

        Raises:
            ClusterError: the job ended without saying how, or the head stopped answering.
        """
        read, pause, lost = 0, _QUICK, None
        while True:
            try:
                with self._reached():
                    ended = self._client.get_job_status(job).is_terminal()
                    text = self._client.get_job_logs(job)
            except (ClusterError, RuntimeError) as error:
                # A laptop that slept, a tunnel that is made again.
                lost = lost or time.monotonic()
                if time.monotonic() - lost > _LOST_SECONDS:
                    raise ClusterError(str(error)) from error
                time.sleep(_SLOW)
                continue
            lost = None
            whole = text if ended else text[: text.rfind("\n") + 1]
            for line in whole[read:].splitlines():
                frame = Frame.of(line)
                if frame is not None:
                    yield frame
                    if frame.kind == "exit":
                        return
            pause = _QUICK if len(whole) > read else min(_SLOW, pause * 1.3)
            read = len(whole)
            if ended:
                raise ClusterError(_without_an_answer(self._client.get_job_info(job), text))
            time.sleep(max(pause, len(text) / _BYTES_A_SECOND))

    def forget(self, job: str) -> None:
        """Removes a short job that has answered from the cluster's list, if that goes at once."""
        deadline = time.monotonic() + 2.0
        with _ignored():
            while not self._client.get_job_status(job).is_terminal():
                if time.monotonic() > deadline:
                    return
                time.sleep(0.1)
            self._client.delete_job(job)

    def end(self, job: str) -> None:
        """Ends a short job whose answer nobody waits for any more."""
        with _ignored():
            self._client.stop_job(job)


@contextmanager
def _ignored() -> Iterator[None]:
    from requests import exceptions

    try:
        yield
    except (RuntimeError, ConnectionError, exceptions.RequestException):
        return


def _headers() -> dict[str, str]:
    from ray._private.authentication.http_token_authentication import (
        get_auth_headers_if_auth_enabled,
    )
    from ray.exceptions import AuthenticationError

    try:
        return dict(get_auth_headers_if_auth_enabled({}))
    except (AuthenticationError, RuntimeError) as error:
        raise ClusterError(f"{_why(error).partition('. ')[0]}. {TOKEN}") from error


def next_name(stem: str, names: Iterable[str]) -> str:
    """Returns the name after the last of those that are a stem and a number; some may be gone."""
    numbers = [name.removeprefix(stem) for name in names if name.startswith(stem)]
    return f"{stem}{max((int(one) for one in numbers if one.isdecimal()), default=0) + 1}"


def _entrypoint(request: Request) -> str:
    """Returns the command of a job.

    Raises:
        SpecError: no machine could start it.
    """
    command = shlex.join(["python", "-m", "ressa.cli.answer", request.encode()])
    if len(command) > _LONGEST_COMMAND:
        what = "the sweep" if request.spec is not None else "the command line"
        raise SpecError(
            f"{what} takes {len(command) >> 10} KiB in the command of a job, which has at most "
            f"{_LONGEST_COMMAND >> 10} KiB. Shorten it, or call ressa on a node of the cluster, "
            "without the dashboard's address."
        )
    return command


def _is_of(job: Any, sweep: str, store: str) -> bool:
    metadata = job.metadata or {}
    return (metadata.get(_SWEEP), metadata.get(_STORE)) == (sweep, store)


def _check_same(job: Any, sweep: str, identity: str | None) -> None:
    theirs = job.metadata.get(_IDENTITY)
    if identity and theirs and theirs != identity:
        raise ConflictError(
            f"a driver works on another spec of the name {sweep!r} (job {job.submission_id}). Give "
            f"this one another name, or end that one first: ressa cancel {sweep}"
        )


def _check_does_all(job: Any, sweep: str, wanted: Mapping[str, str]) -> None:
    """Refuses what a driver that is at work does not hear: it read its spec when it began."""
    until = (
        f"Ask again when it has ended, or stop it first, ressa stop {sweep}; what finished is not "
        "run again."
    )
    if json.loads(wanted[_REDOES]):
        raise ConflictError(
            f"a driver works on {sweep!r} already (job {job.submission_id}), and redoes nothing of "
            f"what failed before it began. {until}"
        )
    ours = json.loads(wanted[_GROWING])
    theirs = json.loads(job.metadata.get(_GROWING) or "null")
    if ours is not None and theirs is None:
        log.warning(
            "job %s goes on with what is stored of %s; what the file asks for beyond that does not "
            "count before it has ended.",
            job.submission_id,
            sweep,
        )
        return
    differing = [
        f"{field} ({theirs.get(field)} there, {value} here)"
        for field, value in (ours or {}).items()
        if theirs.get(field) != value
    ]
    if differing:
        raise ConflictError(
            f"a driver works on {sweep!r} already (job {job.submission_id}), as it was sent then: "
            f"{', '.join(differing)}. {until}"
        )


def _without_an_answer(job: Any, log: str) -> str:
    """Says why a job ended without a word of ours."""
    if re.search(r"No module named '?ressa|python: not found", log):
        return (
            "the cluster's `python` has no ressa. Install this version on every node, in the "
            "environment that Ray was started from, or send this checkout: --ship-code."
        )
    said = [
        line
        for line in log.splitlines()
        if line.strip() and not line.startswith((MARK, "Running entrypoint")) and "INFO" not in line
    ]
    reason = next(iter((job.message or "").splitlines()), "")
    return "\n  ".join([f"job {job.submission_id} ended without an answer. {reason}", *said[-5:]])


def _why(error: BaseException) -> str:
    """The innermost reason of an error, in one line."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return first_line(error).rpartition("] ")[2].rstrip(".")
