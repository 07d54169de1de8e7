"""What every desktop provider offers. The episode loop knows nothing else of a desktop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from arpo_replica.actions.types import Action
from arpo_replica.tasks.model import Task

FRESH_S = 0.2
"""A screenshot that came with an action's answer is what ``screenshot`` returns for so long, once."""


WORDS = 300
"""Most characters of what an evaluator expected, or found."""


class Score(float):
    """A score in [0, 1] that also says what the evaluator wanted and what it found, each in a few words.

    For readers only: a desktop that gives a plain number says neither.
    """

    expected: str = ""
    found: str = ""

    @classmethod
    def of(cls, value: float, expected: object = "", found: object = "") -> Score:
        """``expected`` and ``found`` are cut at ``WORDS`` characters: an evaluator may read whole files."""
        score = cls(value)
        score.expected, score.found = (str(text)[:WORDS] for text in (expected, found))
        return score


class Desktop(Protocol):
    """One desktop with one user in front of it. All methods raise ``DesktopError`` when it is broken."""

    screen: tuple[int, int]
    """Width and height in pixels."""
    ran_on: dict[str, str]
    """For records: the ``pool`` that lends it (a URL; none: this machine), what runs it (``engine``), how its
    ``root`` is mounted, whose ``sudo`` it has, its ``image``'s sha256. What is not known is left out."""

    async def reset(self, task: Task) -> None:
        """Bring the desktop to a clean state, run the task's set-up steps, return when it is ready."""

    async def screenshot(self) -> bytes:
        """The screen with the mouse pointer, as PNG bytes."""

    async def act(self, action: Action, action_id: str) -> None:
        """Apply the action at most once: an id seen before is ignored, a lost answer is never retried.

        Returns when the effect of the action can be seen. ``Finished`` and ``Fail`` never get here.
        """

    async def evaluate(self, task: Task, last_action: Action | None) -> float:
        """Score in [0, 1] of the state as it is (hard protocol), by the task's own evaluator.

        ``last_action`` is what the policy did last: a ``Fail`` scores 1 on an infeasible task and
        0 on any other without running the evaluator, as OSWorld does. A ``Score`` also says why.
        """

    async def close(self) -> None:
        """Stop it. No process and no file stays behind. Never raises."""


class DesktopProvider(Protocol):
    """Makes desktops of one kind. Start and close may run concurrently."""

    def check(self) -> None:
        """Refuse early, with a ``UserError``, when this machine cannot run such desktops."""

    async def start(self, name: str) -> Desktop:
        """A running desktop, ready for ``reset``; ``name`` is unique in this process (for logs)."""

    def describe(self) -> dict[str, Any]:
        """Facts for provenance: provider, versions of browser and guest, isolation, screen."""


@dataclass(frozen=True)
class DesktopAddress:
    """Where a desktop is reached over TCP, by OSWorld's own client and evaluators: host and ports."""

    host: str
    server: int
    """The guest server (OSWorld's HTTP API; 5000 inside)."""
    chromium: int
    """Chrome's DevTools (9222 inside)."""
    vlc: int
    """VLC's HTTP interface (8080 inside)."""
