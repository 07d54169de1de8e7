"""Scores a task by its own evaluator. Same seams as OSWorld: ``func`` is a metric, ``result`` a getter.

OSWorld: ``desktop_env/desktop_env.py`` (``evaluate``), ``evaluators/getters``, ``evaluators/metrics``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from arpo_replica.actions.types import Action, Fail
from arpo_replica.desktop.devtools import DevTools
from arpo_replica.errors import DesktopError, UserError
from arpo_replica.tasks.miniwob import read_reward
from arpo_replica.tasks.model import Task
from arpo_replica.tasks.setup import Guest, check_steps, run_steps

Getter = Callable[[dict[str, Any], Guest, DevTools], Awaitable[Any]]
Metric = Callable[[Any], float]


async def _miniwob_episode(config: dict[str, Any], guest: Guest, devtools: DevTools) -> float | None:
    return await read_reward(devtools)


def _miniwob_reward(reward: float | None) -> float:
    """Reward of MiniWoB++ (-1 to 1, 0 for no end) as a score in [0, 1]; partial rewards are kept."""
    return 0.0 if reward is None else min(max(reward, 0.0), 1.0)


GETTERS: dict[str, Getter] = {"miniwob_episode": _miniwob_episode}
METRICS: dict[str, Metric] = {"miniwob_reward": _miniwob_reward}


def check_evaluator(task: Task) -> None:
    """Refuse a task whose metric or getter does not exist here. Raises ``UserError``."""
    if task.infeasible:
        return
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


async def evaluate_task(task: Task, last_action: Action | None, guest: Guest, devtools: DevTools) -> float:
    """Score in [0, 1] of the state as it is. Raises ``DesktopError``: never a score for a broken desktop.

    As in OSWorld, a last action FAIL is right on an infeasible task and wrong on any other, and the
    state does not matter then.
    """
    failed = isinstance(last_action, Fail)
    if task.infeasible or failed:
        return float(task.infeasible and failed)
    try:
        getter = GETTERS[task.evaluator["result"]["type"]]
        metric = METRICS[task.evaluator["func"]]
    except (KeyError, TypeError) as error:
        raise DesktopError(f"task {task.id} has no evaluator that exists here: {error!r}") from error
    await run_steps(task, task.evaluator.get("postconfig", []), guest, devtools)
    return metric(await getter(task.evaluator["result"], guest, devtools))
