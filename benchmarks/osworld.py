"""Episodes per hour on OSWorld's tasks: ``envs/controller/.venv/bin/python benchmarks/osworld.py``.

Ours: the rollout pool on container desktops, with readiness checks. The rival: the same pool, desktops,
tasks and scripts, with the waits of OSWorld's runner: 60 s after each reset, 2 s after each action, 20 s
before each evaluation (``lib_run_single.py``, ``DesktopEnv.step``). Every episode must score 1, or there is
no result. Prints JSON. Goal: 5 times as many.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from arpo_replica.actions.types import Action
from arpo_replica.config import load_config
from arpo_replica.config.models import StudyConfig
from arpo_replica.desktop.interface import Desktop, DesktopProvider
from arpo_replica.policy.endpoint import Policy
from arpo_replica.providers.pool import make_provider
from arpo_replica.rollout.collect import OutputRoot, PoolSettings, collect_episodes
from arpo_replica.rollout.episode import EpisodeLimits, Labels
from arpo_replica.rollout.records import episode_dir, read_summary
from arpo_replica.tasks.model import Task
from arpo_replica.tasks.splits import load_split
from arpo_replica.validation.scripted import Oracle, ScriptedOracle, find_oracles, screen_parser
from arpo_replica.validation.validate import MAX_STEPS, make_labels

AFTER_RESET_S, AFTER_ACTION_S, BEFORE_EVALUATION_S = 60, 2, 20


class WaitingDesktop:
    """A desktop with the waits of OSWorld's runner."""

    def __init__(self, desktop: Desktop) -> None:
        self.screen, self.ran_on = desktop.screen, desktop.ran_on
        self._desktop = desktop

    async def reset(self, task: Task) -> None:
        """See ``Desktop``."""
        await self._desktop.reset(task)
        await asyncio.sleep(AFTER_RESET_S)

    async def screenshot(self) -> bytes:
        """See ``Desktop``."""
        return await self._desktop.screenshot()

    async def act(self, action: Action, action_id: str) -> None:
        """See ``Desktop``."""
        await self._desktop.act(action, action_id)
        await asyncio.sleep(AFTER_ACTION_S)

    async def evaluate(self, task: Task, last_action: Action | None) -> float:
        """See ``Desktop``."""
        await asyncio.sleep(BEFORE_EVALUATION_S)
        return await self._desktop.evaluate(task, last_action)

    async def close(self) -> None:
        """See ``Desktop``."""
        await self._desktop.close()


class WaitingProvider:
    """Makes such desktops of another provider's."""

    def __init__(self, provider: DesktopProvider) -> None:
        self._provider = provider

    def check(self) -> None:
        """See ``DesktopProvider``."""
        self._provider.check()

    async def start(self, name: str) -> Desktop:
        """See ``DesktopProvider``."""
        return WaitingDesktop(await self._provider.start(name))

    def describe(self) -> dict[str, Any]:
        """See ``DesktopProvider``."""
        return self._provider.describe()


async def collect(
    config: StudyConfig,
    provider: DesktopProvider,
    tasks: list[Task],
    trials: int,
    *,
    policy: Callable[[OutputRoot, Any], Policy],
    labels: Labels,
) -> list[dict[str, Any]]:
    """Records of the episodes that scripts play, each task ``trials`` times and no attempt twice."""
    limits = EpisodeLimits(MAX_STEPS, config.evaluation.success_above, config.rollout.episode_timeout_s)
    settings = replace(PoolSettings.of(config, limits), retries=0)
    with tempfile.TemporaryDirectory() as folder:
        roots = [OutputRoot(Path(folder) / f"trial_{n}", "benchmark", n, tasks) for n in range(trials)]
        await collect_episodes(
            roots,
            provider=provider,
            policy=policy,
            parser=screen_parser(config.desktop.screen),
            labels=labels,
            settings=settings,
        )
        return [
            read_summary(episode_dir(root.path, task.domain, task.id)) for root in roots for task in tasks
        ]


def summary(records: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """How many episodes an hour, and the time of their parts. Ends the program unless all scored 1."""
    failed = [f"{record['domain']}/{record['task_id']}" for record in records if record["hard_score"] != 1]
    if failed:
        sys.exit(f"no result: not solved by their scripts: {', '.join(failed)}")
    count = len(records)
    return {
        "episodes": count,
        "wall_s": round(seconds, 1),
        "episodes_per_hour": round(3600 * count / seconds, 1),
        "mean_s": {
            key: round(sum(record[key] for record in records) / count, 2)
            for key in ("duration_s", "reset_s", "evaluate_s", "n_steps")
        },
    }


def measure(
    config: StudyConfig, provider: DesktopProvider, tasks: list[Task], scripts: dict[str, Oracle], trials: int
) -> dict[str, Any]:
    """Collect the scripts' episodes; see ``summary``."""
    began = time.monotonic()
    labels = make_labels(config, "oracle", scripts)
    policy = ScriptedOracle(scripts)
    records = asyncio.run(collect(config, provider, tasks, trials, policy=lambda *_: policy, labels=labels))
    return summary(records, time.monotonic() - began)


def main() -> None:
    """Measure both in one run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/smoke.yaml"))
    parser.add_argument("--split", default="smoke_4")
    parser.add_argument("--trials", type=int, default=1, help="times that each loop runs every task")
    options = parser.parse_args()
    config = load_config(options.config)
    provider = make_provider(config.desktop)
    provider.check()
    tasks = load_split(config.tasks.splits[options.split], config.tasks.root)
    scripts = find_oracles(tasks, config.desktop.screen)
    tasks = [task for task in tasks if task.id in scripts]
    before = os.getloadavg()[0]
    ours = measure(config, provider, tasks, scripts, options.trials)
    rival = measure(config, WaitingProvider(provider), tasks, scripts, options.trials)
    document = {
        "config": str(options.config),
        "split": options.split,
        "desktops": config.desktop.count,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(before, 1),
        "load_after": round(os.getloadavg()[0], 1),
        "tasks": [f"{task.domain}/{task.id}" for task in tasks],
        "ours": ours,
        "with_osworld_waits": rival,
        "ratio": round(ours["episodes_per_hour"] / rival["episodes_per_hour"], 1),
        "desktop": provider.describe(),
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
