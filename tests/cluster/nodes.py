"""Machines made of Linux namespaces, joined by a bridge, with a real Ray node on each.

A node has its own address, host name, process ids and /tmp; ending its first process ends all that
runs on it, as a power cut does. All see one folder, `/mnt`, and no name is resolved. A laptop sees
nothing of this network but the dashboard's port of the head, through a pipe. It needs root
(CAP_NET_ADMIN, CAP_SYS_ADMIN) and iproute2; nothing of the machine's own network is touched.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.sweep.waiting import wait_for

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SHARED = "/mnt"
DASHBOARD = 8265
LAPTOP = "http://127.0.0.1:8265"

_IN_TMP = [path.relative_to("/tmp") for path in {ROOT, BIN.parent} if path.is_relative_to("/tmp")]
"""What is run, if it lies where each node has a folder of its own."""

_NETWORK = "10.77.0"
OUTSIDE = f"{_NETWORK}.254"
"""An address that all nodes reach and that is none of theirs."""
_STARTS = 4  # Ray gives itself half a minute, which is too short on a machine that others keep busy
_UNSHARE = ("unshare", "--uts", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc")
_NSENTER = ("--net", "--uts", "--pid", "--mount", "--wdns=/mnt")
_MAIN = "from ressa.cli import main; main()"
_START = """
set -e
hostname {name}
mount --bind {shared} /mnt
{keep}
mount --rbind {private} /tmp
echo nameserver 127.0.0.1 > /tmp/resolv.conf
mount --bind /tmp/resolv.conf /etc/resolv.conf
cd /mnt
exec sleep infinity
"""
_QUICK = {
    # A dead node is noticed within seconds instead of half a minute.
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "5",
    # As in the Ray that `ressa run` starts: else everything else on this machine goes first.
    "RAY_worker_niceness": "0",
}


def why_not() -> str | None:
    """Says why this machine cannot make such nodes; None if it can."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return "needs the programs ip (iproute2) and unshare (util-linux)"
    tried = subprocess.run(
        [*_UNSHARE, "--net", "ip", "link", "add", "probe", "type", "bridge"],
        capture_output=True,
        text=True,
    )
    if tried.returncode:
        return f"needs CAP_NET_ADMIN and CAP_SYS_ADMIN to make namespaces: {tried.stderr.strip()}"
    return None


def within(space: str) -> list[str]:
    return ["ip", "netns", "exec", space]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass
class Node:
    """One machine of the network."""

    cluster: "Cluster"
    name: str
    number: int
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def space(self) -> str:
        """Name of its network namespace."""
        return f"{self.cluster.name}-{self.name}"

    @property
    def address(self) -> str:
        """Its address in the cluster's network."""
        return f"{_NETWORK}.{self.number}"

    def plug_in(self) -> None:
        """Makes its network namespace and connects it with the others."""
        _ip("netns", "add", self.space)
        _ip("-n", self.space, "link", "set", "lo", "up")
        switch = self.cluster.switch
        _ip("-n", switch, "link", "add", self.name, "type", "veth")  # its peer gets a name
        peer = _peer(switch, self.name)
        _ip("-n", switch, "link", "set", peer, "netns", self.space, "name", "eth0")
        _ip("-n", switch, "link", "set", self.name, "master", "bridge", "up")
        _ip("-n", self.space, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self.space, "link", "set", "eth0", "up")

    def switch_on(self) -> None:
        """Starts the machine: its first process."""
        private = self.cluster.folder / "private" / self.name
        private.mkdir(parents=True, exist_ok=True)
        keep = "\n".join(
            f"mkdir -p {private / kept} && mount --bind /tmp/{kept} {private / kept}"
            for kept in _IN_TMP
        )
        shared = self.cluster.shared
        script = _START.format(name=self.name, shared=shared, private=private, keep=keep)
        self.process = subprocess.Popen(
            [*within(self.space), *_UNSHARE, "bash", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(lambda: self.first() and (private / "resolv.conf").exists())

    def start_ray(self, cpus: int = 1) -> None:
        """Starts its Ray, on a machine that may be on already: the head's if it is the first."""
        if self.process is None:
            self.switch_on()
        head = self.cluster.head
        role = (
            ["--head", "--port=6379", f"--dashboard-host={self.address}"]
            if self is head
            else [f"--address={head.address}:6379"]
        )
        command = (
            str(BIN / "ray"),
            "start",
            "--disable-usage-stats",
            f"--node-ip-address={self.address}",
            f"--num-cpus={cpus}",
            "--num-gpus=0",
            "--object-store-memory=100000000",
            *role,
        )
        for _ in range(_STARTS):
            done = self.run(*command)
            if not done.returncode:
                return
            self.stop_ray()
        raise AssertionError(f"{done.stdout}{done.stderr}")

    def run(self, *command: str, timeout: float = 600) -> "subprocess.CompletedProcess[str]":
        """Runs a command on this machine."""
        return subprocess.run(
            self._inside(command),
            env=self.cluster.variables(SHARED),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def stop_ray(self) -> None:
        """Ends its Ray; the machine stays on."""
        self.run(str(BIN / "ray"), "stop", "--force")

    def cut_off(self) -> None:
        """Unplugs it from the network: nothing that it sends arrives, nobody is told."""
        _ip("-n", self.cluster.switch, "link", "set", self.name, "down")

    def reconnect(self) -> None:
        """Plugs it in again."""
        _ip("-n", self.cluster.switch, "link", "set", self.name, "up")

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Starts `ressa` on this machine."""
        return subprocess.Popen(
            self._inside([sys.executable, "-c", _MAIN, *arguments]),
            env=self.cluster.variables(SHARED),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def _inside(self, command: Sequence[str]) -> list[str]:
        first = self.first()
        assert first is not None, f"{self.name} is switched off"
        return ["nsenter", "-t", str(first), *_NSENTER, *command]

    def works(self, name: str) -> list[int]:
        """Finds its processes with a name in which this one is, such as ray::Worker."""
        return [pid for pid, words in self.processes().items() if name in words[0]]

    def processes(self) -> dict[int, list[str]]:
        """Lists its processes: id, as this machine counts them → command line."""
        own, found = os.readlink(f"/proc/{self.first()}/ns/pid"), {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/ns/pid") == own:
                    found[int(pid)] = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        return found

    def kill(self) -> None:
        """Ends everything that runs on it, at once."""
        if self.process is None:
            return
        for pid in (self.first(), self.process.pid):
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def first(self) -> int | None:
        """Its first process: the child of `unshare`."""
        assert self.process is not None
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else None


def _peer(space: str, name: str) -> str:
    shown = subprocess.run(
        ["ip", "-n", space, "-o", "link", "show", name], check=True, capture_output=True, text=True
    )
    return shown.stdout.split("@")[1].split(":")[0]


@dataclass
class Cluster:
    """A head and other nodes, and a laptop that sees the head's dashboard alone."""

    folder: Path
    nodes: list[Node] = field(default_factory=list)
    name: str = ""
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    own: dict[str, str] = field(default_factory=dict)
    """Variables of all nodes, and of the laptop."""

    def __post_init__(self) -> None:
        self.name = self.name or f"ressa{os.getpid()}"
        self.shared.mkdir(parents=True)
        (self.shared / "token").write_text(self.token)
        (self.shared / "token").chmod(0o600)

    @property
    def shared(self) -> Path:
        """The folder that all nodes see as /mnt."""
        return self.folder / "shared"

    @property
    def switch(self) -> str:
        """The namespace that holds the bridge."""
        return f"{self.name}-switch"

    @property
    def head(self) -> Node:
        """The first node."""
        return self.nodes[0]

    @property
    def _pipe(self) -> Path:
        return self.folder / "pipe"

    def variables(self, shared: str) -> dict[str, str]:
        """The environment of processes that see the shared folder at a path."""
        return {
            "PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": os.environ.get("HOME", "/root"),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": f"{shared}/token",
            **_QUICK,
            **self.own,
        }

    def __enter__(self) -> Self:
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "bridge", "up")
        _ip("-n", self.switch, "addr", "add", f"{OUTSIDE}/24", "dev", "bridge")
        _ip("netns", "add", self._laptop)
        _ip("-n", self._laptop, "link", "set", "lo", "up")
        self.add("head")
        command = [sys.executable, str(Path(__file__).with_name("pipe.py")), str(self._pipe)]
        self._pipes = [
            subprocess.Popen([*within(space), *command, *end])
            for space, end in (
                (self.head.space, ["to", self.head.address, str(DASHBOARD)]),
                (self._laptop, ["from", "127.0.0.1", str(DASHBOARD)]),
            )
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()
        for pipe in self._pipes:
            pipe.kill()
            pipe.wait()
        for space in (self._laptop, *(node.space for node in self.nodes), self.switch):
            subprocess.run(["ip", "netns", "del", space], check=False)

    @property
    def _laptop(self) -> str:
        return f"{self.name}-laptop"

    def start_all(self, *, cpus_of_head: int = 1) -> None:
        """Starts Ray on every machine, the head's first; the others have one core."""
        for node in self.nodes:
            node.start_ray(cpus_of_head if node is self.head else 1)
        self.wait_for_nodes(len(self.nodes))

    def add(self, name: str) -> Node:
        """Adds a machine to the network; nothing runs on it yet."""
        node = Node(self, name, 1 + len(self.nodes))
        node.plug_in()
        self.nodes.append(node)
        return node

    def start(self, *arguments: str, variables: Mapping[str, str] = {}) -> "subprocess.Popen[str]":
        """Starts `ressa` on the laptop."""
        return subprocess.Popen(
            [*within(self._laptop), sys.executable, "-c", _MAIN, *arguments],
            cwd=self.folder,
            env={
                **self.variables(str(self.shared)),
                "RESSA_ADDRESS": LAPTOP,
                "COLUMNS": "200",
                **variables,
            },
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def ressa(
        self, *arguments: str, variables: Mapping[str, str] = {}, timeout: float = 900
    ) -> "subprocess.CompletedProcess[str]":
        """Runs `ressa` on the laptop."""
        process = self.start(*arguments, variables=variables)
        stdout, stderr = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def wait_for_nodes(self, count: int, *, seconds: float = 900) -> None:
        """Returns when so many nodes are alive, by the dashboard's word."""
        wait_for(lambda: self.alive() == count, seconds)

    def alive(self) -> int:
        """How many nodes the head knows to be alive; 0 while it does not answer."""
        return self._count("nodes", "ALIVE")

    def groups(self) -> int:
        """How many placement groups have a place."""
        return self._count("placement_groups", "CREATED")

    def _count(self, what: str, state: str) -> int:
        command = [sys.executable, "-c", _COUNT, f"{LAPTOP}/api/v0/{what}", self.token, state]
        asked = subprocess.run([*within(self._laptop), *command], capture_output=True, text=True)
        return int(asked.stdout or 0)


_COUNT = """
import json, sys, urllib.request
asked = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + sys.argv[2]})
found = json.load(urllib.request.urlopen(asked, timeout=30))["data"]["result"]["result"]
print(sum(one["state"] == sys.argv[3] for one in found))
"""
