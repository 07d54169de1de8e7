"""Scores a task by its own evaluator. Same seams as OSWorld: ``func`` is a metric, ``result`` a getter.

Tasks of our own are scored here; OSWorld's by desktop-env itself (``suites.osworld.client``).
OSWorld: ``desktop_env/desktop_env.py`` (``evaluate``), ``evaluators/getters``, ``evaluators/metrics``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from arpo_replica.actions.types import Action, Fail
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.desktop.client import GuestClient
from arpo_replica.desktop.devtools import DevTools
from arpo_replica.desktop.interface import Score
from arpo_replica.suites.miniwob.pages import read_reward
from arpo_replica.suites.osworld.inventory import refuse_unsupported
from arpo_replica.suites.setup import check_steps, run_steps
from arpo_replica.tasks.model import Task


def _miniwob_reward(reward: float | None) -> float:
    """Reward of MiniWoB++ (-1 to 1, 0 for no end) as a score in [0, 1]; partial rewards are kept."""
    return 0.0 if reward is None else min(max(reward, 0.0), 1.0)


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


GETTERS = {"miniwob_episode": read_reward}
METRICS = {"miniwob_reward": _miniwob_reward}


def uses_osworld(task: Task) -> bool:
    """True if desktop-env sets the task up and scores it, in every provider; False for tasks of our own."""
    metric = task.evaluator.get("func")
    return metric is not None and not (isinstance(metric, str) and metric in METRICS)


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
    check_steps(task, task.config)
    metric = task.evaluator.get("func")
    getter = (task.evaluator.get("result") or {}).get("type") if isinstance(metric, str) else None
    if not isinstance(metric, str) or metric not in METRICS:
        raise UserError(
            f"Task {task.domain}/{task.id}: the evaluator function {metric!r} does not exist here; "
            f"drop the task from its split or use one of: infeasible, {', '.join(METRICS)}."
        )
    if getter not in GETTERS:
        raise UserError(
            f"Task {task.domain}/{task.id}: the result type {getter!r} does not exist here; "
            f"drop the task from its split or use one of: {', '.join(GETTERS)}."
        )
    check_steps(task, task.evaluator.get("postconfig", []))


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


async def evaluate_task(
    task: Task, last_action: Action | None, guest: GuestClient, devtools: DevTools
) -> float:
    """Score in [0, 1] of the state as it is. Raises ``DesktopError``: never a score for a broken desktop."""
    known = verdict(task, last_action)
    if known is not None:
        return known
    try:
        getter = GETTERS[task.evaluator["result"]["type"]]
        metric = METRICS[task.evaluator["func"]]
    except (KeyError, TypeError) as error:
        raise DesktopError(f"task {task.id} has no evaluator that exists here: {error!r}") from error
    await run_steps(task, task.evaluator.get("postconfig", []), guest, devtools)
    result = await getter(devtools)
    found = "the page did not end" if result is None else f"the page ended with reward {result:g}"
    return Score.of(metric(result), "the page ends with reward 1", found)
