"""One Ray over the nodes of one Slurm allocation; nothing of it outlives the training.

    with RayCluster(nodes=2, gpus=8, cpus=32, scratch=scratch, log=log) as ray:
        subprocess.run(command, env={**os.environ, "RAY_ADDRESS": ray.address})

The first node is the one that this process runs on: it holds Ray's head, the desktops and verl's entry point.
On the others a job step (``srun --overlap``) starts one Ray node each, below a supervisor (``base``) that
ends its whole tree when this process is gone: the step's standard input then ends. So success, failure,
``scancel``, a time limit and SIGKILL all end alike.

The module is also what runs on each node: ``python -m arpo_replica.training.process.ray_cluster OPTIONS``.
"""

import argparse
import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from arpo_replica.base.environments import die_with_parent
from arpo_replica.base.errors import UserError
from arpo_replica.base.processes import free_port
from arpo_replica.base.slurm import Ask, ask
from arpo_replica.base.supervisor import guarded

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 300.0
"""Ray's first import from a shared file system may take minutes."""
GRACE_S = 10.0
KEPT = ("SLURM_CONF", "SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_JOBID")
OTHER_MAKERS = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "GPU_DEVICE_ORDINAL")
"""Variables by which Slurm names a job's GPUs beside CUDA's. verl refuses more than one of them."""
MODULE = "arpo_replica.training.process.ray_cluster"


def allocated_nodes(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Names of the nodes of this process's Slurm job, its own first. Raises ``UserError`` outside of one."""
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        raise UserError(
            "training.nodes is above 1, which needs a Slurm job: run 'snakemake --profile slurm', or set "
            "training.nodes to 1."
        )
    # Not SLURM_JOB_NODELIST: the executor's job step drops it.
    listed = ask("squeue", "--noheader", "--jobs", job, "--format", "%N").split()[0]
    names = ask("scontrol", "show", "hostnames", listed).split()
    own = environment.get("SLURMD_NODENAME", names[0])
    return [own, *(name for name in names if name != own)]


def own_address(node: str, asking: Ask = ask) -> str:
    """The address of ``node``, on which this process runs, as other nodes see it.

    Ray looks for the way out to the internet. Where there is none, and the host's name stands for loopback,
    Slurm knows it.
    """
    import ray

    found = str(ray.util.get_node_ip_address())
    if not ip_address(found).is_loopback:
        return found
    with contextlib.suppress(UserError, OSError):
        words = asking("scontrol", "show", "node", node, "--oneliner").split()
        named = (word.partition("=")[2] for word in words if word.startswith("NodeAddr="))
        return socket.gethostbyname(next(named, node))
    return found


class RayCluster:
    """Ray on all nodes of the job, as a context manager."""

    def __init__(self, *, nodes: int, gpus: int, cpus: int, scratch: Path, log: Path) -> None:
        """``gpus``, ``cpus``: Ray's numbers for each node. ``scratch``: short path, the same on every node.

        ``log``: file for what Ray's nodes say. Raises ``UserError`` if the job has another number of nodes.
        """
        self.names = allocated_nodes()
        if len(self.names) != nodes:
            raise UserError(
                f"training.nodes is {nodes}, but the Slurm job has {len(self.names)} "
                f"({', '.join(self.names)}); submit it with 'snakemake --profile slurm'."
            )
        self.gpus, self.cpus, self.scratch, self.log = gpus, cpus, scratch, log
        self.host = own_address(self.names[0])
        self.port = free_port("")
        self._running: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def __enter__(self) -> Self:
        try:
            self._start(self._guarded("--head"))
            others = self.names[1:]
            if others:
                number = str(len(others))
                step = [
                    *("srun", "--overlap", "--jobid", os.environ["SLURM_JOB_ID"], "--input=all"),
                    *("--unbuffered", "--nodes", number, "--ntasks", number, "--ntasks-per-node=1"),
                    *("--nodelist", ",".join(others), "--kill-on-bad-exit=1", "--cpu-bind=none"),
                ]
                self._start([*step, *self._guarded()])
            self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End Ray everywhere; returns when every node's tree is gone."""
        for process in self._running:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # the guards notice
        deadline = time.monotonic() + GRACE_S + 20
        for process in self._running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.terminate()  # srun passes it on to its step
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_S)
                process.kill()
                process.wait()
        self._running.clear()

    def _guarded(self, *options: str) -> list[str]:
        command = [sys.executable, "-m", MODULE, "--address", self.address, "--scratch", str(self.scratch)]
        return guarded([*command, "--gpus", str(self.gpus), "--cpus", str(self.cpus), *options], GRACE_S)

    def _start(self, command: list[str]) -> None:
        # What this step was given (tasks, processors, bindings) srun would take for what the next one wants.
        variables = {
            name: value
            for name, value in os.environ.items()
            if name in KEPT or command[0] != "srun" or not name.startswith(("SLURM_", "SRUN_"))
        }
        with self.log.open("ab") as log:
            self._running.append(
                subprocess.Popen(
                    command,
                    env=variables,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    preexec_fn=die_with_parent,  # noqa: PLW1509  # one prctl call, no lock, no allocation
                )
            )

    def _wait(self) -> None:
        """Until all nodes are there. Raises RuntimeError with the log's end if one ended or none came."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while (alive := alive_nodes(self.address)) < len(self.names):
            ended = [process.returncode for process in self._running if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
                why = f"a part ended with status {ended[0]}" if ended else f"after {START_TIMEOUT_S:g} s"
                raise RuntimeError(
                    f"Ray has {alive} of {len(self.names)} nodes ({', '.join(self.names)}): {why}; the end "
                    f"of {self.log}:\n{tail}"
                )
            time.sleep(0.5)


def alive_nodes(address: str) -> int:
    """Number of nodes that Ray's head knows and believes alive; 0 while there is no head."""
    from ray._raylet import GcsClient

    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        socket.create_connection((host, int(port)), timeout=2).close()
        try:
            nodes = GcsClient(address=address).get_all_node_info(timeout=5)
        except Exception as error:  # whatever Ray's library raises while the head starts: ask again
            logger.info(f"Ray's head at {address} does not answer yet: {error}")
            return 0
        return sum(node.state == 0 for node in nodes.values())
    return 0


def node_command(options: argparse.Namespace, port: int) -> list[str]:
    """``ray start`` on one node. ``port``: a free one for its agent; the default would clash with others."""
    host, _, head_port = options.address.rpartition(":")
    place = (
        ["--head", "--node-ip-address", host, "--port", head_port, "--temp-dir", options.scratch]
        if options.head
        else ["--address", options.address]
    )
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
        *place,
        *("--num-gpus", str(options.gpus), "--num-cpus", str(options.cpus)),
        *("--dashboard-agent-listen-port", str(port), "--min-worker-port", "0", "--max-worker-port", "0"),
        *(["--include-dashboard", "false"] if options.head else []),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog=MODULE)
    parser.add_argument("--address", required=True)
    parser.add_argument("--scratch", required=True)
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--cpus", type=int, required=True)
    parser.add_argument("--head", action="store_true")
    options = parser.parse_args()
    # On other nodes nobody has made these folders; every process of a training writes there.
    (Path(options.scratch) / "stacks").mkdir(parents=True, exist_ok=True)
    for name in OTHER_MAKERS:  # srun sets them anew
        os.environ.pop(name, None)
    command = node_command(options, free_port(""))
    os.execv(command[0], command)  # noqa: S606  # a list, no shell


if __name__ == "__main__":
    main()
