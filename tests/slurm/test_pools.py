"""A study whose desktops are pools on CPU nodes, started by the workflow, with nodes lost under way.

The desktops are scripted, one at a time: then the policy must be that of the same training without a cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import requests

from arpo_replica.actions.types import Click
from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import DesktopError, NoDesktopFree
from arpo_replica.base.files import file_sha256
from arpo_replica.cluster import pools
from arpo_replica.config import load_config
from arpo_replica.providers.pool_folder import announced, read_secret
from arpo_replica.providers.remote import RemoteDesktop, RemoteProvider
from arpo_replica.providers.root_files import rootfs_path
from arpo_replica.rollout.records import read_summary
from arpo_replica.tasks.splits import load_split
from slurm.cluster import Cluster
from slurm.conftest import Checkout, end
from slurm.daemons import wait_until
from slurm.story import STAGE, STUDY

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]
CPU_NODES = 3
MANIFEST = STAGE / "manifest.json"
GPU_NODES = ("--set-resources", "train_stage:gres='gpu:1'", "collect_rollouts:gres='gpu:1'")
"""Jobs of the study go there, so that an accident of a CPU node is one of its pool alone."""


def replace(path: Path, before: str, after: str) -> None:
    """Change a file in one place."""
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def scripted(root: Path, cluster: Cluster, user: int | None = None) -> Checkout:
    """A checkout whose process desktops are scripted ones, wherever they are started."""
    checkout = Checkout(root, cluster, user=user)
    (root / "envs").symlink_to(ROOT / "envs")
    replace(
        root / "src/arpo_replica/providers/pool.py",
        "arpo_replica.providers.process:ProcessProvider",
        "training.scripted_desktop:ScriptedProvider",
    )
    return checkout


def trainable(root: Path, cluster: Cluster, model: Path, user: int | None = None) -> Checkout:
    """The same, with a policy; the trainings take their desktops from where the config says."""
    checkout = scripted(root, cluster, user)
    checkout.prepare(model)
    line = '        provider="training.scripted_desktop:ScriptedProvider",\n'
    replace(root / "scripts/train_stage.py", line, "")
    return checkout


def start(
    checkout: Checkout, *arguments: str, profile: bool = True, overlays: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Snakemake with the small study; its package is the checkout's own."""
    where = {"PYTHONPATH": f"{checkout.root}/src:{ROOT}/tests"}
    if not profile:
        here = ("pools.yaml", "--config", "desktop={provider: process}")
        return checkout.start(*here, *arguments, options=["--cores", "1"], **where)
    return checkout.start("pools.yaml", *overlays, *GPU_NODES, *arguments, **where)


async def test_pools_start_when_asked_for_are_replaced_and_end(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One desktop on each of two nodes; a node loses power, the other pool is told that its time is over."""
    checkout = scripted(tmp_path / "checkout", cluster)
    monkeypatch.chdir(checkout.root)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", f"{checkout.root}/src:{ROOT}/tests")
    config = load_config(Path("configs/ci.yaml"), Path("small.yaml"), Path("pools.yaml"))
    (task, *_) = load_split(config.tasks.splits["train_4"], config.tasks.root)
    pools.prepare(config)
    provider, folder = RemoteProvider(config.desktop), checkout.root / STUDY / "pools"

    async def start(name: str) -> RemoteDesktop:
        async with asyncio.timeout(120):
            while True:
                with contextlib.suppress(NoDesktopFree):
                    return await provider.start(name)

    def entry(desktop: RemoteDesktop) -> dict[str, Any]:
        (found,) = (pool for pool in announced(folder) if pool["url"] == desktop._pool.service.name)
        return found

    first, second = [await start(name) for name in ("a", "b")]
    assert {entry(first)["host"], entry(second)["host"]} == {"cpu1", "cpu2"}
    await first.reset(task)
    cluster.lose_node(entry(first)["host"])
    with pytest.raises(DesktopError):
        await first.act(Click(1, 1), "a-1")
    await first.close()
    first = await start("a")
    assert entry(first)["host"] == "cpu3", "replaced while the node is down"
    for node in ("cpu1", "cpu2"):
        if node != entry(second)["host"]:
            cluster.heal_node(node)
    ending = entry(second)
    cluster.command("scancel", "--batch", "--signal=TERM", ending["job"])  # as before a time limit
    async with asyncio.timeout(120):
        while second._pool.service.name == ending["url"]:
            await second.reset(task)  # it may go on there as long as there is nothing else
            await asyncio.sleep(0.5)
    assert entry(second)["job"] not in {ending["job"], entry(first)["job"]}
    assert (await second.screenshot()).startswith(b"\x89PNG")
    await first.close()
    await second.close()
    pools.end(config)
    wait_until(lambda: cluster.jobs() == [], 60, "an empty queue")
    assert announced(folder, draining=True) == []


class Pools:
    """The pools of a study, as they announce themselves."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout = checkout
        self.alone = checkout.root
        """Where the same training ran without pools and accidents."""
        self.folder = checkout.root / STUDY / "pools"

    def leased(self) -> list[dict[str, Any]]:
        """The pools that lend a desktop now."""
        found = []
        for pool in announced(self.folder) if self.folder.is_dir() else ():
            headers = {"Authorization": f"Bearer {read_secret(self.folder)}"}
            try:
                status = requests.get(f"{pool['url']}/v1/status", headers=headers, timeout=1).json()
            except requests.RequestException:
                continue
            if status["leased"] and not status["draining"]:
                found.append(pool)
        return found

    def lose(self, node: str) -> None:
        """The node of a pool that lends a desktop loses power; then it is back."""
        self.checkout.cluster.lose_node(node)
        self.checkout.cluster.heal_node(node)

    def finished(self) -> int:
        """Episodes that the policies have ended."""
        ended = (self.checkout.root / STUDY / "episodes").rglob("episode.json")
        return len([path for path in ended if not path.parent.name.startswith(".")])

    def lose_one_in_training(self, *overlays: str) -> None:
        """The whole training; the node of a pool is lost after its first step."""
        process = start(self.checkout, "--", str(MANIFEST), overlays=overlays)
        steps = self.checkout.root / STAGE / "metrics.jsonl"
        try:
            pool, *_ = self.until(
                process, lambda: steps.is_file() and steps.read_text().count("\n") >= 1 and self.leased()
            )
            self.lose(pool["host"])
            assert process.wait(600) == 0, self.checkout.said()[-4000:]
        finally:
            end(process)
        wait_until(lambda: self.checkout.cluster.jobs() == [], 60, "the pools end with the study")

    def lose_one_in_rollouts(self, *overlays: str) -> None:
        """All that is left; one pool is told to end, the node of another is lost."""
        process = start(self.checkout, overlays=overlays)
        try:
            pool, *_ = self.until(process, lambda: self.finished() >= 2 and self.leased())
            # As before a time limit.
            self.checkout.cluster.command("scancel", "--batch", "--signal=TERM", pool["job"])
            known = self.finished()
            pool, *_ = self.until(process, lambda: self.finished() >= known + 2 and self.leased())
            self.lose(pool["host"])
            assert process.wait(600) == 0, self.checkout.said()[-4000:]
        finally:
            end(process)

    def until(self, process: subprocess.Popen[bytes], condition: Callable[[], Any]) -> Any:
        """Poll until it finds something, which is returned, as long as Snakemake runs."""
        deadline = time.monotonic() + 600
        while not (found := condition()):
            assert process.poll() is None and time.monotonic() < deadline, self.checkout.said()[-4000:]
            time.sleep(0.2)
        return found


@pytest.fixture(scope="module")
def told(cluster: Cluster, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Pools:
    """The study on pools, with its accidents, and beside it the training without a cluster."""
    alone = trainable(tmp_path_factory.mktemp("alone") / "checkout", cluster, tiny_model)
    pools_of = Pools(trainable(tmp_path_factory.mktemp("pools") / "checkout", cluster, tiny_model))
    pools_of.alone = alone.root
    local = start(alone, "--", str(MANIFEST), profile=False)
    try:
        pools_of.lose_one_in_training()
        assert local.wait(400) == 0, alone.said()[-4000:]
    finally:
        end(local)
    pools_of.lose_one_in_rollouts()
    return pools_of


def policy(root: Path) -> dict[str, Any]:
    """The manifest, but for what it says of where desktops come from."""
    manifest: dict[str, Any] = json.loads((root / MANIFEST).read_text())
    manifest["recipe"] = {k: v for k, v in manifest["recipe"].items() if not k.startswith("desktop.")}
    return manifest


def test_the_policy_is_that_of_a_training_that_lost_no_desktop(told: Pools) -> None:
    trained = policy(told.checkout.root)
    assert trained == policy(told.alone)
    assert trained["sha256"] != trained["parent"], "nothing was learnt"


def whole(root: Path) -> list[dict[str, Any]]:
    """The records of a study of which nothing is missing, trainings included."""
    indexes = list((root / STUDY / "episodes").rglob("episodes.jsonl"))
    assert len(indexes) == 4, "two policies, two trials"
    folders = [path.parent for path in (root / STUDY).rglob("episode.json")]
    summaries = [read_summary(folder) for folder in folders if "episodes" in folder.parts]
    assert len(summaries) >= 16
    assert {summary["outcome"] for summary in summaries}.isdisjoint({"env_error"})
    assert (root / "reports/slurm/index.html").is_file()
    return summaries


def test_all_episodes_are_there_and_none_is_an_error_of_the_environment(told: Pools) -> None:
    summaries = whole(told.checkout.root)
    assert max(summary["attempts"] for summary in summaries) >= 2, "the lost node had a desktop in use"
    pools = {summary["ran_on"]["pool"] for summary in summaries}
    assert len(pools) >= 4, "those of the training, and those in the place of lost and drained ones"


def test_lost_and_ending_pools_were_replaced_and_all_ended(told: Pools, cluster: Cluster) -> None:
    wait_until(lambda: cluster.jobs() == [], 60, "an empty queue")
    logs = [path.read_text() for path in told.folder.glob("slurm_*.log")]
    assert len(logs) >= 5, "two at each start, and those in the place of a lost and a drained one"
    token = read_secret(told.folder)
    assert not [text for text in logs if "Traceback" in text or token in text]


@pytest.fixture
def image() -> Path:
    """The image that ``make rootless`` builds; ``make test`` does so before these tests."""
    path = rootfs_path("core")
    if not path.is_file():
        pytest.skip(f"{path} is not built: make rootless")
    return path


def test_a_study_of_an_ordinary_user_on_pools_by_bubblewrap(
    cluster: Cluster, tiny_model: Path, image: Path
) -> None:
    """Neither root nor Docker: pools of container desktops on CPU nodes, one of which is lost in training and
    one in rollouts."""
    nobody = pwd.getpwnam("nobody").pw_uid
    for name in ("controller", "cpu"):
        tried = ["setpriv", f"--reuid={nobody}", "test", "-x", str(ROOT / f"envs/{name}/.venv/bin/python")]
        if subprocess.run(tried, capture_output=True, check=False).returncode:
            pytest.skip(f"only root can start the Python of envs/{name}: make it with another one (PYTHON=)")
    checkout = trainable(cluster.root / "study", cluster, tiny_model, nobody)  # which any user may enter
    there = cluster.root / "desktop.squashfs"
    shutil.copy(image, there)
    own = {"engine": "bwrap", "image": str(there), "spares": 0, "scratch": str(cluster.root / "study/home")}
    lent = {"desktop": {"remote": {"lends": "container"}, "container": own, "start_timeout_s": 300}}
    (checkout.root / "lent.yaml").write_text(json.dumps(lent))
    pools_of = Pools(checkout)
    pools_of.lose_one_in_training("lent.yaml")
    pools_of.lose_one_in_rollouts("lent.yaml")
    summaries = whole(checkout.root)
    sha256 = file_sha256(image)
    for summary in summaries:
        place = summary["ran_on"]
        assert (place["engine"], place["sudo"]) == ("bwrap", "stand-in")
        assert place["root"] in ("squashfuse", "unpacked") and place["image"] == sha256
    pools = {summary["ran_on"]["pool"] for summary in summaries}
    assert len(pools) >= 4, "those of the training, and those in the place of lost and drained ones"
    owners = {path.stat().st_uid for path in pools_of.folder.glob("pool_*.json")} | {
        path.stat().st_uid for path in pools_of.folder.glob("slurm_*.log")
    }
    assert owners == {nobody}
    wait_until(lambda: cluster.jobs() == [], 60, "an empty queue")
