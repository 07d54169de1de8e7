"""The profile on a virtual cluster, with scripts that only write their outputs: places, arrays, mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.cluster import Cluster
from slurm.conftest import SITE, Checkout

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


def last_line(checkout: Checkout) -> str:
    """What Snakemake said last."""
    return checkout.said().strip().splitlines()[-1]


def test_rollouts_go_as_an_array_if_the_site_says_so(cluster: Cluster, tmp_path: Path) -> None:
    checkout = Checkout(
        tmp_path / "checkout", cluster, SITE + "arrays: [collect_rollouts]\ngpu_model: h200\n"
    )
    checkout.use_stubs()
    # Both evaluations are ready at once: the training is there already.
    local = ["--set-resources", "collect_rollouts:gres='gpu:h200:2'"]
    stage = "results/slurm/models"
    for model in ("base/seed_0/stage_base", "arpo/seed_0/stage_train_4"):
        for name in ("manifest.json", "metrics.jsonl"):
            path = checkout.root / stage / model / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("stub")
    targets = [
        f"results/slurm/episodes/{arm}/seed_0/stage_{last}/test_out/trial_0/episodes.jsonl"
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
