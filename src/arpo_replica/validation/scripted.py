"""Policies that no model stands behind: they give up, declare success, or replay a committed script.

What they say is UI-TARS's text in screen pixels, read by the same parser, applied by the same mouse and
keyboard and recorded like the replies of a model. A script of ``data/oracles/osworld`` solves a task:

    task: 8ba5ae7a-5ae5-4eab-9fcc-5dd4fe3abf89
    task_sha256: ...                # of the task file that it was written for
    screen: [1920, 1080]            # its points are pixels of this screen
    steps:
      - {thought: The preferences., action: hotkey(key='ctrl p')}
      - thought: Save them.
        see: {point: [640, 192], color: "#8bafdb"}   # wait until the screen has this colour there
        action: click(point='<point>1345 882</point>')

Only what a user can do at the screen: no terminal, no run dialog. A script is for the task file of this hash
alone.
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from arpo_replica.actions.coordinates import Frame
from arpo_replica.actions.parse import UITarsParser
from arpo_replica.actions.types import Fail, Finished, Hotkey
from arpo_replica.base.environments import find
from arpo_replica.base.errors import FormatError, UserError
from arpo_replica.config.load import read_checked
from arpo_replica.config.section import Section
from arpo_replica.policy.endpoint import Conversation, Reply
from arpo_replica.tasks.model import Task

FOLDER = Path("data/oracles/osworld")
PATIENCE = 60
"""Most waits in a row for what a step has to see: half a minute or more."""
NEAR = 12
"""Largest difference of a colour channel that still counts as the colour that a step has to see."""
DONE, FAIL = "finished()", "call_user()"
AROUND_THE_GUI = ({"ctrl", "alt", "t"}, {"alt", "f2"})
"""Hotkeys that open a terminal or a run dialog."""
DOCK_TERMINAL = (0, 520, 70, 590)
"""Where the dock of the container desktop has the terminal: left, top, right, bottom, in pixels."""


class Look(Section):
    """What the screen shows when a step may be taken."""

    point: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
    color: str = Field(pattern=r"^#[0-9a-f]{6}$")

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour's channels, 0 to 255."""
        value = int(self.color[1:], 16)
        return value >> 16, value >> 8 & 255, value & 255


class ScriptedStep(Section):
    thought: str = Field(pattern=r"^[^\n]+$")
    action: str
    see: Look | None = None


class Oracle(Section):
    """The script of one task."""

    task: str
    task_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    screen: tuple[int, int]
    steps: list[ScriptedStep] = Field(min_length=1)

    @field_validator("steps")
    @classmethod
    def _by_mouse_and_keyboard(cls, steps: list[ScriptedStep]) -> list[ScriptedStep]:
        parser = screen_parser((1920, 1080))
        for step in steps:
            try:
                action = parser.parse(f"Action: {step.action}")
            except FormatError as error:
                raise ValueError(f"{step.action}: {error}") from error
            if isinstance(action, Finished | Fail):
                raise ValueError("a script ends by itself: leave 'finished' and 'call_user' out")
            if isinstance(action, Hotkey) and set(action.keys) in AROUND_THE_GUI:
                raise ValueError(f"{step.action} leaves the programs of the task")
            left, top, right, bottom = DOCK_TERMINAL
            x, y = (action.to_json().get(name) for name in ("x", "y"))
            if x is not None and y is not None and left <= x <= right and top <= y <= bottom:
                raise ValueError(f"{step.action} opens the terminal")
        return steps


def load_oracle(path: Path) -> Oracle:
    """Read one script. Raises ``UserError`` that names the file and the fault."""
    return read_checked(path, f"The script {path}", Oracle)


def find_oracles(tasks: Iterable[Task], screen: tuple[int, int], folder: Path = FOLDER) -> dict[str, Oracle]:
    """Task id -> script, for those tasks that have one for this screen; noise leaves a task its script.

    Raises ``UserError`` for a script of another task file than the present one.
    """
    found = {}
    for task in tasks:
        noise = task.raw.get("arpo_noise", {})
        clean = (noise.get("of", task.id), noise.get("of_sha256", task.sha256))
        path = find(folder) / task.domain / f"{clean[0]}.yaml"
        if not path.is_file():
            continue
        oracle = load_oracle(path)
        if (oracle.task, oracle.task_sha256) != clean:
            raise UserError(
                f"The script {path} was written for another task file than {task.domain}/{clean[0]}; "
                "check it against the present one and correct 'task' and 'task_sha256'."
            )
        if oracle.screen == screen:
            found[task.id] = oracle
    return found


# --- the policies ---


def screen_parser(screen: tuple[int, int]) -> UITarsParser:
    """The parser of scripted replies: their points are pixels of the screen."""
    return UITarsParser(Frame("absolute", screen, screen))


def reply_of(thought: str, action: str) -> Reply:
    """A reply in the format of the prompt. It cost no tokens."""
    return Reply(f"Thought: {thought}\nAction: {action}", 0, 0)


@dataclass(frozen=True)
class EndsAtOnce:
    """A policy that ends every episode with its first reply, before it did anything."""

    action: str
    """``DONE`` (OSWorld's DONE) or ``FAIL`` (OSWorld's FAIL)."""

    def start(self, task: Task) -> Conversation:
        return self

    async def reply(self, screenshot: bytes) -> Reply:
        return reply_of("This episode ends here.", self.action)


class ScriptedConversation:
    """One replay (``policy.endpoint.Conversation``).

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


@dataclass(frozen=True)
class ScriptedOracle:
    """Replays the committed script of a task (``policy.endpoint.Policy``)."""

    oracles: Mapping[str, Oracle]
    """Task id -> script."""

    def start(self, task: Task) -> ScriptedConversation:
        """A fresh replay. KeyError for a task without a script."""
        return ScriptedConversation(self.oracles[task.id])


def sees(screenshot: bytes, look: Look) -> bool:
    """True if the screenshot (PNG) has about that colour at that point."""
    from PIL import Image

    with Image.open(io.BytesIO(screenshot)) as image:
        seen = image.convert("RGB").getpixel(look.point)
    assert isinstance(seen, tuple)
    return all(abs(a - b) <= NEAR for a, b in zip(seen, look.rgb, strict=True))
