"""Demonstrations for the nano policy: a scripted expert plays MiniWoB++ pages in the real desktop.

    {out}/miniwob.{page}-s{seed}/   one episode, as every other (``rollout.records``), arm ``expert``
    {out}/recording.json            what decides the episodes besides their tasks
    {out}/episodes.jsonl            the index, written last

The same ``nano.seed`` gives the same pages, clicks and screenshots again; fewer demonstrations are the
first ones of more. What exists of this very recording is kept, so a killed job goes on where it was;
episodes of another seed, screen or expert are removed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from arpo_replica.actions.coordinates import Frame
from arpo_replica.actions.parse import UITarsParser
from arpo_replica.actions.types import Action, Click, TypeText
from arpo_replica.base.errors import DesktopError
from arpo_replica.base.files import write_atomically
from arpo_replica.config.models import NanoConfig, StudyConfig
from arpo_replica.desktop.devtools import DevTools
from arpo_replica.desktop.interface import Desktop
from arpo_replica.models.nano.model import check_screen
from arpo_replica.rollout.episode import EpisodeLimits, EpisodeResult, Labels, make_record, run_episode
from arpo_replica.rollout.records import (
    clear_unfinished,
    discard_episode,
    finished_episodes,
    read_episode,
    write_episode,
    write_index,
)
from arpo_replica.suites.miniwob.expert import Expert
from arpo_replica.suites.miniwob.pages import (
    DEMONSTRATION_SEEDS,
    SCRIPTS,
    TRAINED_PAGES,
    blank_task,
    make_task,
    page_of,
    read_instructions,
    script,
)
from arpo_replica.tasks.model import Task

logger = logging.getLogger(__name__)

MAX_LOST = 0.05
"""Largest share of episodes that may end without success before the recording counts as broken."""


class BrowserDesktop(Desktop, Protocol):
    """A desktop whose browser can be read through DevTools."""

    devtools: DevTools


# Four frames: the browser may have two on their way to the screen while it makes the next one.
_DRAWN = """new Promise((done) => {
  const frames = (left) => (left ? requestAnimationFrame(() => frames(left - 1)) : done(true));
  const check = () => {
    if (arpoReceived.clicks < %d || arpoReceived.keys < %d) setTimeout(check, 2);
    else frames(4);
  };
  check();
})"""


class SteadyDesktop:
    """A desktop that waits until the page has got the input and the browser has drawn its effect.

    On a busy machine a screenshot at the first rest may be too early; a demonstration must be the same
    whenever it is recorded. For one episode; raises ``DesktopError`` when input does not arrive.
    """

    def __init__(self, desktop: BrowserDesktop) -> None:
        self._desktop = desktop
        self._clicks = 0
        self._keys = 0
        self.screen = desktop.screen
        self.reset = desktop.reset
        self.screenshot = desktop.screenshot
        self.evaluate = desktop.evaluate
        self.close = desktop.close

    async def act(self, action: Action, action_id: str) -> None:
        await self._desktop.act(action, action_id)
        self._clicks += isinstance(action, Click)
        self._keys += len(action.text) if isinstance(action, TypeText) else 0
        await self._desktop.devtools.evaluate(_DRAWN % (self._clicks, self._keys))
        await self._desktop.screenshot()  # the one kept from before


class BrowserDesktopProvider(Protocol):
    """Makes such desktops; the process provider does."""

    async def start(self, name: str) -> BrowserDesktop:
        """A running desktop, ready for ``reset``."""


@dataclass
class Recording:
    """What a recording gave."""

    episodes: int
    recorded_now: int
    seconds: float
    outcomes: Counter[str]
    by_page: dict[str, tuple[int, int]]
    """Page -> (successes, episodes)."""


def page_seeds(page: str, seed: int) -> Iterator[int]:
    """Endless distinct page seeds of a page type, never those of a task file."""
    source = random.Random(f"demonstrations/{seed}/{page}")
    seen: set[int] = set()
    while True:
        value = source.randrange(DEMONSTRATION_SEEDS.start, DEMONSTRATION_SEEDS.stop)
        if value not in seen:
            seen.add(value)
            yield value


def page_counts(nano: NanoConfig) -> dict[str, int]:
    """Demonstrations per page type: what it is given, else an equal share, but for one more of the first."""
    pages = nano.pages or dict.fromkeys(TRAINED_PAGES)
    named = {page: count for page, count in pages.items() if count is not None}
    others = [page for page in pages if page not in named]
    share, rest = divmod(nano.demonstrations - sum(named.values()), max(len(others), 1))
    equal = {page: share + (index < rest) for index, page in enumerate(others)}
    return {page: {**named, **equal}[page] for page in pages}


async def draw_tasks(devtools: DevTools, nano: NanoConfig) -> list[Task]:
    """The tasks of all demonstrations, page types in turn, with what the pages say."""
    by_page: list[list[Task]] = []
    for page, wanted in page_counts(nano).items():
        source = page_seeds(page, nano.seed)
        texts: dict[int, str] = {}
        while len(texts) < wanted:
            seeds = [next(source) for _ in range(wanted - len(texts))]
            texts |= await read_instructions(devtools, page, seeds)
        by_page.append([make_task(page, page_seed, text) for page_seed, text in texts.items()])
    longest = max(map(len, by_page), default=0)
    return [tasks[index] for index in range(longest) for tasks in by_page if index < len(tasks)]


@dataclass
class _Recorder:
    config: StudyConfig
    out: Path
    provider: BrowserDesktopProvider
    progress: Callable[[str], None]
    queue: deque[Task] = field(default_factory=deque)
    outcomes: Counter[str] = field(default_factory=Counter)
    total: int = 0
    started: float = field(default_factory=time.monotonic)
    last_line: float = 0.0

    def __post_init__(self) -> None:
        self.parser = UITarsParser.of(self.config.policy, self.config.desktop.screen)
        self.frame = Frame.of(self.config.policy, self.config.desktop.screen)
        self.labels = Labels(
            arm="expert",
            seed=self.config.nano.seed,
            stage="demonstrations",
            size=self.config.size,
            desktop=self.config.desktop.provider,
            checkpoint_sha256="",
            sampling={},
        )
        self.limits = EpisodeLimits.of(self.config)

    async def work(self, name: str, desktop: BrowserDesktop) -> None:
        """Record tasks of the queue until it is empty; owns and closes its desktop."""
        try:
            while self.queue:
                task = self.queue.popleft()
                began, errors = time.time(), []
                result: EpisodeResult | None = None
                for attempt in range(1 + self.config.rollout.env_error_retries):
                    try:
                        if attempt:
                            await desktop.close()
                            desktop = await self.provider.start(f"{name}-{task.id}-{attempt}")
                        expert = Expert(desktop.devtools, self.frame)
                        steady = SteadyDesktop(desktop)
                        result = await run_episode(task, steady, expert, self.parser, self.limits)
                        break
                    except DesktopError as error:
                        errors.append(str(error))
                await self._write(task, result, errors, began)
        finally:
            await desktop.close()

    async def _write(
        self, task: Task, result: EpisodeResult | None, errors: list[str], started_at: float
    ) -> None:
        record = make_record(
            task, result, self.labels, split="demonstrations", trial=0, errors=errors, started_at=started_at
        )
        steps = result.steps if result else []
        screenshots = result.screenshots if result else {}
        await asyncio.to_thread(write_episode, self.out, record, steps, screenshots)
        self.outcomes[record.outcome] += 1
        self._say()

    def _say(self) -> None:
        done, now = sum(self.outcomes.values()), time.monotonic()
        if now - self.last_line < 5 and done < self.total:
            return
        self.last_line = now
        rate = done / max(now - self.started, 1e-9)
        lost = {kind: n for kind, n in sorted(self.outcomes.items()) if kind != "success"}
        self.progress(
            f"demonstrations {done}/{self.total}, {rate:.1f}/s, ETA {(self.total - done) / rate:.0f} s, "
            f"not successful: {lost or 'none'}"
        )


async def record_demonstrations(
    config: StudyConfig,
    out: Path,
    provider: BrowserDesktopProvider,
    progress: Callable[[str], None] = logger.info,
) -> Recording:
    """Record ``config.nano.demonstrations`` episodes under ``out`` on ``config.desktop.count`` desktops.

    Raises ``UserError`` if the screen cannot show a page, ``DesktopError`` if desktops do not start or
    more than a twentieth of the episodes is no success: the expert is right unless something is broken.
    """
    check_screen(config)
    began = time.monotonic()
    clear_unfinished(out)
    recorder = _Recorder(config, out, provider, progress)
    desktops = await _start(provider, min(config.desktop.count, config.nano.demonstrations))
    try:
        await desktops[0].reset(blank_task())
        tasks = await draw_tasks(desktops[0].devtools, config.nano)
        done = _keep_valid(out, tasks, _made_with(config, recorder.frame))
    except BaseException:
        await asyncio.gather(*(desktop.close() for desktop in desktops))
        raise
    recorder.queue.extend(task for task in tasks if (task.domain, task.id) not in done)
    recorder.total = len(recorder.queue)
    try:
        async with asyncio.TaskGroup() as group:
            for index, desktop in enumerate(desktops):
                group.create_task(recorder.work(f"expert-{index}", desktop))
    except BaseExceptionGroup as errors:
        # The first one ended the recording; the others are its consequences.
        raise errors.exceptions[0] from None
    recording = _summary(out, tasks, recorder.total, time.monotonic() - began)
    lost = recording.episodes - recording.outcomes["success"]
    if lost > MAX_LOST * recording.episodes:
        raise DesktopError(
            f"the expert failed in {lost} of {recording.episodes} demonstrations: {recording.outcomes}"
        )
    write_index(out)
    return recording


def _made_with(config: StudyConfig, frame: Frame) -> dict[str, object]:
    """What decides an episode besides its task."""
    return {
        "screen": list(config.desktop.screen),
        "coordinates_up_to": list(frame.extent),
        "seed": config.nano.seed,
        "scripts": {name: hashlib.sha256(script(name).encode()).hexdigest() for name in SCRIPTS},
    }


def _keep_valid(out: Path, tasks: list[Task], made_with: dict[str, object]) -> dict[tuple[str, str], Path]:
    """The episodes under ``out`` that this recording would make again; all others are removed.

    Others are those of another seed, screen or expert, and those without success (a broken desktop).
    """
    marker = out / "recording.json"
    content = (json.dumps(made_with, indent=1, sort_keys=True) + "\n").encode()
    same = marker.is_file() and marker.read_bytes() == content
    wanted = {(task.domain, task.id): task.sha256 for task in tasks}
    valid = {}
    for key, path in finished_episodes(out).items():
        if same and key in wanted and wanted[key] == _task_of_success(path):
            valid[key] = path
        else:
            discard_episode(path)
    write_atomically(marker, content)
    return valid


def _task_of_success(path: Path) -> str | None:
    """sha256 of the task that an episode solved; None for one that did not, or that cannot be read."""
    try:
        record = read_episode(path)[0]
    except (OSError, ValueError):
        return None
    return record.task_sha256 if record.outcome == "success" else None


async def _start(provider: BrowserDesktopProvider, count: int) -> list[BrowserDesktop]:
    started = await asyncio.gather(
        *(provider.start(f"expert-{index}") for index in range(count)), return_exceptions=True
    )
    desktops = [desktop for desktop in started if not isinstance(desktop, BaseException)]
    problems = [problem for problem in started if isinstance(problem, BaseException)]
    if problems:
        await asyncio.gather(*(desktop.close() for desktop in desktops))
        raise problems[0]
    return desktops


def _summary(out: Path, tasks: list[Task], recorded: int, seconds: float) -> Recording:
    outcomes: Counter[str] = Counter()
    successes: Counter[str] = Counter()
    pages: Counter[str] = Counter()
    found = finished_episodes(out)
    for task in tasks:
        record, _ = read_episode(found[task.domain, task.id])
        outcomes[record.outcome] += 1
        pages[page_of(task)] += 1
        successes[page_of(task)] += record.outcome == "success"
    by_page = {page: (successes[page], n) for page, n in pages.items()}
    return Recording(len(tasks), recorded, seconds, outcomes, by_page)
