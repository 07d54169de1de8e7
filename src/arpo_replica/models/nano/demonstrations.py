"""Demonstrations for the nano policy: a scripted expert plays MiniWoB++ pages in the real desktop.

    {out}/miniwob.{page}-s{seed}/   one episode, as every other (``rollout.records``), arm ``expert``
    {out}/recording.json            what decides the episodes besides their tasks
    {out}/episodes.jsonl            the index, written last

The same ``nano.seed`` gives the same pages, clicks and screenshots again; fewer demonstrations are the
first ones of more. What exists of this very recording is kept, so a killed job goes on where it was;
episodes of another seed, screen or expert are removed.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from arpo_replica.actions.coordinates import Frame
from arpo_replica.actions.parse import UITarsParser
from arpo_replica.actions.types import Action, Click, TypeText
from arpo_replica.base.errors import DesktopError
from arpo_replica.base.files import write_atomically
from arpo_replica.config.models import NanoConfig, StudyConfig
from arpo_replica.desktop.devtools import DevTools
from arpo_replica.desktop.interface import Desktop, DesktopProvider
from arpo_replica.models.nano.model import check_screen
from arpo_replica.rollout.collect import OutputRoot, PoolSettings, collect_episodes
from arpo_replica.rollout.episode import EpisodeLimits, Labels
from arpo_replica.rollout.records import discard_episode, finished_episodes, read_episode
from arpo_replica.suites.miniwob.expert import Expert
from arpo_replica.suites.miniwob.pages import (
    DEMONSTRATION_SEEDS,
    SCRIPTS,
    TRAINED_PAGES,
    blank_task,
    make_task,
    read_instructions,
    script,
)
from arpo_replica.tasks.model import Task

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
    whenever it is recorded. Raises ``DesktopError`` when input does not arrive.
    """

    def __init__(self, desktop: BrowserDesktop) -> None:
        self._desktop = desktop
        self._clicks = 0
        self._keys = 0
        self.devtools = desktop.devtools
        self.screen, self.ran_on = desktop.screen, desktop.ran_on
        self.screenshot = desktop.screenshot
        self.evaluate = desktop.evaluate
        self.close = desktop.close

    async def reset(self, task: Task) -> None:
        """See the interface."""
        self._clicks = self._keys = 0
        await self._desktop.reset(task)

    async def act(self, action: Action, action_id: str) -> None:
        """See the interface."""
        await self._desktop.act(action, action_id)
        self._clicks += isinstance(action, Click)
        self._keys += len(action.text) if isinstance(action, TypeText) else 0
        await self._desktop.devtools.evaluate(_DRAWN % (self._clicks, self._keys))
        await self._desktop.screenshot()  # the one kept from before


class BrowserDesktopProvider(DesktopProvider, Protocol):
    """Makes such desktops; the process provider does."""

    async def start(self, name: str) -> BrowserDesktop:
        """A running desktop, ready for ``reset``."""


class SteadyProvider:
    """Makes steady desktops of another provider's."""

    def __init__(self, provider: BrowserDesktopProvider) -> None:
        self._provider = provider
        self.check = provider.check
        self.describe = provider.describe

    async def start(self, name: str) -> SteadyDesktop:
        """See the interface."""
        return SteadyDesktop(await self._provider.start(name))


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


async def record_demonstrations(
    config: StudyConfig, out: Path, provider: BrowserDesktopProvider
) -> Counter[str]:
    """Record ``config.nano.demonstrations`` episodes under ``out``; give their outcomes.

    Raises ``UserError`` if the screen cannot show a page or desktops do not start, ``DesktopError`` if more
    than a twentieth of the episodes is no success: the expert is right unless something is broken.
    """
    check_screen(config)
    desktop = await provider.start("reader")
    try:
        await desktop.reset(blank_task())
        tasks = await draw_tasks(desktop.devtools, config.nano)
    finally:
        await desktop.close()
    frame = Frame.of(config.policy, config.desktop.screen)
    _keep_valid(out, tasks, _made_with(config, frame))
    await collect_episodes(
        [OutputRoot(out, "demonstrations", 0, tasks)],
        provider=SteadyProvider(provider),
        policy=lambda _, desktop: Expert(desktop.devtools, frame),
        parser=UITarsParser.of(config.policy, config.desktop.screen),
        labels=Labels(
            arm="expert",
            seed=config.nano.seed,
            stage="demonstrations",
            size=config.size,
            desktop=config.desktop.provider,
            checkpoint_sha256="",
            sampling={},
        ),
        settings=PoolSettings.of(config, EpisodeLimits.of(config)),
    )
    episodes = finished_episodes(out).values()
    outcomes: Counter[str] = Counter(read_episode(path)[0].outcome for path in episodes)
    lost = outcomes.total() - outcomes["success"]
    if lost > MAX_LOST * outcomes.total():
        (out / "episodes.jsonl").unlink()
        raise DesktopError(f"the expert failed in {lost} of {outcomes.total()} demonstrations: {outcomes}")
    return outcomes


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
