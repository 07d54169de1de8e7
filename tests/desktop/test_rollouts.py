"""The rollout pool on real desktops: episodes, a desktop that dies, a job that is killed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from arpo_replica.actions.parse import UITarsParser
from arpo_replica.base.environments import ROOT
from arpo_replica.config import load_config
from arpo_replica.providers.pool import make_provider
from arpo_replica.rollout.collect import Labels, OutputRoot, PoolSettings, collect_episodes
from arpo_replica.rollout.episode import EpisodeLimits
from arpo_replica.rollout.records import finished_episodes, read_episode
from arpo_replica.tasks.splits import load_split
from fakes import CLICK, FINISHED, ScriptedPolicy

pytestmark = pytest.mark.desktop
LABELS = Labels("base", 0, "base", "nano", "process", "checkpoint", {})


async def collect(folder: Path, *, trials: int = 1, provider=None, desktops: int = 2, delay_s: float = 0.0):
    """Episodes of the split ``train_4``: a click, then ``finished``."""
    config = load_config(ROOT / "configs/demo.yaml")
    tasks = load_split(ROOT / config.tasks.splits["train_4"], ROOT / config.tasks.root)
    roots = [OutputRoot(folder / f"trial_{trial}", "train_4", trial, tasks) for trial in range(trials)]
    return await collect_episodes(
        roots,
        provider=provider or make_provider(config.desktop),
        policy=lambda *_: ScriptedPolicy(CLICK, FINISHED, delay_s=delay_s),
        parser=UITarsParser.of(config.policy, config.desktop.screen),
        labels=LABELS,
        settings=PoolSettings(
            desktops=desktops, limits=EpisodeLimits(4, 0.5, 60), retries=2, start_timeout_s=60
        ),
    )


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for root in folder.glob("trial_*")
        for path in finished_episodes(root).values()
        for file in path.iterdir()
    }


async def test_episodes_on_real_desktops(tmp_path):
    progress = await collect(tmp_path)
    assert (progress.done, progress.outcomes["env_error"], progress.restarts) == (4, 0, 0)
    first_screens = set()
    for path in finished_episodes(tmp_path / "trial_0").values():
        record, steps = read_episode(path)
        assert [step.action["type"] for step in steps] == ["click", "finished"]
        assert record.final_screenshot == "step_002.webp"
        for shot in path.glob("*.webp"):
            assert Image.open(shot).size == (168, 224)
        first_screens.add((path / "step_000.webp").read_bytes())
    assert len(first_screens) == 4  # each task shows its own page


async def test_a_desktop_that_dies_is_replaced(tmp_path, capfd):
    config = load_config(ROOT / "configs/demo.yaml")
    provider = make_provider(config.desktop)
    start, killed = provider.start, []

    async def deadly(name):
        desktop = await start(name)
        if not killed:
            act = desktop.act

            async def die(action, action_id):
                sandbox = psutil.Process(desktop._running.process.pid)
                killed.extend([sandbox, *sandbox.children(recursive=True)])
                sandbox.kill()
                await act(action, action_id)

            desktop.act = die
        return desktop

    provider.start = deadly
    progress = await collect(tmp_path, provider=provider, desktops=1)
    records = [read_episode(path)[0] for path in finished_episodes(tmp_path / "trial_0").values()]
    assert progress.outcomes["env_error"] == 0
    assert (progress.retries, progress.restarts) == (1, 1)
    assert sorted(record.attempts for record in records) == [1, 1, 1, 2]
    (failed,) = (record for record in records if record.attempts == 2)
    assert failed.errors[0].startswith("DesktopError: ")
    _, left = psutil.wait_procs(killed, timeout=10)
    assert left == []


JOB = """
import asyncio, sys
from pathlib import Path
from test_rollouts import collect
asyncio.run(collect(Path(sys.argv[1]), trials=3, delay_s=0.2))
"""


def test_a_killed_job_leaves_no_process_and_goes_on(tmp_path):
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}:{here.parent}"}
    command = [sys.executable, "-c", JOB, str(tmp_path)]
    job = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not digests(tmp_path) and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.02)
    family = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    kept = digests(tmp_path)
    assert kept
    assert len(family) > 4  # Xvfb, window manager, Chromium, guest: they ran
    _, left = psutil.wait_procs(family, timeout=15)
    assert left == []
    subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=True, timeout=200)
    now = digests(tmp_path)
    assert {name: now[name] for name in kept} == kept
    for trial in range(3):
        assert len((tmp_path / f"trial_{trial}" / "episodes.jsonl").read_text().splitlines()) == 4
