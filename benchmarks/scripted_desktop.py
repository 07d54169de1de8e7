"""Desktops without a screen, for benchmarks on machines that have no Chromium.

Each screenshot is another synthetic window full of rectangles and text in the desktop's own size, so that no
cache knows it. Whatever the policy replies counts as "wait", so that every episode takes all its steps. The
score is a coin, seeded by desktop and episode, so that groups have both outcomes.
"""

from __future__ import annotations

import asyncio
import io
import random
from typing import Any

from PIL import Image, ImageDraw

from arpo_replica.actions.types import Action, Wait
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.config.models import StudyConfig
from arpo_replica.desktop.interface import Desktop
from arpo_replica.tasks.model import Task


def screenshot(size: tuple[int, int], seed: str) -> bytes:
    """A PNG of some windows, buttons and lines of text."""
    numbers = random.Random(seed)
    image = Image.new("RGB", size, tuple(numbers.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for index in range(60):
        x, y = numbers.randrange(size[0]), numbers.randrange(size[1])
        w, h = numbers.randrange(10, size[0] // 4), numbers.randrange(8, size[1] // 4)
        draw.rectangle((x, y, x + w, y + h), fill=tuple(numbers.randrange(256) for _ in range(3)))
        draw.text((x + 2, y + 2), f"{seed} {index} {numbers.random()}", fill=(0, 0, 0))
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


class ScriptedDesktop:
    """See ``Desktop``."""

    def __init__(self, screen: tuple[int, int], name: str) -> None:
        self.screen = screen
        self.ran_on: dict[str, str] = {}
        self.name = name
        self.episode = 0
        self.turn = 0

    async def reset(self, task: Task) -> None:
        self.episode += 1
        self.turn = 0

    async def screenshot(self) -> bytes:
        return await asyncio.to_thread(screenshot, self.screen, f"{self.name}.{self.episode}.{self.turn}")

    async def act(self, action: Action, action_id: str) -> None:
        self.turn += 1

    async def evaluate(self, task: Task, last_action: Action | None) -> float:
        return float(random.Random(f"{self.name}.{self.episode}").random() < 0.5)

    async def close(self) -> None:
        """Nothing to stop."""


class ScriptedProvider:
    """See ``DesktopProvider``."""

    def __init__(self, config: DesktopConfig) -> None:
        self.config = config

    def check(self) -> None:
        """Runs everywhere."""

    async def start(self, name: str) -> Desktop:
        return ScriptedDesktop(self.config.screen, name)

    def describe(self) -> dict[str, Any]:
        return {"provider": "scripted", "screen": list(self.config.screen)}


class AlwaysWait:
    """A parser that finds "wait" in every reply: random weights say nothing that can be parsed."""

    def actions(self, text: str) -> list[Action]:
        return [Wait()]


def make_parser(config: StudyConfig) -> AlwaysWait:
    """What ``Job.parser`` names."""
    return AlwaysWait()
