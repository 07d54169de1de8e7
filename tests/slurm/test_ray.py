"""Ray over two virtual nodes: it comes up on both, and nothing of it is left, however the job ends."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from arpo_replica.base.environments import ROOT, python_of
from arpo_replica.base.errors import UserError
from arpo_replica.training.process.ray_cluster import allocated_nodes
from slurm.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
PROGRAM = Path(__file__).with_name("ray_program.py")


class RayJob:
    """A job of two nodes with two GPUs each."""

    def __init__(self, cluster: Cluster, folder: Path, minutes: int = 10) -> None:
        self.cluster, self.folder, self.output, self.go = cluster, folder, folder / "out", folder / "go"
        self.scratch = folder / "s"
        command = f"srun -n1 -N1 {python_of('cpu')} {PROGRAM} {self.scratch} {self.go}"
        self.number = cluster.command(
            *("sbatch", "--parsable", "-p", "gpu", "-N2", "--gres=gpu:h200:2", "-t", str(minutes)),
            *("-o", str(self.output), "--wrap", f"cd {ROOT} && RAY_USAGE_STATS_ENABLED=0 {command}"),
        ).strip()
        deadline = time.monotonic() + 240
        while "ready" not in self.said():
            assert time.monotonic() < deadline and self.number in cluster.jobs(), self.said()
            time.sleep(0.1)

    def said(self) -> str:
        """Its output."""
        return self.output.read_text() if self.output.exists() else ""

    def left(self) -> list[str]:
        """Living processes that name its scratch folder."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            words = " ".join(process.info["cmdline"] or [])
            if str(self.scratch) in words and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(words[:120])
        return found

    def wait_until_gone(self, seconds: float = 120) -> None:
        """Until the job has ended and nothing is left of it."""
        deadline = time.monotonic() + seconds
        while self.number in self.cluster.jobs() or self.left():
            assert time.monotonic() < deadline, self.left()
            time.sleep(0.2)


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a short path: Ray's sockets lie below it."""
    path = Path(tempfile.mkdtemp(prefix="r-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    """For one job."""
    with short_folder() as path:
        yield path


@pytest.fixture(scope="module", autouse=True)
def limited(cluster: Cluster) -> Iterator[RayJob]:
    """A job whose time limit comes while the others are looked at; a limit is a minute at least."""
    with short_folder() as path:
        job = RayJob(cluster, path)
        cluster.command("scontrol", "update", f"jobid={job.number}", "timelimit=1")
        yield job


def test_both_nodes_work_and_nothing_is_left(cluster: Cluster, folder: Path) -> None:
    job = RayJob(cluster, folder)
    assert "task on gpu1 with 2 GPUs\ntask on gpu2 with 2 GPUs\n" in job.said()
    assert len(job.left()) > 4, "otherwise nothing would be seen to go"
    job.go.touch()
    job.wait_until_gone()
    assert job.said().endswith("closed\n")


def test_scancel_leaves_no_process(cluster: Cluster, folder: Path) -> None:
    job = RayJob(cluster, folder)
    cluster.command("scancel", job.number)
    job.wait_until_gone()


def test_a_killed_program_leaves_no_process(cluster: Cluster, folder: Path) -> None:
    job = RayJob(cluster, folder)
    os.kill(int(job.said().split("ready ")[1].split()[0]), signal.SIGKILL)
    job.wait_until_gone()


def test_outside_of_a_job_there_is_a_sentence() -> None:
    with pytest.raises(UserError, match="needs a Slurm job"):
        allocated_nodes({})


def test_the_time_limit_leaves_no_process(limited: RayJob) -> None:
    # Slurm sends SIGTERM to all steps, SIGKILL after KillWait.
    limited.wait_until_gone(180)
    assert "closed" not in limited.said()
