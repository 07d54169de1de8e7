"""A scripted expert for the MiniWoB++ pages: the teacher of the nano policy.

It reads the page through DevTools to know where the target is and answers in UI-TARS's text, as a
perfect policy would; its clicks and keys go through the real mouse and keyboard like any policy's.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass

from arpo_replica.actions.coordinates import Frame
from arpo_replica.actions.parse import format_reply
from arpo_replica.actions.types import Action, Click, Finished, TypeText
from arpo_replica.base.errors import DesktopError
from arpo_replica.desktop.devtools import DevTools
from arpo_replica.policy.endpoint import Reply
from arpo_replica.suites.miniwob.pages import END_COLOR, script, task_page
from arpo_replica.tasks.model import Task


@dataclass(frozen=True)
class Expert:
    """The expert on one desktop (``policy.endpoint.Policy``)."""

    devtools: DevTools
    frame: Frame
    """Maps its screen pixels to the coordinates that the policy is to write."""

    def start(self, task: Task) -> ExpertConversation:
        """A fresh episode. The same task gives the same clicks again."""
        return ExpertConversation(task, self.devtools, self.frame)


class ExpertConversation:
    """One episode of the expert (``policy.endpoint.Conversation``)."""

    def __init__(self, task: Task, devtools: DevTools, frame: Frame) -> None:
        self._devtools = devtools
        self._frame = frame
        # Seeded by the task alone: neither the order of episodes nor the desktop may matter.
        self._random = random.Random(f"expert/{task.id}")

    async def reply(self, screenshot: bytes) -> Reply:
        """The next step, in UI-TARS's text.

        Raises ``DesktopError`` where the page offers no way on, or is ahead of the screenshot at the end:
        a pupil must not be shown that it is over while it cannot see it.
        """
        u, v = self._random.random(), self._random.random()
        page = await task_page(self._devtools)
        step = await self._devtools.evaluate(f"({script('miniwob_expert.js')})({u!r}, {v!r})", page)
        action: Action
        match step:
            case {"kind": "click", "x": int(x), "y": int(y)}:
                action = Click(x, y)
            case {"kind": "type", "text": str(text)}:
                action = TypeText(text)
            case {"kind": "finished", "x": int(x), "y": int(y)}:
                if not _shows_end(screenshot, x, y):
                    raise DesktopError("the screenshot is older than the page: it does not show the end")
                action = Finished()
            case _:
                raise DesktopError(f"the expert's script answered {step!r}")
        return Reply(format_reply(step["thought"], action, self._frame), 0, 0)


def _shows_end(screenshot: bytes, x: int, y: int) -> bool:
    from PIL import Image

    with Image.open(io.BytesIO(screenshot)) as image:
        return image.convert("RGB").getpixel((x, y)) == END_COLOR
