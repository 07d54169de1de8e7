"""Pools of desktops as jobs of Slurm: what is laid down, what is submitted when, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from arpo_replica.base import slurm
from arpo_replica.base.errors import UserError
from arpo_replica.cluster import pools, profile
from arpo_replica.cluster.costs import PRICES_FILE, JobEstimate, read_prices
from arpo_replica.config import load_config
from arpo_replica.config.models import StudyConfig
from arpo_replica.providers import pool_folder, remote
from arpo_replica.providers.pool_folder import SUBMIT, announced, keep_up
from arpo_replica.providers.remote import RemoteProvider
from arpo_replica.workflow.job import job
from arpo_replica.workflow.plan import Plan, PlannedJob, render
from arpo_replica.workflow.status import render as render_status
from arpo_replica.workflow.study import Study

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
JOBS = {"nodes": 2, "per_node": 8, "cores_per_desktop": 0.25}


def study(folder: Path, **remote) -> StudyConfig:
    """The demo with pools by Slurm."""
    overlay = folder / "pools.yaml"
    remote = {"lends": "process", "slurm": JOBS} | remote
    overlay.write_text(json.dumps({"desktop": {"provider": "remote", "count": 12, "remote": remote}}))
    return load_config(DEMO, overlay)


class Slurm:
    """A queue: ``squeue``, ``sbatch`` and ``scancel`` as they are asked."""

    def __init__(self) -> None:
        self.queue: dict[str, str] = {}
        """Job -> state."""
        self.submitted: list[list[str]] = []
        self.cancelled = 0
        self.refuses = ""

    def __call__(self, *command: str) -> str:
        if command[0] == "squeue":
            return "".join(f"{job} {state}\n" for job, state in self.queue.items())
        if command[0] == "scancel":
            self.cancelled += 1
            self.queue.clear()
            return ""
        assert command[0] == "sbatch"
        if self.refuses:
            raise UserError(self.refuses)
        self.submitted.append(list(command))
        (array,) = (word for word in command if word.startswith("--array=0-"))
        for _ in range(int(array.removeprefix("--array=0-")) + 1):
            self.queue[str(100 + len(self.queue) + 10 * len(self.submitted))] = "PENDING"
        return f"{100 * len(self.submitted)}\n"


@pytest.fixture
def queue(tmp_path, monkeypatch) -> Slurm:
    """A cluster whose node is large enough; the working folder is a checkout."""
    monkeypatch.chdir(tmp_path)
    partition = slurm.Partition("compute", True, {}, 2880, cpus=8, memory_mb=64_000)
    monkeypatch.setattr(slurm, "partitions", lambda ask: [partition])
    monkeypatch.setattr(slurm, "settings", lambda ask: {"AccountingStorageType": "accounting_storage/none"})
    made = Slurm()
    monkeypatch.setattr(pools, "ask", made)
    return made


def test_a_job_lays_down_how_pools_are_submitted(queue, tmp_path):
    config = study(tmp_path)
    folder = Path("results/demo/pools")
    assert config.desktop.remote.folder == folder and config.desktop.kind == "process"
    log = tmp_path / "log"
    names = {"log": [str(log)], "config": config.model_dump(mode="json"), "output": ["x"]}
    with job(SimpleNamespace(rule="score_episodes", **names)):
        assert not folder.exists()
    with job(SimpleNamespace(rule="collect_rollouts", **names)):
        pass
    plan = json.loads((folder / SUBMIT).read_text())
    assert {"--cpus-per-task=2", "--partition=compute", "--time=1440", "--signal=B:TERM@300"} <= set(
        plan["sbatch"]
    )
    assert f"--mem={pools.BASE_MB + 8 * config.desktop.memory_mb // 2}" in plan["sbatch"]
    script = (folder / "pool.sh").read_text()
    assert "exec " in script and "--announce" in script and "--drain-seconds 270" in script
    assert pool_folder.read_secret(folder) not in script + json.dumps(plan)
    lent = load_config(folder / pools.LENT).desktop
    assert (lent.provider, lent.count, lent.screen) == ("process", 8, config.desktop.screen)


def test_pools_that_are_missing_are_submitted_and_no_others(queue, tmp_path):
    pools.prepare(study(tmp_path))
    folder = Path("results/demo/pools")
    assert keep_up(folder, queue) == 2
    assert queue.submitted[0][-2:] == ["--array=0-1", str((folder / "pool.sh").absolute())]
    assert keep_up(folder, queue) == 0
    first, second = queue.queue
    queue.queue.update({first: "RUNNING", second: "RUNNING"})
    for name in (first, second):
        (folder / f"pool_{name}.json").write_text(json.dumps({"url": f"http://{name}", "job": name}))
    assert keep_up(folder, queue) == 0
    (folder / f"pool_{first}.json").write_text(
        json.dumps({"url": "http://x", "job": first, "draining": True})
    )
    assert keep_up(folder, queue) == 1, "the one that drains is replaced"
    assert keep_up(folder, queue) == 0
    del queue.queue[second]  # its node is lost
    assert keep_up(folder, queue) == 1
    assert not (folder / f"pool_{second}.json").exists(), "it could not withdraw itself"
    queue.queue.pop(first)
    assert keep_up(folder, queue) == 0
    assert announced(folder, draining=True) == []


def test_another_config_ends_the_pools_of_the_one_before(queue, tmp_path):
    config = study(tmp_path)
    pools.prepare(config)
    keep_up(Path("results/demo/pools"), queue)
    pools.prepare(config)
    assert (queue.cancelled, len(queue.queue)) == (0, 2)
    config.desktop.memory_mb += 1
    pools.prepare(config)
    assert (queue.cancelled, len(queue.queue)) == (1, 0)
    pools.end(config)
    assert queue.cancelled == 2


def test_two_studies_do_not_share_a_folder_of_pools(queue, tmp_path):
    pools.prepare(study(tmp_path, pools="pools"))
    other = study(tmp_path, pools="pools").model_copy(update={"study": "other"})
    with pytest.raises(
        UserError, match="has the pools of the study 'demo'; give each study a folder of its own"
    ):
        pools.prepare(other)
    assert [text for text in Study(other).lacks() if "has the pools of the study 'demo'" in text]
    assert not [text for text in Study(study(tmp_path, pools="pools")).lacks() if "has the pools" in text]


@pytest.mark.parametrize(
    ("remote", "sentence"),
    [
        ({"slurm": {"nodes": 1, "per_node": 8}}, "desktop.count is 12, but desktop.remote.slurm has 1 nodes"),
        ({"pools": ["http://127.0.0.1:1"]}, "desktop.remote.pools lists URLs; remove one of the two"),
        ({"slurm": {"nodes": 0, "per_node": 8}}, "desktop.remote.slurm.nodes"),
    ],
)
def test_configs_that_contradict_themselves_are_refused(tmp_path, remote, sentence):
    with pytest.raises(UserError, match=sentence):
        study(tmp_path, **remote)


def test_a_pool_that_no_node_can_run_is_refused(queue, tmp_path):
    config = study(tmp_path, slurm={**JOBS, "cores_per_desktop": 2})
    cluster = profile.make_profile(pools.load_site())
    assert "asks for 16 processors, but a node of the partition 'compute' has 8" in pools.misfit(
        config, cluster
    )
    assert pools.misfit(study(tmp_path), cluster) is None
    assert pools.misfit(load_config(DEMO), cluster) is None


async def test_who_asks_for_a_desktop_submits_and_waits(queue, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_folder.keep_up, "__defaults__", (queue,))
    for name, value in {"WAIT_S": 0.2, "FULL_S": 0.05, "LOOK_S": 0.01, "KEEP_S": 0.02}.items():
        monkeypatch.setattr(remote, name, value)
    config = study(tmp_path)
    pools.prepare(config)
    provider = RemoteProvider(config.desktop)
    with pytest.raises(remote.NoDesktopFree):
        await provider.start("d")
    assert len(queue.queue) == 2, "submitted once, however often it was asked"
    queue.queue.clear()
    queue.refuses = "Slurm does not answer (sbatch: Access denied)."
    with pytest.raises(UserError, match="Access denied"):
        for number in range(10):
            with pytest.raises(remote.NoDesktopFree):
                await provider.start(f"e-{number}")
                raise AssertionError


def test_pools_need_slurm_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(remote.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"desktop\.remote\.slurm starts pools with Slurm's 'sbatch'"):
        RemoteProvider(study(tmp_path).desktop).check()


def test_plan_counts_their_hours_and_status_shows_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = study(tmp_path)
    jobs = [
        PlannedJob("train_stage", False, {}, JobEstimate(2.0, 1, 0.0)),
        PlannedJob("collect_rollouts", False, {}, JobEstimate(1.0, 1, 0.0)),
        PlannedJob("build_nano_model", False, {}, JobEstimate(9.0, 0, 0.0)),
    ]
    prices = read_prices(PRICES_FILE)
    text = render(Plan(config, jobs, []), prices)
    assert (
        "Pools of desktops: 2 nodes x 8 desktops (2 processors, 7 GB each) for 3.00 hours: 6.0 node-hours"
        in text
    )
    assert "Pools" not in render(Plan(load_config(DEMO), jobs, []), prices)
    folder = Path("results/demo/pools")
    folder.mkdir(parents=True)
    (folder / "pool_7.json").write_text(
        json.dumps({"url": "http://n1:1", "count": 8, "host": "n1", "job": "7", "draining": False})
    )
    (folder / "pool_8.json").write_text(
        json.dumps({"url": "http://n2:1", "count": 8, "host": "n2", "job": "8", "draining": True})
    )
    assert render_status(config, [], []).splitlines()[-4:] == [
        "",
        "Pools of desktops in results/demo/pools: 2, with 8 desktops",
        "  8 desktops on n1, job 7",
        "  8 desktops on n2, job 8, about to end",
    ]
    assert "Pools" not in render_status(load_config(DEMO), [], [])
