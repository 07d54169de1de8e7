"""Uniform random clicks: what a policy that looks at nothing gets. The floor under every score."""

from __future__ import annotations

import random

from arpo_replica.actions.coordinates import Frame
from arpo_replica.actions.format import format_reply
from arpo_replica.actions.types import Click
from arpo_replica.policy.interface import Reply
from arpo_replica.tasks.model import Task


class RandomClicks:
    """Clicks anywhere on the screen until the step limit (``policy.interface.Policy``).

    It never says ``finished``: under the standard protocol it scores 0; read its hard score.
    """

    def __init__(self, frame: Frame, seed: int = 0) -> None:
        self._frame = frame
        self._seed = seed

    def start(self, task: Task) -> _Conversation:
        """A fresh episode; the same task and seed give the same clicks."""
        return _Conversation(self._frame, random.Random(f"chance/{self._seed}/{task.id}"))


class _Conversation:
    def __init__(self, frame: Frame, source: random.Random) -> None:
        self._frame = frame
        self._random = source

    async def reply(self, screenshot: bytes) -> Reply:
        width, height = self._frame.screen
        point = Click(self._random.randrange(width), self._random.randrange(height))
        return Reply(format_reply("Click somewhere.", point, self._frame), 0, 0)
