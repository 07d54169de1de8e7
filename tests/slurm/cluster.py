"""A private Slurm cluster of virtual nodes on this machine, for tests.

Real daemons (munged, slurmctld, one slurmd per node), no systemd, no control groups, no GPU: the nodes claim
more than the machine has, and a job gets a correct ``CUDA_VISIBLE_DEVICES`` with no device behind it. One CPU
node or more (partition ``cpu``, the default) and two nodes with four GPUs each (partition ``gpu``).

Needs root and Debian's munge, slurmctld, slurmd, slurm-client. Writes nothing outside its folder, so that
several clusters, and a machine's own Slurm, do not see each other. The executor's job step drops
``SLURM_CONF`` before it calls ``srun``: ``FOLDER/bin``, first in ``PATH``, holds Slurm's clients with that
variable. All daemons listen on loopback only.

By hand (``start`` prints what clients need; ``lose`` pulls a node's plug, ``heal`` ends that):

    python tests/slurm/cluster.py start|stop FOLDER
    python tests/slurm/cluster.py lose|heal FOLDER NODE
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # when it is started by hand

from slurm.accounting import Accounting
from slurm.daemons import HOST, run_daemon, wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo")
CLIENTS = (
    "sacct",
    "sacctmgr",
    "salloc",
    "sbatch",
    "scancel",
    "scontrol",
    "sinfo",
    "squeue",
    "srun",
    "sshare",
)
NAME = "test"
GPU_MODEL = "h200"
GPUS = 4
CPUS = 16
MEMORY_MB = 131072
MARK = "ARPO_TEST_CLUSTER"
"""Environment variable of every daemon; names the folder of its cluster."""
PACKAGES = "munge slurmctld slurmd slurm-client"


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    if absent:
        return f"{', '.join(absent)} not found (Debian: {PACKAGES})"
    if os.geteuid() != 0:
        return "a cluster of virtual nodes needs root"
    return None


def search_path() -> str:
    """PATH with the folders of daemons, without the clients of a cluster like this one."""
    entries = os.environ.get("PATH", "").split(":")
    plain = [entry for entry in entries if not Path(entry, "..", "etc", "munge.key").exists()]
    return ":".join([*plain, "/usr/sbin", "/sbin"])


def free_ports(count: int) -> list[int]:
    """Ports that are free now; all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for entry in sockets:
            entry.bind(("127.0.0.1", 0))
        return [entry.getsockname()[1] for entry in sockets]
    finally:
        for entry in sockets:
            entry.close()


class Cluster:
    """The cluster in ``root`` (short: UNIX sockets lie below it)."""

    def __init__(
        self, root: Path, gpu_nodes: int = 2, *, cpu_nodes: int = 1, accounting: bool = False
    ) -> None:
        """``accounting``: with slurmdbd, so that ``sacct`` works."""
        self.root = root
        self.nodes = [
            f"{kind}{number + 1}"
            for kind, n in (("cpu", cpu_nodes), ("gpu", gpu_nodes))
            for number in range(n)
        ]
        self.conf = root / "etc" / "slurm.conf"
        self.environment = {
            **os.environ,
            "PATH": f"{root}/bin:{search_path()}",
            "SLURM_CONF": str(self.conf),
            MARK: str(root),
        }
        self.ports: dict[str, int] = {}
        self.accounting = Accounting(root, self.environment, NAME) if accounting else None

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all daemons and wait until every node is idle."""
        for name in (
            "bin",
            "etc",
            "run",
            "log",
            "dev",
            "spool/ctld",
            *(f"spool/slurmd-{node}" for node in self.nodes),
        ):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o755)  # munge refuses sockets below folders that others can write to
        key = self.root / "etc" / "munge.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(os.urandom(128))
        self._configure()
        self._wrap_clients()
        self._start_munge()
        if self.accounting is not None:
            self.accounting.start()
        self._run("slurmctld", "-i")
        wait_until(self.answers, 30, f"slurmctld answers (see {self.root}/log)")
        for node in self.nodes:
            self.start_node(node)
        wait_until(lambda: self.idle() == set(self.nodes), 60, f"all nodes idle (see {self.root}/log)")

    def stop(self) -> None:
        """Cancel all jobs, end the daemons by their pids."""
        if self.pid("slurmctld"):
            for job in self.jobs():
                self.command("scancel", job, check=False)
            try:
                wait_until(lambda: not self.jobs(), 30, "an empty queue")
            except RuntimeError as error:
                print(error, file=sys.stderr)
        for node in self.nodes:
            self._end(f"slurmd-{node}")
        for daemon in ("slurmctld", "slurmdbd", "mariadbd", "munged"):
            self._end(daemon)

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        self._run("slurmd", "-N", node)

    def lose_node(self, node: str) -> None:
        """Pull the plug: the node's daemon and all its processes die, and the controller is told."""
        pid = self.pid(f"slurmd-{node}")
        assert pid is not None
        for victim in [pid, *self._steps_of(node)]:
            kill_tree(victim)
        self.command("scontrol", "update", f"nodename={node}", "state=down", "reason=plug")

    def heal_node(self, node: str) -> None:
        """The node is back."""
        self.start_node(node)
        # Refused where the node's own report was faster.
        self.command("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        shown = ("sinfo", "-h", "-n", node, "-o", "%T")
        wait_until(lambda: "down" not in self.command(*shown), 30, f"{node} is back")

    def stop_controller(self) -> None:
        """End slurmctld: Slurm is down."""
        self._end("slurmctld")

    def start_controller(self) -> None:
        """Start slurmctld again, with its state."""
        self._run("slurmctld")
        wait_until(self.answers, 30, "slurmctld answers")

    # --- questions -------------------------------------------------------------------------------

    def command(self, *arguments: str, check: bool = True) -> str:
        """Output of one of Slurm's commands."""
        done = subprocess.run(
            arguments, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def answers(self) -> bool:
        """True if the controller is up."""
        return "is UP" in self.command("scontrol", "ping", check=False)

    def idle(self) -> set[str]:
        """Names of the idle nodes."""
        return set(self.command("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", check=False).split())

    def jobs(self) -> list[str]:
        """Numbers of all jobs that wait or run."""
        return sorted(set(self.command("squeue", "-h", "-o", "%A", check=False).split()), key=int)

    def show(self, job: str) -> dict[str, str]:
        """``scontrol show job`` as a mapping."""
        words = self.command("scontrol", "show", "job", job, "-o").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def pid(self, daemon: str) -> int | None:
        """Process id of a daemon of ours that lives."""
        path = self.root / "run" / f"{daemon}.pid"
        try:
            pid = int(path.read_text())
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if f"{MARK}={self.root}".encode() in environment else None

    # --- parts -----------------------------------------------------------------------------------

    def _run(self, *arguments: str) -> None:
        run_daemon(arguments, self.environment)

    def _start_munge(self) -> None:
        run = self.root / "run"
        options = {
            "key-file": self.root / "etc" / "munge.key",
            "socket": run / "munge.socket",
            "pid-file": run / "munged.pid",
            "log-file": self.root / "log" / "munged.log",
            "seed-file": run / "munged.seed",
        }
        self._run("munged", "--force", *(f"--{key}={value}" for key, value in options.items()))

    def _end(self, daemon: str) -> None:
        pid = self.pid(daemon)
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        try:
            wait_until(lambda: self.pid(daemon) is None, 20, f"{daemon} ends")
        except RuntimeError:
            os.kill(pid, signal.SIGKILL)

    def _steps_of(self, node: str) -> list[int]:
        """Process ids of the daemons of a node's steps, known by their sockets in its spool folder.

        Neither their names nor their arguments say which node, of which cluster on this machine, they serve.
        """
        spool = str(self.root / "spool" / f"slurmd-{node}") + "/"
        lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
        sockets = {f"socket:[{line[6]}]" for line in lines if line[-1].startswith(spool)}
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    stepd = "slurmstepd" in (entry / "comm").read_text()
                    files = {str(path.readlink()) for path in (entry / "fd").iterdir()} if stepd else set()
                except OSError:
                    continue
                if sockets & files:
                    found.append(int(entry.name))
        return found

    def _wrap_clients(self) -> None:
        for name in CLIENTS:
            program = shutil.which(name, path=search_path())
            if program is not None:
                path = self.root / "bin" / name
                path.write_text(f'#!/bin/sh\nexport SLURM_CONF={self.conf}\nexec {program} "$@"\n')
                path.chmod(0o755)

    def _configure(self) -> None:
        names = ["slurmctld", "slurmdbd", *self.nodes]
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        for number in range(GPUS):
            device = self.root / "dev" / f"gpu{number}"
            if not device.exists():
                # Character devices: with plain files Slurm counts the GPUs but sets no CUDA_VISIBLE_DEVICES.
                os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        claims = f"CPUs={CPUS} RealMemory={MEMORY_MB} NodeHostname={HOST} NodeAddr=127.0.0.1"
        lines = [
            f"ClusterName={NAME}",
            f"SlurmctldHost={HOST}(127.0.0.1)",
            f"SlurmctldPort={self.ports['slurmctld']}",
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            f"AuthInfo=socket={self.root}/run/munge.socket",
            "CredType=cred/munge",
            f"SlurmctldPidFile={self.root}/run/slurmctld.pid",
            f"SlurmdPidFile={self.root}/run/slurmd-%n.pid",
            f"SlurmctldLogFile={self.root}/log/slurmctld.log",
            f"SlurmdLogFile={self.root}/log/slurmd-%n.log",
            f"StateSaveLocation={self.root}/spool/ctld",
            f"SlurmdSpoolDir={self.root}/spool/slurmd-%n",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "MpiDefault=none",
            "SwitchType=switch/none",
            "SlurmdParameters=config_overrides",  # believe the lines below, not what the machine has
            "ReturnToService=2",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU_Memory",
            "SchedulerParameters=sched_min_interval=100000,bf_interval=5",
            "GresTypes=gpu",
            "DefMemPerCPU=512",
            "MinJobAge=300",
            "KillWait=5",
            "CompleteWait=0",
            "SlurmctldTimeout=60",
            "SlurmdTimeout=60",
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny",  # loopback only
        ]
        if self.accounting is not None:
            self.accounting.port = self.ports["slurmdbd"]
            lines += self.accounting.slurm_lines()
        else:
            lines += [
                "AccountingStorageType=accounting_storage/none",
                "JobAcctGatherType=jobacct_gather/none",
            ]
        for node in self.nodes:
            gres = f" Gres=gpu:{GPU_MODEL}:{GPUS}" if node.startswith("gpu") else ""
            lines.append(f"NodeName={node} Port={self.ports[node]} {claims}{gres}")
        cpu_nodes = ",".join(node for node in self.nodes if node.startswith("cpu"))
        lines.append(f"PartitionName=cpu Nodes={cpu_nodes} Default=YES MaxTime=60 State=UP")
        gpu_nodes = ",".join(node for node in self.nodes if node.startswith("gpu"))
        lines.append(f"PartitionName=gpu Nodes={gpu_nodes} MaxTime=60 State=UP")
        self.conf.write_text("\n".join(lines) + "\n")
        (self.root / "etc" / "gres.conf").write_text(
            "AutoDetect=off\n"
            f"NodeName={gpu_nodes} Name=gpu Type={GPU_MODEL} File={self.root}/dev/gpu[0-{GPUS - 1}]\n"
        )


def children_of(pid: int) -> list[int]:
    """Process ids of the children."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return found


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and everything below it."""
    try:
        os.kill(pid, signal.SIGSTOP)  # it must not start others meanwhile
    except ProcessLookupError:
        return
    for child in children_of(pid):
        kill_tree(child)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def main() -> None:
    """``start``, ``stop``, ``lose`` or ``heal``."""
    action, folder, *node = sys.argv[1:]
    cluster = Cluster(Path(folder).resolve())
    if action == "stop":
        cluster.stop()
    elif action == "lose":
        cluster.lose_node(*node)
    elif action == "heal":
        cluster.heal_node(*node)
    else:
        reason = missing()
        if reason is not None:
            sys.exit(reason)
        cluster.start()
        print(f"export SLURM_CONF={cluster.conf} PATH={cluster.root}/bin:$PATH")


if __name__ == "__main__":
    main()
