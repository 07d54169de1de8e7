"""A whole small study through the real rules: desktops, Chromium, vLLM, verl, Ray, report.

One run serves all checks here: Snakemake alone is killed during the first training, the whole study in its
first rollouts. Started again it must be complete, every episode that was finished before a kill untouched.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest

from arpo_replica.base.processes import command_of, descendants, is_alive
from arpo_replica.config import load_config
from arpo_replica.workflow.study import Study

pytestmark = [pytest.mark.study, pytest.mark.timeout(2400)]
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
CONFIG = "configs/ci.yaml"
COMMAND = [str(SNAKEMAKE), "--configfile", CONFIG]


def digests(root: Path) -> dict[str, str]:
    """sha256 of every file of every finished episode."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for episode in root.rglob("episode.json")
        for path in episode.parent.iterdir()
        if not episode.parent.name.startswith(".tmp-")
    }


def processes_of(root: Path) -> list[str]:
    """Command lines of living processes that belong to the study in ``root``."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            inside = process.cwd() == str(root) or str(root) in " ".join(process.info["cmdline"] or [])
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if inside and process.pid != os.getpid():
            found.append(" ".join(process.info["cmdline"] or [process.name()]))
    return found


def metrics(root: Path, arm: str, stage: str) -> list[dict]:
    """``metrics.jsonl`` of a stage."""
    path = root / f"results/ci/models/{arm}/seed_0/stage_{stage}/metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_until(
    root: Path, ready: Callable[[psutil.Process], object], kill: Callable[[int, int], None]
) -> list[str]:
    """Run the study, SIGKILL it with ``kill`` once it is ready; what of it is left 10 seconds later."""
    path = root / "killed.log"
    with path.open("w") as log:
        snakemake = subprocess.Popen(COMMAND, cwd=root, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 1500
            while not ready(psutil.Process(snakemake.pid)):
                assert snakemake.poll() is None, path.read_text()[-4000:]
                assert time.monotonic() < deadline, path.read_text()[-4000:]
                time.sleep(0.5)
            below = descendants(snakemake.pid)
        except BaseException:
            os.killpg(snakemake.pid, signal.SIGKILL)
            raise
        kill(snakemake.pid, signal.SIGKILL)
        snakemake.wait()
    deadline = time.monotonic() + 10
    while (processes_of(root) or any(map(is_alive, below))) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = processes_of(root) + [command_of(process) for process in below if is_alive(process)]
    subprocess.run([*COMMAND, "--unlock"], cwd=root, check=True)
    return left


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The study of configs/ci.yaml: killed twice, then run to its end."""
    from conftest import make_checkout

    workspace = make_checkout(tmp_path_factory.mktemp("study"))
    root = workspace.root
    episodes = root / "results/ci/episodes"

    def trains(snakemake: psutil.Process) -> bool:
        commands = [command_of(process) for process in descendants(snakemake.pid)]
        return all(any(word in command for command in commands) for word in ("ray::", "keeper", "chrom"))

    left = [
        run_until(root, trains, os.kill),
        run_until(root, lambda _: [*episodes.rglob("episode.json")], os.killpg),
    ]
    kept = digests(episodes)
    with (root / "last.log").open("w") as log:
        last = subprocess.run(COMMAND, cwd=root, stdout=log, stderr=log, check=False)
    assert last.returncode == 0, (root / "last.log").read_text()[-6000:]
    return workspace, kept, left


@pytest.mark.parametrize("kill", [0, 1], ids=["snakemake alone", "the whole study"])
def test_a_killed_run_leaves_no_process(study, kill):
    _, _, left = study
    assert left[kill] == []


def test_episodes_finished_before_the_kill_are_untouched(study):
    workspace, kept, _ = study
    assert kept
    now = digests(workspace.root / "results/ci/episodes")
    assert {name: now.get(name) for name in kept} == kept


def test_every_episode_is_there_and_none_is_an_environment_error(study):
    workspace, _, _ = study
    config = load_config(workspace.root / CONFIG)
    scores = pd.read_parquet(workspace.root / "results/ci/scores.parquet")
    tasks = sum(
        len(json.loads((workspace.root / f"results/ci/splits/{split}.json").read_text())["tasks"])
        for split in config.evaluation.splits
    )
    checkpoints = Study(config).checkpoints()
    assert len(scores) == tasks * config.evaluation.trials * len(checkpoints)
    assert set(scores.outcome) <= {"success", "failure", "truncated"}


def test_training_recorded_each_step_once_in_both_arms(study):
    workspace, _, _ = study
    config = load_config(workspace.root / CONFIG)
    for arm in ("grpo", "arpo"):
        for stage in config.training.stages:
            steps = [step["step"] for step in metrics(workspace.root, arm, stage.name)]
            assert steps == list(range(1, stage.steps + 1))


def test_each_stage_starts_from_the_one_before(study):
    workspace, _, _ = study
    config = load_config(workspace.root / CONFIG)

    def manifest(arm: str, stage: str) -> dict:
        seed = 0
        path = workspace.root / f"results/ci/models/{arm}/seed_{seed}/stage_{stage}/manifest.json"
        return json.loads(path.read_text())

    base = manifest("base", "base")
    for arm in ("grpo", "arpo"):
        before = base
        for stage in config.training.stages:
            now = manifest(arm, stage.name)
            assert now["parent"] == before["sha256"]
            steps = metrics(workspace.root, arm, stage.name)
            assert (now["sha256"] != before["sha256"]) == any(step["grad_norm"] > 0 for step in steps)
            assert now["size"] == "nano"
            before = now


def test_the_page_says_what_it_is(study):
    workspace, _, _ = study
    page = (workspace.root / "reports/ci/index.html").read_text()
    assert "nano" in page
    assert "says nothing about the paper" in page
    assert "data:image/webp" in page


def test_the_study_is_finished(study):
    workspace, _, _ = study
    assert workspace.planned("--configfile", CONFIG) == {}
