"""The profile on a virtual cluster, with scripts that only write their outputs: places, arrays, mistakes.

This cluster keeps accounts, so the executor asks ``sacct``; in the other modules it asks ``squeue``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.accounting import ACCOUNT
from slurm.cluster import Cluster
from slurm.conftest import SITE, Checkout

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
ACCOUNTING = True


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
