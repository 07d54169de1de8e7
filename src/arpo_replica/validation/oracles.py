"""Committed scripts that solve tasks of OSWorld by mouse and keyboard: ``data/oracles/osworld``.

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

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from arpo_replica.actions.parse import UITarsParser
from arpo_replica.actions.types import Fail, Finished, Hotkey
from arpo_replica.base.environments import find
from arpo_replica.base.errors import FormatError, UserError
from arpo_replica.config.load import read_yaml
from arpo_replica.tasks.model import Task

FOLDER = Path("data/oracles/osworld")
AROUND_THE_GUI = ({"ctrl", "alt", "t"}, {"alt", "f2"})
"""Hotkeys that open a terminal or a run dialog."""
DOCK_TERMINAL = (0, 520, 70, 590)
"""Where the dock of the container desktop has the terminal: left, top, right, bottom, in pixels."""


class Look(BaseModel):
    """What the screen shows when a step may be taken."""

    model_config = ConfigDict(extra="forbid")

    point: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
    color: str = Field(pattern=r"^#[0-9a-f]{6}$")

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour's channels, 0 to 255."""
        value = int(self.color[1:], 16)
        return value >> 16, value >> 8 & 255, value & 255


class Step(BaseModel):
    """One reply of the script."""

    model_config = ConfigDict(extra="forbid")

    thought: str = Field(pattern=r"^[^\n]+$")
    action: str
    see: Look | None = None


class Oracle(BaseModel):
    """The script of one task."""

    model_config = ConfigDict(extra="forbid")

    task: str
    task_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    screen: tuple[int, int]
    steps: list[Step] = Field(min_length=1)

    @field_validator("steps")
    @classmethod
    def _by_mouse_and_keyboard(cls, steps: list[Step]) -> list[Step]:
        parser = UITarsParser("absolute", (1920, 1080), (1920, 1080))
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
    try:
        return Oracle.model_validate(read_yaml(path, f"The script {path}"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"The script {path} has a fault at '{where}': {first['msg']}.") from error


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
