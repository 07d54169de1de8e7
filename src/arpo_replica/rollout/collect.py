"""Collects episodes: one event loop, N desktops, one policy, many episodes, no barrier.

Every worker takes the next episode, and a desktop of the pool, as soon as it is free. An episode whose
desktop or policy fails is tried again, then recorded as ``env_error`` without a score. What is finished on
disk stays as it is, byte for byte, whatever kills the process.
"""

import asyncio
import json
import logging
import shutil
import time
import traceback
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, get_args

from arpo_replica.base.errors import DesktopError, NoDesktopFree, PolicyError, RefusedError, UserError
from arpo_replica.base.files import write_atomically
from arpo_replica.base.unfinished import ASIDE
from arpo_replica.config.models import StudyConfig
from arpo_replica.desktop.interface import DesktopProvider
from arpo_replica.policy.endpoint import Policy
from arpo_replica.providers.pool import DesktopPool, StartError, one_line
from arpo_replica.rollout.episode import (
    EpisodeLimits,
    EpisodeResult,
    Labels,
    ReplyParser,
    record_episode,
    run_episode,
)
from arpo_replica.rollout.records import (
    Outcome,
    clear_unfinished,
    finished_episodes,
    read_summary,
    watched,
    write_index,
)
from arpo_replica.tasks.model import Task

logger = logging.getLogger(__name__)

EVERY_S = 5.0
"""From one line about the progress to the next."""


def clock(seconds: float) -> str:
    """``h:mm:ss``."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class Progress:
    """What a running job says about itself: a line every few seconds, and a heartbeat file."""

    def __init__(self, total: int, kept: int, *, heartbeat: Path | None = None) -> None:
        """``total`` episodes of the job, ``kept`` of them from an earlier run."""
        self.total = total
        self.kept = kept
        self.heartbeat = heartbeat
        self.outcomes: Counter[str] = Counter()
        self.retries = 0
        self.restarts = 0
        """Desktops started after one broke."""
        self.desktops = 0
        """Desktops running now."""
        self.began: float | None = None
        """When the policy was ready: rate and ETA count from there."""
        self._said = float("-inf")
        self._line = ""

    @property
    def done(self) -> int:
        """Episodes on disk."""
        return self.kept + sum(self.outcomes.values())

    @property
    def rate(self) -> float:
        """Episodes per hour of this run."""
        seconds = 0.0 if self.began is None else time.monotonic() - self.began
        return 3600 * sum(self.outcomes.values()) / max(seconds, 1e-3)

    def finished(self, outcome: Outcome) -> None:
        """Count an episode; say so if it is time."""
        self.outcomes[outcome] += 1
        self.tick()

    def tick(self, *, now: bool = False) -> None:
        """Write the heartbeat; log the line if ``EVERY_S`` have passed or ``now``."""
        if not now and time.monotonic() - self._said < EVERY_S:
            return
        self._said = time.monotonic()
        if (line := self.line()) != self._line:  # not ten times that it waits for the policy
            self._line = line
            logger.info(line)
        if self.heartbeat is not None:
            write_atomically(self.heartbeat, (json.dumps(self.state()) + "\n").encode())

    def line(self) -> str:
        """``episodes 12/40 | 350/h | ETA 0:04:48 | success 3, failure 8, ... | retries 1, ...``."""
        counts = ", ".join(f"{name} {self.outcomes[name]}" for name in get_args(Outcome))
        kept = f" | kept {self.kept}" if self.kept else ""
        if self.began is None and self.done < self.total:
            return (
                f"episodes {self.done}/{self.total}{kept} | waiting for the policy | desktops {self.desktops}"
            )
        return (
            f"episodes {self.done}/{self.total}{kept} | {self.rate:.0f}/h | ETA {self.eta()} | {counts} | "
            f"retries {self.retries}, desktops {self.desktops}, restarts {self.restarts}"
        )

    def eta(self) -> str:
        """Time left as ``h:mm:ss``, ``?`` before the first episode."""
        if self.done >= self.total:
            return "0:00:00"
        if not sum(self.outcomes.values()):
            return "?"
        return clock(3600 * (self.total - self.done) / self.rate)

    def state(self) -> dict[str, object]:
        """The same for machines; ``time`` is Unix time, in seconds."""
        return {
            "time": time.time(),
            "done": self.done,
            "total": self.total,
            "kept": self.kept,
            "per_hour": self.rate,
            "outcomes": dict(self.outcomes),
            "retries": self.retries,
            "desktops": self.desktops,
            "restarts": self.restarts,
        }


@dataclass(frozen=True, slots=True)
class OutputRoot:
    """Where the episodes of one split and trial go."""

    path: Path
    split: str
    trial: int
    tasks: Sequence[Task]


@dataclass
class Episode:
    """One episode to be collected, and what its attempts gave so far."""

    task: Task
    root: OutputRoot
    errors: list[str] = field(default_factory=list)
    started_at: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolSettings:
    desktops: int
    limits: EpisodeLimits
    retries: int
    """Attempts after the first one."""
    start_timeout_s: float
    """Longest time that starting one desktop may take."""

    @classmethod
    def of(cls, config: StudyConfig, limits: EpisodeLimits) -> Self:
        desktop = config.desktop
        return cls(desktop.count, limits, config.rollout.env_error_retries, 2 * desktop.start_timeout_s)


def open_episodes(roots: Sequence[OutputRoot], labels: Labels) -> list[Episode]:
    """The episodes that are still to be collected, trial by trial.

    Removes what a killed writer left. Finished episodes that belong to another checkpoint, task version or
    sampling than this job's answer another question: they are moved to a folder beside the root.
    """
    todo = []
    for root in roots:
        clear_unfinished(root.path)
        wanted = {(task.domain, task.id): task for task in root.tasks}
        kept = set()
        for key, directory in finished_episodes(root.path).items():
            task = wanted.get(key)
            if task is not None and belongs(read_summary(directory), root, task, labels):
                kept.add(key)
            else:
                aside = root.path.with_name(root.path.name + ASIDE) / directory.name
                logger.info(
                    f"{directory} belongs to another checkpoint, task or sampling: moved to {aside.parent}"
                )
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                directory.rename(aside)
        todo += [Episode(task, root) for key, task in wanted.items() if key not in kept]
    return todo


def belongs(summary: dict[str, Any], root: OutputRoot, task: Task, labels: Labels) -> bool:
    """True if a finished episode is one that this job would collect."""
    own = {"split": root.split, "trial": root.trial, "task_sha256": task.sha256}
    expected = asdict(labels) | own
    return all(summary.get(key) == value for key, value in expected.items())


async def collect_episodes(
    roots: Sequence[OutputRoot],
    *,
    provider: DesktopProvider,
    policy: Callable[[OutputRoot, Any], Policy],
    parser: ReplyParser,
    labels: Labels,
    settings: PoolSettings,
    policy_ready: Callable[[], Awaitable[object]] | None = None,
    check_policy: Callable[[], Awaitable[None]] | None = None,
    heartbeat: Path | None = None,
) -> Progress:
    """Collect every missing episode of all roots and write their indexes.

    ``policy`` gives the policy for a root (its trial decides the seeds) and a desktop. ``policy_ready`` is
    awaited once, while desktops start. ``check_policy`` is called after a ``PolicyError``; what it raises
    ends the job: a dead server must not turn every remaining episode into an ``env_error``.

    Raises ``UserError`` if no desktop can be started at all.
    """
    todo = open_episodes(roots, labels)
    total = sum(len(root.tasks) for root in roots)
    progress = Progress(total, total - len(todo), heartbeat=heartbeat)
    if todo:
        pool = DesktopPool(provider, min(settings.desktops, len(todo)), settings.start_timeout_s)
        collector = _Collector(
            pool=pool,
            policy=policy,
            parser=parser,
            labels=labels,
            settings=settings,
            progress=progress,
            check_policy=check_policy,
        )
        await collector.run(todo, policy_ready)
    for root in roots:
        await asyncio.to_thread(write_index, root.path)
    progress.tick(now=True)
    return progress


@dataclass
class _Collector:
    pool: DesktopPool
    policy: Callable[[OutputRoot, Any], Policy]
    parser: ReplyParser
    labels: Labels
    settings: PoolSettings
    progress: Progress
    check_policy: Callable[[], Awaitable[None]] | None
    queue: deque[Episode] = field(default_factory=deque)
    missing: dict[Path, int] = field(default_factory=dict)
    """Episodes still to come, per root."""
    workers: int = 0

    async def run(self, todo: list[Episode], policy_ready: Callable[[], Awaitable[object]] | None) -> None:
        self.queue.extend(todo)
        for episode in todo:
            self.missing[episode.root.path] = self.missing.get(episode.root.path, 0) + 1
        self.workers = min(self.settings.desktops, len(todo))
        try:
            async with asyncio.TaskGroup() as group:
                ready = group.create_task(_ready(policy_ready))
                ticker = group.create_task(self._tick(ready))
                workers = [group.create_task(self._work(ready)) for _ in range(self.workers)]
                await asyncio.wait(workers)
                ticker.cancel()
        except BaseExceptionGroup as errors:
            # The first one ended the job; the others are its consequences.
            raise errors.exceptions[0] from None
        finally:
            await asyncio.shield(self.pool.close())
            self._count_desktops()

    async def _tick(self, ready: asyncio.Task[None]) -> None:
        while not ready.done():
            self._count_desktops()
            self.progress.tick()
            await asyncio.wait([ready], timeout=1)
        self.progress.began = time.monotonic()
        while True:
            self._count_desktops()
            self.progress.tick()
            await asyncio.sleep(1)

    def _count_desktops(self) -> None:
        self.progress.desktops = self.pool.running
        self.progress.restarts = self.pool.replaced

    async def _work(self, ready: asyncio.Task[None]) -> None:
        while self.queue:
            episode = self.queue.popleft()
            episode.started_at = episode.started_at or time.time()
            try:
                async with self.pool.desktop() as desktop:
                    await asyncio.shield(ready)
                    with watched(
                        episode.root.path, episode.task, self.labels.arm, episode.root.trial
                    ) as show:
                        result = await run_episode(
                            episode.task,
                            desktop,
                            self.policy(episode.root, desktop),
                            self.parser,
                            self.settings.limits,
                            show=show,
                        )
            except UserError:
                raise
            except Exception as error:
                # Also what no contract foresees: one odd page must not end the study. It is counted
                # and shown, never scored.
                await self._failed(episode, error)
            else:
                await self._record(episode, result)

    def _give_up(self, error: StartError) -> None:
        """Raise ``UserError`` if no desktop has started for too long."""
        pool, patience = self.pool, 3 if self.pool.started else 1
        if pool.failures >= patience * self.workers * (1 + self.settings.retries):
            raise UserError(
                f"No desktop could be started in {pool.failures} attempts in a row "
                f"({one_line(error.__cause__ or error)}); correct the section 'desktop' of the config or "
                "what the message names."
            ) from error

    async def _failed(self, episode: Episode, error: Exception) -> None:
        name = f"{episode.task.domain}/{episode.task.id}, trial {episode.root.trial}"
        logger.info(f"attempt {len(episode.errors) + 1} at {name} failed: {one_line(error)}")
        if not isinstance(error, DesktopError | PolicyError):
            logger.info("".join(traceback.format_exception(error)))
        if isinstance(error, NoDesktopFree):
            self.queue.append(episode)
            return
        if isinstance(error, PolicyError) and self.check_policy is not None:
            await self.check_policy()
        if isinstance(error, StartError):
            self._give_up(error)
            first = not self.pool.started
            # A service or daemon that is gone ends the job with its own sentence and spoils no episode.
            await asyncio.to_thread(self.pool.provider.check)
            if first:
                # Not this episode's fault: no desktop has ever started. ``_give_up`` ends it in time.
                self.queue.append(episode)
                return
        episode.errors.append(one_line(error))
        if len(episode.errors) <= self.settings.retries and not isinstance(error, RefusedError):
            self.progress.retries += 1
            self.queue.appendleft(episode)
        else:
            await self._record(episode, None)

    async def _record(self, episode: Episode, result: EpisodeResult | None) -> None:
        root = episode.root.path
        writing = asyncio.to_thread(
            record_episode,
            root,
            episode.task,
            result,
            self.labels,
            split=episode.root.split,
            trial=episode.root.trial,
            errors=episode.errors,
            started_at=episode.started_at,
        )
        await asyncio.shield(writing)
        self.missing[root] -= 1
        if not self.missing[root]:
            await asyncio.to_thread(write_index, root)
        self.progress.finished("env_error" if result is None else result.outcome)


async def _ready(policy_ready: Callable[[], Awaitable[object]] | None) -> None:
    if policy_ready is not None:
        await policy_ready()
