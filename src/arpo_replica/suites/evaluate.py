"""Sets up and scores tasks of our own, MiniWoB++ pages; ``osworld.client`` does it for OSWorld's.

Types and parameters of steps are OSWorld's (``desktop_env/controllers/setup.py``), but for ``miniwob_start``.
Unlike there, a step that fails always raises, and a type that no task of ours has is refused before any work.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import PurePosixPath
from typing import Any

from arpo_replica.actions.types import Action, Fail
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.desktop.client import Command, GuestClient
from arpo_replica.desktop.devtools import DevTools
from arpo_replica.desktop.interface import Score
from arpo_replica.suites.miniwob.pages import read_reward, start_page
from arpo_replica.suites.osworld.inventory import refuse_unsupported
from arpo_replica.tasks.model import Task


class _Setup:
    """The steps of one task, one method per type; parameters are those of the task file."""

    def __init__(self, task: Task, guest: GuestClient, devtools: DevTools) -> None:
        self.task = task
        self.guest = guest
        self.devtools = devtools
        self.newest_tab: str | None = None

    async def launch(self, command: Command) -> None:
        """A browser that is part of the desktop runs already; a second one would only slow it down."""
        words = command.split() if isinstance(command, str) else command
        program = PurePosixPath(words[0]).name if words else ""
        if self.devtools.context is None or program not in _BROWSERS:
            await self.guest.launch(command)

    async def execute(self, command: Command) -> None:
        result = await self.guest.execute(command)
        if result["returncode"] != 0:
            raise DesktopError(f"{command!r} ended with {result['returncode']}: {result['error'][:200]}")

    async def chrome_open_tabs(self, urls_to_open: list[str]) -> None:
        """The browser's blank first tab, if there is one, shows the first page, as in OSWorld."""
        await self._wait_for_browser()
        pages = await self.devtools.pages()
        blank = next((page.id for page in pages if page.url in _BLANK), None)
        for url in urls_to_open:
            if blank is None:
                self.newest_tab = await self.devtools.open(url)
            else:
                await self.devtools.navigate(url, blank)
                self.newest_tab, blank = blank, None

    async def _wait_for_browser(self) -> None:
        deadline = time.monotonic() + BROWSER_START_S
        while True:
            try:
                await self.devtools.connect()
            except DesktopError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)
            else:
                return

    async def miniwob_start(self, seed: int) -> None:
        """Start the episode of the MiniWoB++ page just opened; its text must be the instruction."""
        text = await start_page(self.devtools, seed, self.newest_tab)
        if text != self.task.instruction:
            raise DesktopError(
                f"task {self.task.id} says {self.task.instruction!r} but its page says {text!r}; "
                "make the task files again"
            )


BROWSER_START_S = 60.0
"""A browser that was launched has to answer on its DevTools port by then."""
_BROWSERS = ("google-chrome", "chromium", "chrome")
_NEW = ("newtab", "new-tab-page", "new-tab-page-third-party")
_BLANK = {"about:blank", *(f"chrome://{name}/" for name in _NEW)}
_STEPS: dict[str, Callable[..., Awaitable[None]]] = {
    name: run for name, run in vars(_Setup).items() if not name.startswith("_")
}
"""A task names these methods alone."""


async def run_setup(task: Task, guest: GuestClient, devtools: DevTools) -> None:
    """Run the task's set-up steps in order. Raises ``DesktopError`` that names the step that failed."""
    setup = _Setup(task, guest, devtools)
    for index, step in enumerate(task.config):
        run = _STEPS.get(str(step.get("type")))
        if run is None:
            raise DesktopError(f"step {index}: there is no set-up step {step.get('type')!r}")
        try:
            await run(setup, **step.get("parameters", {}))
        except (DesktopError, OSError, TypeError, KeyError) as error:
            raise DesktopError(f"set-up step {index} ({step['type']}) failed: {error}") from error


# --- the score ------------------------------------------------------------------------------------------

CHROMIUM_WRITES_S = 3.0
"""Chromium writes its bookmarks 2.5 s after a change, and loses them when it is killed before that. Measured
with a right solution: evaluated up to 1.5 s after the last action it scores 0, from 3 s on 1."""


def seconds_to_settle(task: Task, acted: float | None) -> float:
    """How long an evaluation has to wait for what programs write late; OSWorld's runner always waits 20 s.

    ``acted``: when the last action ended (``time.monotonic()``), None if there was none. Only evaluators that
    kill Chromium have to wait.
    """
    steps = str(task.evaluator.get("postconfig", "")) if acted is not None else ""
    if acted is None or "pkill" not in steps or "chrom" not in steps:
        return 0.0
    return max(0.0, acted + CHROMIUM_WRITES_S - time.monotonic())


EVALUATOR = {"evaluator function": "miniwob_reward", "result type": "miniwob_episode"}
"""Of tasks of ours: the reward of their page."""


def _evaluator(task: Task) -> dict[str, Any]:
    result = task.evaluator.get("result")
    kind = result.get("type") if isinstance(result, dict) else None
    return {"evaluator function": task.evaluator.get("func"), "result type": kind}


def uses_osworld(task: Task) -> bool:
    """True if desktop-env sets the task up and scores it, in every provider; False for tasks of our own."""
    return task.evaluator.get("func") not in (None, EVALUATOR["evaluator function"])


def verdict(task: Task, last_action: Action | None) -> float | None:
    """The score that needs no look at the desktop, or None: the one place for FAIL and infeasible tasks.

    As in OSWorld (``DesktopEnv.evaluate``), a last action FAIL is right on an infeasible task and wrong on
    any other, and the state does not matter then.
    """
    failed = isinstance(last_action, Fail)
    if not (task.infeasible or failed):
        return None
    expected = "FAIL: the task cannot be done" if task.infeasible else "no FAIL: the task can be done"
    return Score.of(float(task.infeasible and failed), expected, "FAIL" if failed else "no FAIL")


def check_task(task: Task) -> None:
    """Refuse a task that cannot be set up or scored here. Raises ``UserError``; needs no desktop."""
    if uses_osworld(task):
        refuse_unsupported(task)
        return
    steps = [("set-up step", step.get("type"), list(_STEPS)) for step in task.config]
    ends = [(what, name, [EVALUATOR[what]]) for what, name in _evaluator(task).items()]
    for what, name, known in [*steps, *ends]:
        if name not in known:
            raise UserError(
                f"Task {task.domain}/{task.id}: the {what} {name!r} does not exist here; "
                f"drop the task from its split or use one of: {', '.join(known)}."
            )


def check_provider(tasks: Iterable[Task], kind: str) -> None:
    """Raises ``UserError`` for a task that desktops of ``kind`` (``DesktopConfig.kind``) cannot run."""
    for task in tasks:
        if kind == "process" and uses_osworld(task):
            raise UserError(
                f"Task {task.domain}/{task.id} is one of OSWorld's: a desktop of provider 'process' has no "
                "programs but a browser; set desktop.provider to 'container' or 'osworld'."
            )
        if kind == "osworld" and not uses_osworld(task):
            raise UserError(
                f"Task {task.domain}/{task.id} is no task of OSWorld; set desktop.provider to 'container' "
                "or 'process'."
            )


async def evaluate_task(task: Task, last_action: Action | None, devtools: DevTools) -> float:
    """Score in [0, 1] of the state as it is. Raises ``DesktopError``: never a score for a broken desktop.

    A page's reward is -1 to 1, and None if it did not end; partial rewards are kept.
    """
    known = verdict(task, last_action)
    if known is not None:
        return known
    if _evaluator(task) != EVALUATOR:
        raise DesktopError(f"task {task.id} has no evaluator that exists here")
    reward = await read_reward(devtools)
    found = "the page did not end" if reward is None else f"the page ended with reward {reward:g}"
    return Score.of(min(max(reward or 0.0, 0.0), 1.0), "the page ends with reward 1", found)
