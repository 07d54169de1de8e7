"""A desktop, a provider and a policy without any process, for tests of what drives them."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from arpo_replica.actions.types import Action, Fail
from arpo_replica.base.errors import DesktopError
from arpo_replica.config.models import StudyConfig
from arpo_replica.policy.endpoint import Reply
from arpo_replica.rollout.records import EpisodeRecord, StepRecord
from arpo_replica.tasks.model import Task

SCREEN = (168, 224)
CLICK = "Thought: I click.\nAction: click(point='<point>10 20</point>')"
FINISHED = "Thought: Done.\nAction: finished(content='')"


def png(colour: tuple[int, int, int] = (20, 40, 60), size: tuple[int, int] = SCREEN) -> bytes:
    """A screenshot of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def small_study(screen: tuple[int, int], **sections: Any) -> StudyConfig:
    """The config of a nano study with one stage on one split; ``sections``: further ones."""
    return StudyConfig.model_validate(
        {
            **{"study": "test", "size": "nano", "desktop": {"screen": list(screen)}},
            "tasks": {"splits": {"one": "data/splits/one.json"}},
            "policy": {"min_pixels": 3136, "max_pixels": 100352, "max_images": 3, "max_model_len": 1024},
            "training": {"stages": [{"name": "one", "split": "one", "steps": 1}]},
            "evaluation": {"splits": ["one"]},
            **sections,
        }
    )


def make_task(number: int = 0, func: str = "fake", domain: str = "fake") -> Task:
    """A task ``task-000`` with an evaluator of that name."""
    name = f"task-{number:03d}"
    evaluator = {"func": func}
    return Task(name, domain, f"Do {name}.", [], evaluator, {}, f"sha-of-{name}")


def episode_record(task: Task | None = None, **changes: Any) -> EpisodeRecord:
    """The record of a success of the base policy; ``changes``: its other values."""
    task = task or make_task()
    values = {
        **{"task_id": task.id, "domain": task.domain, "task_sha256": task.sha256},
        **{"instruction": task.instruction, "infeasible": False},
        **{"arm": "base", "seed": 0, "stage": "base", "split": "test_in", "trial": 0},
        **{"size": "nano", "desktop": "process", "checkpoint_sha256": "c", "sampling": {}},
        **{"outcome": "success", "hard_score": 1.0, "standard_score": 1.0, "format_errors": 0},
        **{"n_steps": 1, "attempts": 1, "errors": [], "final_screenshot": None},
        **{"started_at": 0.0, "duration_s": 1.0},
    }
    return EpisodeRecord(**(values | changes))


def step_record(index: int, text: str, **changes: Any) -> StepRecord:
    """The record of a reply that was no action and took no time."""
    values = {
        **{"index": index, "text": text, "action": None, "action_id": None, "format_error": None},
        **{"screenshot": f"step_{index:03d}.webp", "model_s": 0.0, "env_s": 0.0},
        **{"prompt_tokens": 0, "completion_tokens": 0},
    }
    return StepRecord(**(values | changes))


class FakeDesktop:
    """Counts what happens to it. ``hook(event, desktop)`` may raise at ``reset``, ``act``, ``evaluate``."""

    def __init__(self, name: str, hook: Callable[[str, FakeDesktop], None], score: float, delay_s: float):
        self.name, self.hook, self.score, self.delay_s = name, hook, score, delay_s
        self.screen = SCREEN
        self.ran_on = {"engine": "fake"}
        self.task: Task | None = None
        self.actions: list[tuple[Action, str]] = []
        self.resets = 0
        self.closed = False

    async def reset(self, task: Task) -> None:
        assert not self.closed
        await asyncio.sleep(self.delay_s)
        self.task = task
        self.resets += 1
        self.actions.clear()
        self.hook("reset", self)

    async def screenshot(self) -> bytes:
        assert not self.closed
        return png((len(self.actions), 40, 60))

    async def act(self, action: Action, action_id: str) -> None:
        await asyncio.sleep(self.delay_s)
        self.actions.append((action, action_id))
        self.hook("act", self)

    async def evaluate(self, task: Task, last_action: Action | None) -> float:
        self.hook("evaluate", self)
        if isinstance(last_action, Fail) or task.infeasible:
            return float(task.infeasible and isinstance(last_action, Fail))
        return self.score

    async def close(self) -> None:
        await asyncio.sleep(0)
        assert not self.closed
        self.closed = True


class FakeProvider:
    """Makes ``FakeDesktop``s and remembers them."""

    def __init__(
        self,
        hook: Callable[[str, FakeDesktop], None] = lambda event, desktop: None,
        *,
        score: float = 1.0,
        delay_s: float = 0.0,
        start: Callable[[int], None] = lambda number: None,
    ):
        self.hook, self.score, self.delay_s, self.start_hook = hook, score, delay_s, start
        self.desktops: list[FakeDesktop] = []
        self.attempts = 0
        self.most = 0
        """Largest number of desktops open at once."""

    def check(self) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {"provider": "fake"}

    async def start(self, name: str) -> FakeDesktop:
        await asyncio.sleep(0)
        self.attempts += 1
        self.start_hook(self.attempts)
        desktop = FakeDesktop(name, self.hook, self.score, self.delay_s)
        self.desktops.append(desktop)
        self.most = max(self.most, sum(not other.closed for other in self.desktops))
        return desktop


class ScriptedPolicy:
    """Gives the same replies in every episode; an exception in the list is raised."""

    def __init__(self, *replies: str | Exception, delay_s: float = 0.0):
        self.replies, self.delay_s = replies, delay_s
        self.conversations = 0

    def start(self, task: Task) -> ScriptedConversation:
        self.conversations += 1
        return ScriptedConversation(self)


class ScriptedConversation:
    def __init__(self, policy: ScriptedPolicy):
        self.policy = policy
        self.turn = 0

    async def again(self) -> Reply:
        return await self.reply(png())

    async def reply(self, screenshot: bytes) -> Reply:
        assert screenshot.startswith(b"\x89PNG")
        await asyncio.sleep(self.policy.delay_s)
        reply = self.policy.replies[min(self.turn, len(self.policy.replies) - 1)]
        self.turn += 1
        if isinstance(reply, Exception):
            raise reply
        return Reply(reply, 100 * self.turn, len(reply))


def broken(*events: str, times: int = 1_000_000) -> Callable[[str, FakeDesktop], None]:
    """A hook that raises ``DesktopError`` at these events, so many times."""
    left = [times]

    def hook(event: str, desktop: FakeDesktop) -> None:
        if event in events and left[0] > 0:
            left[0] -= 1
            raise DesktopError(f"{event} broke")

    return hook


def stop_server() -> None:
    """End the processes that fork evaluators' workers."""
    from arpo_replica.suites.osworld import client

    for server in client._SERVERS.values():
        server.stop()
