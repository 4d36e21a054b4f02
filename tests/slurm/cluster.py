"""A Slurm cluster of two nodes with accounting on this machine, in its own folder, while a test runs.

It needs root, Linux namespaces and Debian's slurm-wlm, slurmdbd, munge and mariadb-server. It changes nothing of the
system. Each slurmd has its own host name and /etc/hosts, because torchrun's rendezvous uses the name of the first node.
The nodes claim more cores than exist, so that requests of production size are accepted.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd", "mariadb-install-db", "unshare")
NODES = {"n1": "127.0.1.1", "n2": "127.0.1.2"}
KILL_WAIT = 30  # seconds between Slurm's TERM and its KILL
_CPUS, _MEMORY_MB = 16, 65536


def missing() -> str:
    """Why this machine cannot run a cluster, in words; "" if it can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [program for program in PROGRAMS if not shutil.which(program, path=path)]
    if absent:
        return f"needs Debian's slurm-wlm, slurmdbd, munge and mariadb-server: no {', '.join(absent)}"
    if os.geteuid():
        return "needs root to start slurmd"
    if subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True).returncode:
        return "needs UTS and mount namespaces, which this container forbids"
    return ""


class Cluster:
    """The running daemons; `environment` makes Slurm's commands talk to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> str:
        """The output of a command on the cluster."""
        finished = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout)
        if check and finished.returncode:
            raise RuntimeError(f"{' '.join(command)}: {finished.returncode}: {finished.stderr.strip()}")
        return finished.stdout

    def start_node(self, name: str) -> None:
        hosts = self.folder / "hosts"
        enter = f"mount --bind {hosts} /etc/hosts && hostname {name} && exec slurmd -D -N {name} -f $SLURM_CONF"
        self._launch(f"slurmd-{name}", "unshare", "--uts", "--mount", "sh", "-c", enter)

    def kill_node(self, name: str) -> None:
        """Kills a node's daemon and all its descendants, like a power cut."""
        daemon = self._daemons.pop(f"slurmd-{name}")
        namespace = os.readlink(f"/proc/{daemon.pid}/ns/uts")
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(process / "ns" / "uts") == namespace:
                    os.kill(int(process.name), signal.SIGKILL)
        daemon.wait()

    def start(self) -> None:
        for name in ("state", "database", "run", "munge"):
            (self.folder / name).mkdir(mode=0o700)
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o400)
        (self.folder / "hosts").write_text(
            "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in NODES.items())
        )
        controller, accounting, database, *nodes = _free_ports(5)
        self._write_configuration(controller, accounting, database, nodes)
        munge = self.folder / "munge"
        self._launch(
            "munged", "munged", "--foreground", "--force", f"--key-file={self.folder}/munge.key",
            f"--socket={munge}/socket", f"--pid-file={munge}/pid", f"--log-file={munge}/log",
            f"--seed-file={munge}/seed",
        )  # fmt: skip
        self._start_database(database)
        self._launch("slurmdbd", "slurmdbd", "-D")
        self.wait_for(lambda: [self.run("sacctmgr", "-n", "list", "cluster")], 60, "slurmdbd")
        for words in (["cluster", "ci"], ["account", "ci", "cluster=ci"], ["user", "root", "account=ci"]):
            self.run("sacctmgr", "-i", "add", *words)
        self._launch("slurmctld", "slurmctld", "-D")
        self.wait_for(lambda: self.run("scontrol", "ping"), 30, "slurmctld")
        for name in NODES:
            self.start_node(name)
        self.wait_for(self.is_idle, 60, "the nodes")

    def is_idle(self) -> bool:
        return self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T").split() == ["idle"] * len(NODES)

    def stop(self) -> None:
        """Cancels all jobs and ends the daemons that `start` started."""
        with contextlib.suppress(Exception):
            self.run("scancel", "--user=root")
            self.wait_for(lambda: not self.run("squeue", "-h"), 20, "the jobs' end")
        for name in reversed(list(self._daemons)):
            if name.startswith("slurmd-"):
                self.kill_node(name.removeprefix("slurmd-"))
                continue
            daemon = self._daemons.pop(name)
            daemon.terminate()
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def wait_for(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Waits until the condition is true; raises RuntimeError with the daemons' logs after `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                if condition():
                    return
            time.sleep(0.2)
        logs = "".join(f"\n--- {log}\n{log.read_text()[-1500:]}" for log in sorted(self.folder.glob("*.log")))
        raise RuntimeError(f"{what}: not there after {seconds:g} s{logs}")

    def _launch(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            # In a session of its own, so that an interrupt at the terminal reaches the tests only, which then stop the
            # cluster.
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        time.sleep(0.2)
        if self._daemons[name].poll() is not None:
            raise RuntimeError(f"{name} did not start: {(self.folder / f'{name}.log').read_text()[-1500:]}")

    def _start_database(self, port: int) -> None:
        data, sock = self.folder / "database", self.folder / "run" / "sql"
        self.run(
            "mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db",
            "--auth-root-authentication-method=normal", timeout=120,
        )  # fmt: skip
        self._launch(
            "mariadbd", "mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={sock}",
            "--bind-address=127.0.0.1", f"--port={port}", f"--pid-file={self.folder}/run/sql.pid",
            "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900",
        )  # fmt: skip
        setup = "create database slurm; create user slurm@localhost identified by 'slurm';" \
            "create user slurm@127.0.0.1 identified by 'slurm'; grant all on slurm.* to slurm@localhost;" \
            "grant all on slurm.* to slurm@127.0.0.1"  # fmt: skip
        client = ("mariadb", "--no-defaults", f"--socket={sock}", "-uroot", "-e")
        self.wait_for(lambda: self.run(*client, "select 1"), 60, "mariadbd")
        self.run(*client, setup)

    def _write_configuration(self, controller: int, accounting: int, database: int, nodes: list[int]) -> None:
        shared = f"AuthType=auth/munge\nAuthInfo=socket={self.folder}/munge/socket\nSlurmUser=root\n"
        lines = "".join(
            f"NodeName={name} NodeHostname={name} NodeAddr={address} Port={port} CPUs={_CPUS} RealMemory={_MEMORY_MB}\n"
            for (name, address), port in zip(NODES.items(), nodes, strict=True)
        )
        # TorchX submits heterogeneous jobs, which only the backfill scheduler starts. Jobs in "high" preempt those in
        # "main".
        (self.folder / "slurm.conf").write_text(
            f"""{shared}ClusterName=ci
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmdUser=root
SlurmctldPidFile={self.folder}/run/slurmctld.pid
SlurmdPidFile={self.folder}/run/slurmd-%n.pid
SlurmdSpoolDir={self.folder}/spool-%n
StateSaveLocation={self.folder}/state
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={accounting}
AccountingStoragePass={self.folder}/munge/socket
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait={KILL_WAIT}
MinJobAge=300
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=15
MailProg=/bin/true
SlurmdParameters=config_overrides
{lines}PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""
        )
        daemon = self.folder / "slurmdbd.conf"
        daemon.write_text(
            f"""{shared}DbdHost=localhost
DbdPort={accounting}
PidFile={self.folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""
        )
        daemon.chmod(0o600)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A cluster with all its files below `folder`, stopped at the end."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
