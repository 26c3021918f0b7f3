"""cluster/slurm, followed as written on a real Slurm of two nodes, of Debian's packages."""

import os
import re
import shutil
from collections.abc import Iterator

import pytest

from ressa.store import Store, open_store
from tests.cluster.nodes import BIN, ROOT, SHARED, Cluster, why_not
from tests.sweep.place import SMALL
from tests.sweep.waiting import wait_for

MISSING = [name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name) is None]

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"no {', '.join(MISSING)}: apt-get install slurmctld slurmd slurm-client munge",
    ),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

CONFIGURATION = """
ClusterName=test
SlurmctldHost=head({head})
SlurmUser=root
AuthInfo=socket={shared}/munge.socket
StateSaveLocation=/tmp/slurmctld
SlurmdSpoolDir=/tmp/slurmd
SlurmctldPidFile=/tmp/slurmctld.pid
SlurmdPidFile=/tmp/slurmd.pid
SlurmctldLogFile=/tmp/slurmctld.log
SlurmdLogFile=/tmp/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
NodeName=head NodeAddr={head} CPUs=1 RealMemory=4000
NodeName=one NodeAddr={one} CPUs=1 RealMemory=4000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A Slurm whose users work in the folder that its nodes share."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.shared = cluster.shared
        one = cluster.add("one")
        addresses = {"head": cluster.head.address, "one": one.address, "shared": SHARED}
        (self.shared / "slurm.conf").write_text(CONFIGURATION.format(**addresses))
        (self.shared / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.shared / "munge.key").write_bytes(os.urandom(128))
        (self.shared / "munge.key").chmod(0o600)
        for folder in (self.shared, cluster.folder):
            folder.chmod(0o755)  # munged wants no folder of its socket to be open to the group
        for node in cluster.nodes:
            node.switch_on()
            self.on(node.name, "mkdir /tmp/slurmctld /tmp/slurmd")
        files = ("key-file=munge.key", "socket=munge.socket", "pid-file=munge.pid")
        files += ("log-file=munge.log", "seed-file=munge.seed")
        options = [f"--{name}={SHARED}/{file}" for name, file in (f.split("=") for f in files)]
        self.on("head", f"munged --force {' '.join(options)} && slurmctld && slurmd -N head")
        self.on("one", "slurmd -N one")
        wait_for(lambda: "2 idle" in self.on("head", "sinfo -h -o '%D %t'"), 60)

    def on(self, name: str, command: str, *, code: int = 0) -> str:
        """What a command line says on a node."""
        node = next(node for node in self.cluster.nodes if node.name == name)
        variables = f"export SLURM_CONF={SHARED}/slurm.conf RESSA_VENV={BIN.parent} HOME={SHARED}"
        done = node.run("bash", "-c", f"{variables}; {command}", timeout=1500)
        assert done.returncode == code, f"{command}\n{done.stdout}{done.stderr}{self.said()}"
        return done.stdout

    def said(self) -> str:
        """What jobs wrote."""
        return "\n".join(file.read_text() for file in sorted(self.shared.glob("ressa-*.out")))

    def command(self, pattern: str) -> str:
        """A command line of the page, for the small sweep on nodes of one core."""
        page = (ROOT / "cluster/slurm/README.md").read_text()
        found = re.search(rf"^\$ ({pattern}.*)$", page, re.MULTILINE)
        assert found, pattern
        changed = found[1].replace("cluster/slurm", str(ROOT / "cluster/slurm"))
        changed = changed.replace("sweeps/quickstart.yaml", "small.yaml").replace("=16", "=2")
        changed = changed.replace(".venv/bin", str(BIN)).replace("quickstart", "small")
        return re.sub(r"--cpus-per-task=\d+", "--cpus-per-task=1", changed)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        slurm = Slurm(cluster)
        (slurm.shared / "small.yaml").write_text(SMALL)
        yield slurm


def left(slurm: Slurm) -> list[str]:
    """What a job should have taken away: tokens, and Ray's files and processes on its nodes."""
    tokens = [path.name for path in slurm.shared.glob(".ressa-slurm-*")]
    private = slurm.cluster.folder / "private"
    folders = [path.name for path in private.glob("*/ray-*")]
    running = [name for name in ("head", "one") if "raylet" in slurm.on(name, "ps -eo args")]
    return [*tokens, *folders, *running]


def test_a_sweep_told_that_its_time_is_over_stops_and_goes_on_in_the_next_job(slurm: Slurm) -> None:
    submitted = slurm.on("head", slurm.command("sbatch --nodes=2"))
    job = submitted.split()[-1]
    store = open_store(slurm.shared / "results", create=True)
    wait_for(lambda: _ended(slurm, job) or _finished(store) >= 1, 600)
    assert _ended(slurm, job) is None, slurm.said()

    token = next(slurm.shared.glob(".ressa-slurm-*/token"))
    assert token.stat().st_mode & 0o077 == 0
    assert token.parent.stat().st_mode & 0o077 == 0
    secret = token.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}", secret)
    for name in ("head", "one"):
        assert secret not in slurm.on(name, "ps -eo args")
        listening = slurm.on(name, "ss -Hltn")
        dashboards = re.findall(rf"(\S+):{20001 + 3 * int(job)} ", listening)
        assert dashboards == (["127.0.0.1"] if name == "head" else []), listening

    assert "small" in slurm.on("head", slurm.command(r"\.venv/bin/ressa status"))
    following = slurm.command("sbatch --dependency").replace("JOB", job)
    next_job = slurm.on("head", following.replace("sbatch", "sbatch --cpus-per-task=1", 1)).split()[
        -1
    ]
    slurm.on("head", f"scancel --signal=TERM --batch {job}")  # as Slurm does before the end
    shown = wait_for(lambda: _ended(slurm, job), 300)
    assert shown == "130:0", slurm.said()
    said = (slurm.shared / f"ressa-{job}.out").read_text()
    assert "Ray runs on 2 nodes" in said
    assert "ressa resume small" in said
    assert secret not in slurm.said()

    assert wait_for(lambda: _ended(slurm, next_job), 900) == "0:0", slurm.said()
    trials = store.sweep("small").trials()
    assert (trials["state"] == "succeeded").all()
    assert len(store.sweep("small").attempts()) >= len(trials) == 5
    assert left(slurm) == []


def _finished(store: Store) -> int:
    return len(store.sweep("small").trials()) if "small" in store.sweeps() else 0


def _ended(slurm: Slurm, job: str) -> str | None:
    """How a job ended, as Slurm shows it; None while it has not."""
    shown = slurm.on("head", f"scontrol show job --oneliner {job}")
    state = re.search(r"JobState=(\S+) .*ExitCode=(\S+)", shown)
    assert state, shown
    return None if state[1] in ("PENDING", "RUNNING", "COMPLETING") else state[2]


def test_a_job_whose_sweep_file_is_wrong_ends_at_once_with_exit_2(slurm: Slurm) -> None:
    (slurm.shared / "wrong.yaml").write_text(SMALL.replace("tpe", "tpee"))
    script = ROOT / "cluster/slurm/ressa.sbatch"
    slurm.on("head", f"sbatch --wait --cpus-per-task=1 {script} wrong.yaml", code=2)
    assert "Did you mean 'tpe'?" in slurm.said()
    assert left(slurm) == []
