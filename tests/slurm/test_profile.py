"""The profile on a virtual cluster, with scripts that only write their outputs: places, accidents, mistakes.

This cluster keeps accounts, so the executor asks ``sacct``; in the other modules it asks ``squeue``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from slurm.accounting import ACCOUNT
from slurm.cluster import Cluster
from slurm.conftest import SITE, Checkout, end
from slurm.daemons import wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
ACCOUNTING = True
HELD = """
import os, time
from pathlib import Path
from arpo_replica.base.slurm import record_allocation
record_allocation(Path("results/slurm"), snakemake.rule, snakemake.output[0])
with open("numbers.txt", "a") as file:
    file.write(os.environ["SLURM_JOB_ID"] + "\\n")
while Path("hold").exists():
    time.sleep(0.1)
for name in snakemake.output:
    Path(name).write_text("episodes")
"""
"""A script that waits as long as a file is there."""
TARGET = "results/slurm/episodes/base/seed_0/stage_base/train_4/trial_0/episodes.jsonl"
AIM = ("--rerun-triggers", "mtime", "--", TARGET)
URGENT = ("partitionname=urgent", "nodes=cpu1", "prioritytier=9", "state=up")


def last_line(checkout: Checkout) -> str:
    """What Snakemake said last."""
    return checkout.said().strip().splitlines()[-1]


def test_rollouts_go_as_an_array_if_the_site_says_so(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    checkout = Checkout(
        tmp_path / "checkout", cluster, SITE + "arrays: [collect_rollouts]\ngpu_model: h200\n"
    )
    checkout.prepare(tiny_model)
    checkout.use_stubs()
    # Both evaluations are ready at once: the training is there already.
    local = ["--set-resources", "collect_rollouts:gres='gpu:h200:2'"]
    stages = [f"models/{name}" for name in ("base/seed_0/stage_base", "arpo/seed_0/stage_train_4")]
    files = [f"{stage}/{name}" for stage in stages for name in ("manifest.json", "metrics.jsonl")]
    for name in ("splits/train_4.json", *files):  # oldest first
        path = checkout.root / "results" / "slurm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("stub")
    targets = [
        f"results/slurm/episodes/{arm}/seed_0/stage_{last}/train_4/trial_0/episodes.jsonl"
        for arm, last in (("base", "base"), ("arpo", "train_4"))
    ]
    assert checkout.run(*local, "--rerun-triggers", "mtime", "--", *targets) == 0, checkout.said()[-3000:]
    places = [line.split() for line in (checkout.root / "places.txt").read_text().splitlines()]
    rollouts = [place for place in places if place[0] == "collect_rollouts"]
    assert sorted(place[4] for place in rollouts) == ["1", "2"], "numbers of the array's tasks"
    for _, node, gpus, cache, _ in rollouts:
        assert node.startswith("gpu")
        assert len(gpus.split(",")) == 2
        assert cache == f"{checkout.root}/results/_cache/huggingface"
    # The account is the user's default one; without the slurmdbd no job would ever be seen to end by sacct.
    asked = ("sacct", "-X", "-n", "-P", "-S", "now-1hours", "-o", "state,account,alloctres")
    jobs = [line.split("|") for line in cluster.command(*asked).splitlines()]
    assert len(jobs) == 2 and {(state, account) for state, account, _ in jobs} == {("COMPLETED", ACCOUNT)}
    assert all("gres/gpu=2" in resources for *_, resources in jobs)


def held(checkout: Checkout, model: Path) -> Checkout:
    """All but the base policy's episodes is there; the job that makes them waits."""
    checkout.prepare(model)
    checkout.use_stubs()
    (checkout.root / "scripts" / "collect_rollouts.py").write_text(HELD)
    for name in ("hold", "numbers.txt"):
        (checkout.root / name).touch()
    for name in ("models/base/seed_0/stage_base/manifest.json", "splits/train_4.json"):
        path = checkout.root / "results" / "slurm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("stub")
    return checkout


def test_jobs_that_were_cancelled_or_preempted_are_submitted_again(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    """By the user, then by a job that goes before; Snakemake itself runs inside an allocation."""
    checkout = held(Checkout(tmp_path / "checkout", cluster, SITE + f"account: {ACCOUNT}\n"), tiny_model)

    def started() -> list[str]:
        return (checkout.root / "numbers.txt").read_text().split()

    inherited = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "3", "SLURM_MEM_PER_NODE": "100"}
    process = checkout.start(*AIM, **inherited)
    try:
        wait_until(lambda: len(started()) == 1, 120, "a first job")
        cluster.command("scancel", started()[0])
        wait_until(lambda: len(started()) == 2, 120, "a second job")
        cluster.command("scontrol", "create", *URGENT)
        urgent = (
            "sbatch",
            "--parsable",
            "-p",
            "urgent",
            "--exclusive",
            "-o",
            "/dev/null",
            "--wrap",
            "sleep 600",
        )
        other = cluster.command(*urgent).strip()
        wait_until(lambda: cluster.show(other)["JobState"] == "RUNNING", 120, "the urgent job")
        (checkout.root / "hold").unlink()
        cluster.command("scancel", other)
        assert process.wait(180) == 0, checkout.said()[-3000:]
    finally:
        end(process)
        wait_until(lambda: cluster.jobs() == [], 60, "an empty queue")
        cluster.command("scontrol", "delete", "partitionname=urgent", check=False)
    assert len(set(started())) == len(started()) == 3, "each with a number of its own: Slurm requeued none"
    asked = ("sacct", "-X", "-n", "-P", "-j", ",".join(started()), "-o", "state")
    states = [state.split()[0] for state in cluster.command(*asked).splitlines()]
    assert states == ["CANCELLED", "PREEMPTED", "COMPLETED"]


def test_what_a_killed_snakemake_left_in_the_queue_is_not_submitted_again(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    checkout = held(Checkout(tmp_path / "checkout", cluster), tiny_model)
    process = checkout.start(*AIM)
    try:
        wait_until(lambda: (checkout.root / "numbers.txt").read_text(), 120, "a job")
        process.kill()
        process.wait()
        job = (checkout.root / "numbers.txt").read_text().strip()
        assert checkout.start("--quiet", options=["--unlock"]).wait(120) == 0
        assert checkout.run(*AIM) == 2
        assert (
            f"Slurm still has jobs of an earlier run of results/slurm: {job}; wait for them"
            in checkout.said()
        )
    finally:
        end(process)
        for left in cluster.jobs():
            cluster.command("scancel", left)
    wait_until(lambda: cluster.jobs() == [], 60, "an empty queue")
    (checkout.root / "hold").unlink()
    assert checkout.run(*AIM) == 0, checkout.said()[-3000:]


def test_an_account_of_others_is_one_sentence(cluster: Cluster, tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout", cluster, "account: nobodys\n")
    assert checkout.run() == 2
    said = last_line(checkout)
    assert (
        said.startswith("slurm/site.yaml: account is 'nobodys', which is none of yours:") and ACCOUNT in said
    )
    assert checkout.submitted() == 0


def test_more_memory_than_a_node_has_is_one_sentence(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    checkout = Checkout(tmp_path / "checkout", cluster)
    checkout.prepare(tiny_model)
    assert checkout.run("--config", "desktop={'memory_mb': 1000000}") != 0
    assert (
        "a node of the partition 'cpu' has 131; lower desktop.count or desktop.memory_mb" in checkout.said()
    )
    assert "Traceback" not in checkout.said() and checkout.submitted() == 0


def test_the_doctor_asks_slurm(cluster: Cluster, tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout", cluster)
    done = subprocess.run(
        [sys.executable, "-m", "arpo_replica", "doctor", "--only", "slurm"],
        cwd=checkout.root,
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kinds of jobs, by sbatch --test-only" in done.stdout


def test_two_clusters_do_not_see_each_other(cluster: Cluster) -> None:
    root = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))
    other = Cluster(root, gpu_nodes=1)
    try:
        other.start()
        # As the executor's job step calls it: without SLURM_CONF.
        plain = {name: value for name, value in other.environment.items() if name != "SLURM_CONF"}
        ran = subprocess.run(
            ["srun", "-p", "gpu", "printenv", "SLURMD_NODENAME"],
            env=plain, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert ran.stdout == "gpu1\n", ran.stderr
        assert len(cluster.idle()) == 3 and len(other.idle() | {"gpu1"}) == 2
        other.lose_node("gpu1")
    finally:
        other.stop()
        shutil.rmtree(root, ignore_errors=True)
    assert len(cluster.idle()) == 3
    assert not Path("/etc/slurm/slurm.conf").is_symlink()


def test_a_missing_partition_is_one_sentence(cluster: Cluster, tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout", cluster, "partitions: {gpu: fast}\n")
    assert checkout.run() == 2
    assert last_line(checkout) == (
        "slurm/site.yaml: partitions.gpu is 'fast', which this cluster does not have; it has cpu, gpu."
    )


def test_slurm_down_is_one_sentence(cluster: Cluster, tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout", cluster)
    cluster.stop_controller()
    try:
        assert checkout.run() == 2
    finally:
        cluster.start_controller()
    assert last_line(checkout).startswith("Slurm d")
    assert "scontrol ping" in last_line(checkout)
    assert "Traceback" not in checkout.said()
