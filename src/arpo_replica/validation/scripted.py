"""Policies that no model stands behind: they give up, declare success, or replay a script.

What they say is UI-TARS's text in screen pixels, read by the same parser, applied by the same mouse and
keyboard and recorded like the replies of a model (``ScreenParser`` reads it).
"""

from __future__ import annotations

import io
from collections.abc import Mapping

from arpo_replica.actions.parse import UITarsParser
from arpo_replica.policy.interface import Conversation, Reply
from arpo_replica.tasks.model import Task
from arpo_replica.validation.oracles import Look, Oracle

PATIENCE = 60
"""Most waits in a row for what a step has to see: half a minute or more."""
NEAR = 12
"""Largest difference of a colour channel that still counts as the colour that a step has to see."""
DONE, FAIL = "finished()", "call_user()"


def screen_parser(screen: tuple[int, int]) -> UITarsParser:
    """The parser of scripted replies: their points are pixels of the screen."""
    return UITarsParser("absolute", screen, screen)


def reply_of(thought: str, action: str) -> Reply:
    """A reply in the format of the prompt. It cost no tokens."""
    return Reply(f"Thought: {thought}\nAction: {action}", 0, 0)


class EndsAtOnce:
    """A policy that ends every episode with its first reply, before it did anything."""

    def __init__(self, action: str) -> None:
        """``action``: ``DONE`` (OSWorld's DONE) or ``FAIL`` (OSWorld's FAIL)."""
        self._action = action

    def start(self, task: Task) -> Conversation:
        """See ``policy.interface.Policy``."""
        return self

    async def reply(self, screenshot: bytes) -> Reply:
        """The one reply; see ``policy.interface.Conversation``."""
        return reply_of("This episode ends here.", self._action)


class ScriptedOracle:
    """Replays the committed script of a task (``policy.interface.Policy``)."""

    def __init__(self, oracles: Mapping[str, Oracle]) -> None:
        """``oracles``: task id -> script."""
        self._oracles = oracles

    def start(self, task: Task) -> ScriptedConversation:
        """A fresh replay. KeyError for a task without a script."""
        return ScriptedConversation(self._oracles[task.id])


class ScriptedConversation:
    """One replay (``policy.interface.Conversation``).

    A step that has to see something waits for it, by as many ``wait()`` as it takes; if it never comes the
    episode is given up, which scores 0 on a feasible task. After the last step it says ``finished()``.
    """

    def __init__(self, oracle: Oracle) -> None:
        self._steps = list(oracle.steps)
        self._next = 0
        self._waited = 0

    async def reply(self, screenshot: bytes) -> Reply:
        """The next step, or a wait for what it has to see."""
        if self._next == len(self._steps):
            return reply_of("All steps are done.", DONE)
        step = self._steps[self._next]
        if step.see is not None and not sees(screenshot, step.see):
            self._waited += 1
            if self._waited > PATIENCE:
                return reply_of(f"Step {self._next + 1} never saw what it waits for.", FAIL)
            return reply_of("It is not there yet.", "wait()")
        self._next += 1
        self._waited = 0
        return reply_of(step.thought, step.action)


def sees(screenshot: bytes, look: Look) -> bool:
    """True if the screenshot (PNG) has about that colour at that point."""
    from PIL import Image

    with Image.open(io.BytesIO(screenshot)) as image:
        seen = image.convert("RGB").getpixel(look.point)
    assert isinstance(seen, tuple)
    return all(abs(a - b) <= NEAR for a, b in zip(seen, look.rgb, strict=True))
