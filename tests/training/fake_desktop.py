"""A desktop without a screen, for trainings in tests. Scores follow a rule, not what was done.

Every task succeeds in the first episode that is ever evaluated (``FAKE_STATE`` is a folder that remembers
it over processes) and fails in all later ones. ``FAKE_BREAK`` names tasks whose every attempt breaks,
``FAKE_HOPELESS`` tasks that never succeed; both are separated by commas. ``FAKE_BREAK_FIRST`` (``task:n``)
breaks the first n attempts at a task, ``FAKE_BREAK_AFTER`` all but these. ``FAKE_SLOW`` (``task:seconds``) is
a task whose first action lasts until another update is over, or so long where none can be.
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from arpo_replica.actions.types import Action
from arpo_replica.base.errors import DesktopError
from arpo_replica.base.files import read_rows
from arpo_replica.desktop.interface import Desktop
from arpo_replica.tasks.model import Task
from arpo_replica.training.job import current_job


def setting(name: str, task: str) -> float | None:
    """The number of ``task:number`` in a variable, if it is about this task."""
    named, _, number = os.environ.get(name, "").partition(":")
    return float(number) if named == task else None


def attempt_at(task: str) -> int:
    """1, 2, ... over all desktops."""
    number = 1
    while True:
        try:
            (Path(os.environ["FAKE_STATE"]) / f"{task}.attempt_{number}").touch(exist_ok=False)
            return number
        except FileExistsError:
            number += 1


class FakeDesktop:
    """A button that jumps at every action."""

    def __init__(self, screen: tuple[int, int], seed: int) -> None:
        self.screen = screen
        self.ran_on: dict[str, str] = {}
        self.random = random.Random(seed)
        self.turn = 0
        self.task = ""

    async def reset(self, task: Task) -> None:
        self.turn, self.task = 0, task.id
        first, after = (setting(f"FAKE_BREAK_{name}", task.id) for name in ("FIRST", "AFTER"))
        if first is not None and attempt_at(task.id) <= first:
            raise DesktopError("broken at first")
        if after is not None and attempt_at(task.id) > after:
            raise DesktopError("broken since")
        if task.id in os.environ.get("FAKE_BREAK", "").split(","):
            raise DesktopError("broken on purpose")

    async def screenshot(self) -> bytes:
        image = Image.new("RGB", self.screen, (240, 240, 240))
        draw = ImageDraw.Draw(image)
        x, y = self.random.randrange(self.screen[0] - 50), self.random.randrange(self.screen[1] - 30)
        draw.rectangle((x, y, x + 50, y + 30), fill=(0, 90, 200))
        draw.text((x + 5, y + 8), f"B{self.turn}", fill=(255, 255, 255))
        out = io.BytesIO()
        image.save(out, "PNG")
        return out.getvalue()

    async def act(self, action: Action, action_id: str) -> None:
        if self.turn == 0 and (longest := setting("FAKE_SLOW", self.task)):
            path = current_job().verl_metrics
            before, until = len(read_rows(path)), time.monotonic() + longest
            while len(read_rows(path)) == before and time.monotonic() < until:  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.1)
        self.turn += 1

    async def evaluate(self, task: Task, last_action: Action | None) -> float:
        if task.id in os.environ.get("FAKE_HOPELESS", "").split(","):
            return 0.0
        try:
            (Path(os.environ["FAKE_STATE"]) / task.id).touch(exist_ok=False)
        except FileExistsError:
            return 0.0
        return 1.0

    async def close(self) -> None:
        pass


class FakeProvider:
    """Makes them."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.made = 0

    def check(self) -> None:
        pass

    async def start(self, name: str) -> Desktop:
        self.made += 1
        return FakeDesktop(self.config.screen, self.made)

    def describe(self) -> dict[str, Any]:
        return {"provider": "fake"}
