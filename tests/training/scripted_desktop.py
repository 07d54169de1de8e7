"""A desktop and a parser whose every answer is a function of what the policy wrote: nothing depends on time.

``make_parser`` takes any text for an action, so that a model with random weights has whole episodes; what it
does decides the screens and the score.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any

from PIL import Image, ImageDraw

from arpo_replica.actions.types import Action, Click
from arpo_replica.base.errors import FormatError
from arpo_replica.desktop.interface import Desktop
from arpo_replica.tasks.model import Task

SUCCESSES = 2
"""Of ten episodes, about so many succeed."""


def number(*parts: object) -> int:
    """A number that follows from the parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


class ScriptedDesktop:
    """One of them."""

    def __init__(self, screen: tuple[int, int]) -> None:
        self.screen = screen
        self.ran_on: dict[str, str] = {}
        self.past: list[object] = []

    async def reset(self, task: Task) -> None:
        self.past = [task.id]

    async def screenshot(self) -> bytes:
        image = Image.new("RGB", self.screen, (240, 240, 240))
        x, y = (number(side, *self.past) % (side - 40) for side in self.screen)
        ImageDraw.Draw(image).rectangle((x, y, x + 40, y + 20), fill=(0, 90, 200))
        out = io.BytesIO()
        image.save(out, "PNG")
        return out.getvalue()

    async def act(self, action: Action, action_id: str) -> None:
        self.past.append(action)

    async def evaluate(self, task: Task, last_action: Action | None) -> float:
        return float(number(*self.past, last_action) % 10 < SUCCESSES)

    async def close(self) -> None:
        pass


class ScriptedProvider:
    """Makes them."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def check(self) -> None:
        pass

    async def start(self, name: str) -> Desktop:
        return ScriptedDesktop(self.config.screen)

    def describe(self) -> dict[str, Any]:
        return {"provider": "scripted"}


class ScriptedParser:
    """Any text is a click somewhere; one in eight is no action at all."""

    def __init__(self, screen: tuple[int, int]) -> None:
        self.screen = screen

    def actions(self, text: str) -> list[Action]:
        if number("format", text) % 8 == 0:
            raise FormatError("no action")
        x, y = (number(side, text) % side for side in self.screen)
        return [Click(x, y)]


def make_parser(config: Any) -> ScriptedParser:
    """See ``Job.parser``."""
    return ScriptedParser(config.desktop.screen)
