"""A Ray of our own on this machine: loopback only, token-authenticated, gone when we are gone."""

import contextlib
import logging
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ressa.errors import ClusterError, first_line
from ressa.sweep.reaper import SESSION_VARIABLE, clear, end_processes

_STARTS = 3  # on a machine that others keep busy
_TOKEN = secrets.token_hex(32)  # one a process: Ray reads it once

OF_TRIALS = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    # A call that breaks off fails once Ray knows whether its machine is gone, after a minute by its
    # defaults. At once, as Ray has it, the next attempt would be put onto that machine again.
    "RAY_timeout_ms_task_wait_for_death_info": "90000",
}
"""What the processes of trials are told by their environment."""

OF_DRIVERS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # The store is the only truth: Tune's own state is written as seldom as it lets us.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    **OF_TRIALS,
}
"""What a driver tells Ray by its environment, wherever that Ray runs."""

_ENVIRONMENT = {
    # Ray then binds every server to 127.0.0.1 instead of the machine's address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # In seconds: a machine that others keep busy takes longer than the 30 that Ray gives itself.
    "RAY_gcs_server_port_wait_time_s": "120",
    # Ray runs workers at niceness 15, where anything else on the machine starves them; a user who
    # wants that says `nice ressa run`.
    "RAY_worker_niceness": "0",
    **OF_DRIVERS,
}


def prepare() -> None:
    """Sets what Ray reads when it is imported; call it before anything imports Ray."""
    os.environ.update(_ENVIRONMENT)
    # Without a mode Ray turns token authentication on, even in a process that imported it before.
    os.environ.pop("RAY_AUTH_MODE", None)
    os.environ.setdefault("RAY_AUTH_TOKEN", _TOKEN)
    constants = sys.modules.get("ray._private.ray_constants")
    if constants is not None:  # imported already, by a notebook say: it asks this at every start
        constants.ENABLE_RAY_CLUSTER = False  # type: ignore[attr-defined]


def check_unused() -> None:
    """Refuses a process that uses a Ray already: it can have but one, which would end with ours.

    Raises:
        ClusterError: it does, a notebook say.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        raise ClusterError(
            "this process uses a Ray already, and a sweep needs one of its own, or joins one by "
            "itself. Call ray.shutdown() first, or run `ressa run` in another process."
        )


@contextlib.contextmanager
def environment_kept() -> Iterator[None]:
    """Puts the environment back as it was, after what `prepare` and a Ray set in it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A running Ray, as the driver sees it."""

    folder: Path
    """Where Tune keeps its files, and a Ray of our own too; it goes when the session does."""
    check: Callable[[], None] = lambda: None
    """Raises a `ClusterError` when Ray has ended, where that would be waited for in silence."""


def _check_ended() -> None:
    """Notices at once when a Ray of our own has ended.

    Raises:
        ClusterError: it has.
    """
    from ray._private import worker

    node: Any = worker._global_node
    ended = {name for name, _ in node.dead_processes()}
    for name in sorted(ended & {"raylet", "gcs_server"}):
        raise ClusterError(
            f"Ray's {name} on this machine has ended, killed or out of memory, and its trials "
            "with it. What they had finished is in the store: resume the sweep to go on."
        )


@contextlib.contextmanager
def _nothing_idle() -> Iterator[None]:
    """Keeps Ray from starting what a session of one driver on one machine has no use for.

    Three Python processes, about as many seconds of processor time at each start: what would add
    machines, what would relay logs to a driver that does not want them, and the dashboard's server.
    The agent that is left does without what only a dashboard asks for.
    """
    from ray._private import utils
    from ray._private.node import Node

    idle = ("start_monitor", "start_log_monitor", "start_api_server")
    methods = {name: getattr(Node, name) for name in idle}
    for name in idle:
        setattr(Node, name, lambda *_, **__: None)
    why_no_dashboard = utils.get_dashboard_dependency_error
    utils.get_dashboard_dependency_error = lambda: ImportError("not wanted")
    try:
        yield
    finally:
        utils.get_dashboard_dependency_error = why_no_dashboard
        for name, method in methods.items():
            setattr(Node, name, method)


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Lets the processes that start meanwhile keep temporary files where they go with the session.

    Torch makes folders for what it compiles, and a killed process leaves whatever it had.
    """
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["TMPDIR"]
        if before is not None:
            os.environ["TMPDIR"] = before


def _start(session: str, folder: Path, cpus: int) -> None:
    """Starts Ray; again where it found the half minute too short that it gives itself."""
    import ray

    for tries_left in range(_STARTS - 1, -1, -1):
        try:
            with _nothing_idle(), _temporary_files_in(folder):
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    configure_logging=False,
                    _temp_dir=str(folder),
                )
            return
        except Exception as error:
            if not tries_left or "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            end_processes(session)


@contextlib.contextmanager
def local_ray(*, cpus: int, threads: int = 1) -> Iterator[Session]:
    """Starts Ray for the length of a `with` block.

    A reaper process ends everything that is left when this process dies, even by SIGKILL.

    Raises:
        ClusterError: Ray did not start.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"ressa-{os.getpid()}-"))
    session = folder.name
    prepare()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    reaper = subprocess.Popen(
        [sys.executable, "-m", "ressa.sweep.reaper", str(os.getpid()), session, str(folder)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.environ[SESSION_VARIABLE] = session  # not the reaper's, which would end itself
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        try:
            _start(session, folder, cpus)
        except Exception as error:
            reason = first_line(error)
            raise ClusterError(
                f"Ray could not start on this machine: {reason} It keeps its files in {folder} and "
                "takes free ports on loopback. Check that the disk is not full and the path not "
                "long (TMPDIR=/tmp moves it), then run again."
            ) from error
        yield Session(folder=folder, check=_check_ended)
    finally:
        ray.shutdown()
        del os.environ[SESSION_VARIABLE]
        clear(session, folder)  # also what a Ray that was killed, or did not start, has left
        reaper.terminate()  # last: of a driver that is killed before, it does the rest
        reaper.wait()
