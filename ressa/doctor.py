"""What `ressa doctor` looks at: whether this machine can run trials, and what to do where not.

Each library is imported in a process of its own, so that one which breaks says so and the rest are
still looked at. The preflight joins two processes, over NCCL with a GPU each where there are two
GPUs, else over gloo on the CPU, and has them sum numbers, as the workers of a trial do.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

PYTHONS = ((3, 11), (3, 12))
LIBRARIES = ("torch", "transformers", "deepspeed", "ray", "optuna", "pyarrow", "duckdb", "obstore")
_IF_THERE = ("torchvision",)  # of most processors; transformers imports it late
WORKERS = 2
PATIENCE_SECONDS = 300.0
_AT_ONCE = 4  # imports: more wait for the disk
_BUILD_SECONDS = 3600.0
_SHARED_BYTES = 256 << 20
_NUMBERS = 1 << 20  # summed by the preflight: 4 MiB, a bucket of gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    what: str
    ok: bool
    found: str
    advice: str
    """What to do; empty where nothing is wrong."""


def examine(
    libraries: tuple[str, ...] = LIBRARIES, *, told: Callable[[str], None] = lambda _: None
) -> Iterator[Finding]:
    """Looks at Python, each library, GPUs, memory and the exchange between workers, in turn.

    Args:
        libraries: those that are imported, a few at a time.
        told: hears what is being looked at that takes seconds.
    """
    libraries += tuple(name for name in _IF_THERE if find_spec(name) is not None)
    yield _python(sys.version_info[:2])
    told(f"importing {', '.join(libraries)}")
    broken = False
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        for name, finding in zip(libraries, pool.map(_library, libraries), strict=True):
            broken = broken or (name == "torch" and not finding.ok)
            yield finding
    if not gpus():
        yield Finding(what="cuda", ok=True, found="nvidia-smi lists no GPU", advice="")
    elif not broken:
        told("asking torch for its GPUs")
        yield _cuda()
    yield _builds()
    yield _shared_memory()
    if not broken:
        told(f"joining {WORKERS} processes, which sum numbers")
        yield _all_reduce()


def _python(version: tuple[int, int]) -> Finding:
    ok = version in PYTHONS
    return Finding(
        what="python",
        ok=ok,
        found=".".join(map(str, version)),
        advice="" if ok else "Make an environment with Python 3.11 or 3.12.",
    )


def _library(name: str) -> Finding:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        advice = "in a checkout of ressa: pip install '.[run]' -c constraints.txt"
        return Finding(what=name, ok=False, found="not installed", advice=advice)
    surroundings = {**os.environ}
    if name == "deepspeed":  # it would look for compilers and other hosts
        surroundings |= {"DS_ACCELERATOR": "cpu"} if not gpus() else {}
    said = _run([sys.executable, "-c", f"import {name}"], surroundings)
    if said is None:
        return Finding(what=name, ok=True, found=version, advice="")
    advice = f"Install it again: pip install --force-reinstall '{name}=={version}'"
    if name in _IF_THERE:
        advice = "Install the release that belongs to this torch, from where that came."
    return Finding(what=name, ok=False, found=f"{version} does not import: {said}", advice=advice)


def _cuda() -> Finding:
    """Whether torch sees the GPUs that the driver sees."""
    there = gpus()
    count = (
        "import sys, torch; seen = torch.cuda.device_count() if torch.cuda.is_available() else 0; "
        f"sys.exit(f'torch sees {{seen}}' if seen < {there} else 0)"
    )
    wrong = _run([sys.executable, "-c", count], {**os.environ})
    return Finding(
        what="cuda",
        ok=wrong is None,
        found=f"{there} GPUs, {wrong or 'torch sees all'}",
        advice=""
        if wrong is None
        else "Install the torch of this machine's CUDA: https://pytorch.org",
    )


def _builds() -> Finding:
    """Builds of DeepSpeed's operations that were killed: whoever builds next waits for ever.

    ressa itself has none built.
    """
    place = os.environ.get("TORCH_EXTENSIONS_DIR", "~/.cache/torch_extensions")
    locks = list(_old_locks(Path(os.path.expanduser(place)), time.time() - _BUILD_SECONDS))
    return Finding(
        what="deepspeed ops",
        ok=not locks,
        found=f"a build that was killed left {locks[0]}" if locks else "none is built, none needed",
        advice="" if not locks else f"Remove it, unless a build is under way: rm {locks[0]}",
    )


def _old_locks(folder: Path, before: float) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        path = Path(place, "lock")
        with contextlib.suppress(OSError):  # the build has just ended
            if path.name in names and path.stat().st_mtime < before:
                yield path


def _shared_memory() -> Finding:
    try:
        size = shutil.disk_usage("/dev/shm").total
    except OSError:
        return Finding(what="shared memory", ok=True, found="no /dev/shm here", advice="")
    ok = size >= _SHARED_BYTES
    return Finding(
        what="shared memory",
        ok=ok,
        found=f"/dev/shm has {size / 2**30:.1f} GiB",
        advice=""
        if ok
        else "Ray then keeps its objects on the disk and NCCL may fail. Start the container with "
        "--shm-size=2g, or mount an emptyDir of medium Memory.",
    )


def _all_reduce() -> Finding:
    backend = "nccl" if gpus() >= WORKERS else "gloo"
    with tempfile.TemporaryDirectory(prefix="ressa-doctor-") as folder:
        meeting = Path(folder) / "meeting"
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "ressa.doctor", str(rank), backend, str(meeting)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": _loopback()},
            )
            for rank in range(WORKERS)
        ]
        said = [_outcome(worker) for worker in workers]
    wrong = next((words for words in said if words is not None), None)
    return Finding(
        what="all-reduce",
        ok=wrong is None,
        found=f"{WORKERS} processes, {backend}" + ("" if wrong is None else f": {wrong}"),
        advice="" if wrong is None else _advice(backend),
    )


def _advice(backend: str) -> str:
    if backend == "nccl":
        return (
            "Trials with one GPU still run. NCCL_DEBUG=INFO ressa doctor says what NCCL misses; "
            "drivers and shared memory (/dev/shm) are the usual reasons."
        )
    return (
        "Trials with resources.workers: 1 still run. Processes must reach each other on loopback: "
        "look at firewalls and at limits on processes."
    )


def _loopback() -> str:
    return os.environ.get("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")


def gpus() -> int:
    """How many GPUs there are, without importing torch here."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _run(command: list[str], surroundings: dict[str, str]) -> str | None:
    """Runs a command; returns the last thing that it said if it failed, else None."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=surroundings
    )
    return _outcome(process)


def _outcome(process: "subprocess.Popen[str]") -> str | None:
    try:
        _, words = process.communicate(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"nothing for {PATIENCE_SECONDS:.0f} s"
    if process.returncode == 0:
        return None
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit {process.returncode}"


def _take_part(rank: int, backend: str, meeting: str) -> None:
    """One process of the preflight: sums ones with the others and counts them."""
    import torch
    from torch import distributed

    where = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    distributed.init_process_group(
        backend, init_method=f"file://{meeting}", rank=rank, world_size=WORKERS
    )
    ones = torch.ones(_NUMBERS, device=where)
    distributed.all_reduce(ones)
    if not bool((ones == WORKERS).all()):
        raise SystemExit(f"the sum over {WORKERS} processes is wrong")
    distributed.destroy_process_group()


if __name__ == "__main__":
    _take_part(int(sys.argv[1]), sys.argv[2], sys.argv[3])
