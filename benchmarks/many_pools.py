"""Do episodes survive the death of pools? ``python benchmarks/many_pools.py`` prints JSON.

1,000 desktops over 8 pools, each a process (``serve-desktops --announce``), lend to one process that collects
episodes with the study's own loop. The desktops are fakes: they cost no more than the calls to them, and
write down the id of every action that they applied. Every minute one pool, in turn, gets SIGKILL; its
successor comes ``--absent`` seconds later and is found in the folder. A fake policy answers after
``--think`` seconds.

Reported: episodes without a record, those recorded as env_error, attempts, actions applied twice, and how
many were applied beside those that finished episodes count: they belong to attempts that a kill ended.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

from arpo_replica.actions.coordinates import Frame
from arpo_replica.actions.parse import UITarsParser
from arpo_replica.config.models import StudyConfig
from arpo_replica.providers import remote_service
from arpo_replica.providers.pool_folder import announced
from arpo_replica.providers.remote import RemoteProvider
from arpo_replica.rollout.collect import OutputRoot, PoolSettings, collect_episodes
from arpo_replica.rollout.episode import EpisodeLimits, Labels
from arpo_replica.rollout.records import finished_episodes, read_episode
from arpo_replica.tasks.model import Task, load_task

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fakes import (
    CLICK,
    FINISHED,
    SCREEN,
    FakeDesktop,
    FakeProvider,
    ScriptedPolicy,
    small_study,
)

TASKS = 100
STEPS = 4
"""Replies of an episode: three clicks and the end."""


def study(folder: Path, count: int) -> StudyConfig:
    """A study whose tasks lie in the folder."""
    config: StudyConfig = small_study(
        SCREEN, tasks={"root": str(folder / "tasks"), "splits": {"one": "data/splits/one.json"}}
    )
    config.desktop.count = count
    return config


def lend(folder: Path, count: int) -> None:
    """A pool of fakes; the ids of applied actions go to a file of this process, line by line."""
    log = (folder / "actions" / f"{os.getpid()}.txt").open("w", buffering=1)

    def note(event: str, desktop: FakeDesktop) -> None:
        if event == "act":
            log.write(f"{desktop.actions[-1][1]}\n")

    with mock.patch.object(remote_service, "make_provider", lambda _: FakeProvider(note, delay_s=0.02)):
        remote_service.serve_desktops(study(folder, count), host="127.0.0.1", announce=folder / "pools")


class Campaign:
    """The pools, and their deaths."""

    def __init__(self, folder: Path, pools: int, count: int, absent_s: float) -> None:
        self.folder, self.count, self.absent_s = folder, count, absent_s
        self.running = [self.start() for _ in range(pools)]
        self.kills: list[float] = []
        self.late: set[asyncio.Task[None]] = set()

    def start(self) -> subprocess.Popen[bytes]:
        """One more pool."""
        command = [sys.executable, __file__, "--lend", str(self.folder), "--desktops", str(self.count)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    async def kill(self, every_s: float) -> None:
        """Kill one pool after the other; each is replaced."""
        number = 0
        while True:
            await asyncio.sleep(every_s)
            self.running[number].kill()
            self.running[number].wait()
            self.kills.append(time.monotonic())
            task = asyncio.create_task(self.replace(number))
            self.late.add(task)
            task.add_done_callback(self.late.discard)
            number = (number + 1) % len(self.running)

    async def replace(self, number: int) -> None:
        """Its successor comes late."""
        await asyncio.sleep(self.absent_s)
        self.running[number] = self.start()

    def end(self) -> None:
        """End all pools."""
        for process in self.running:
            process.kill()
            process.wait()


async def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Collect trial after trial until the time is over; what came of it."""
    per_pool = options.desktops // options.pools
    config, tasks = study(folder, options.desktops), make_tasks(folder)
    campaign = Campaign(folder, options.pools, per_pool, options.absent)
    try:
        while len(announced(folder / "pools")) < options.pools:
            time.sleep(0.2)  # noqa: ASYNC251  # nothing else runs yet
        provider = RemoteProvider(
            config.desktop.model_copy(
                update={
                    "provider": "remote",
                    "remote": config.desktop.remote.model_copy(update={"pools": folder / "pools"}),
                }
            )
        )
        began = time.monotonic()
        killer = asyncio.create_task(campaign.kill(options.every))
        roots = [OutputRoot(folder / "out" / f"trial_{n}", "one", n, tasks) for n in range(options.trials)]
        policy = ScriptedPolicy(*[CLICK] * (STEPS - 1), FINISHED, delay_s=options.think)
        progress = await collect_episodes(
            roots,
            provider=provider,
            policy=lambda *_: policy,
            parser=UITarsParser(Frame("absolute", SCREEN, SCREEN)),
            labels=Labels("base", 0, "base", "nano", "process", "checkpoint", {}),
            settings=PoolSettings(
                desktops=options.desktops,
                limits=EpisodeLimits(max_steps=STEPS + 1, success_above=0.5, timeout_s=300),
                retries=2,
                start_timeout_s=120,
            ),
        )
        seconds = time.monotonic() - began
        killer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await killer
    finally:
        campaign.end()
    records = [read_episode(path)[0] for root in roots for path in finished_episodes(root.path).values()]
    applied = Counter(
        line for path in (folder / "actions").iterdir() for line in path.read_text().splitlines()
    )
    return {
        "desktops": options.desktops,
        "pools": options.pools,
        "seconds": round(seconds, 1),
        "pools_killed": len(campaign.kills),
        "episodes": len(records),
        "episodes_lost": len(tasks) * len(roots) - len(records),
        "outcomes": dict(Counter(record.outcome for record in records)),
        "attempts": dict(sorted(Counter(record.attempts for record in records).items())),
        "errors": dict(Counter(kind(error) for record in records for error in record.errors).most_common()),
        "desktops_replaced": progress.restarts,
        "actions_applied": sum(applied.values()),
        "actions_applied_twice": sum(number > 1 for number in applied.values()),
        "actions_recorded": (STEPS - 1) * sum(record.outcome == "success" for record in records),
        "episodes_per_s": round(len(records) / seconds, 1),
    }


def kind(error: str) -> str:
    """An error's text without what differs from case to case."""
    return re.sub(r"http://\S+|desktop-\d+|127\.0\.0\.1:\d+|\('127[^)]*\)", "…", error)[:120]


def make_tasks(folder: Path) -> list[Task]:
    """Task files of the fakes."""
    (folder / "tasks" / "fake").mkdir(parents=True)
    (folder / "actions").mkdir()
    made = []
    for number in range(TASKS):
        path = folder / "tasks" / "fake" / f"task-{number:03d}.json"
        text = {"id": path.stem, "instruction": "Do.", "config": [], "evaluator": {"func": "fake"}}
        path.write_text(json.dumps(text))
        made.append(load_task(path))
    return made


def main() -> None:
    """Measure and print; with ``--lend`` this process is one of the pools."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--desktops", type=int, default=1000)
    parser.add_argument("--pools", type=int, default=8)
    parser.add_argument("--trials", type=int, default=60, help="100 episodes each")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two kills")
    parser.add_argument("--absent", type=float, default=20.0)
    parser.add_argument("--think", type=float, default=5.0)
    parser.add_argument("--lend", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.lend is not None:
        lend(options.lend, options.desktops)
        return
    logging.getLogger("arpo_replica").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(Path(folder), options)), indent=1))


if __name__ == "__main__":
    main()
