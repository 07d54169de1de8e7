"""The closed set of actions a policy may take, in screen pixels.

Model output becomes one of these or a ``FormatError``; nothing else ever reaches a desktop.
Actions of UI-TARS: paper of UI-TARS (arXiv 2501.12326) and the prompt in the package ``ui-tars``.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

Direction = Literal["up", "down", "left", "right"]


@dataclass(frozen=True, slots=True)
class Action:
    """Base of all actions. ``kind`` is the word used in JSON."""

    kind: ClassVar[str] = ""

    def to_json(self) -> dict[str, Any]:
        """The action as the guest server and ``steps.jsonl`` see it: ``{"type": kind, **fields}``."""
        return {"type": self.kind, **asdict(self)}


@dataclass(frozen=True, slots=True)
class AtPoint(Action):
    """Something of the mouse at (x, y)."""

    x: int
    y: int


class Click(AtPoint):
    kind = "click"


class DoubleClick(AtPoint):
    kind = "double_click"


class RightClick(AtPoint):
    kind = "right_click"


@dataclass(frozen=True, slots=True)
class Drag(Action):
    """Press at (x, y), move to (to_x, to_y), release."""

    x: int
    y: int
    to_x: int
    to_y: int
    kind: ClassVar[str] = "drag"


@dataclass(frozen=True, slots=True)
class Scroll(Action):
    """Scroll five notches at (x, y), or where the pointer is if both are None."""

    direction: Direction
    x: int | None = None
    y: int | None = None
    kind: ClassVar[str] = "scroll"


@dataclass(frozen=True, slots=True)
class Hotkey(Action):
    """Press the keys together, e.g. ``("ctrl", "c")``. Names are lower case, as in UI-TARS's prompt."""

    keys: tuple[str, ...]
    kind: ClassVar[str] = "hotkey"


@dataclass(frozen=True, slots=True)
class TypeText(Action):
    """Type the text into the focused element; a newline is the Enter key."""

    text: str
    kind: ClassVar[str] = "type_text"


@dataclass(frozen=True, slots=True)
class Wait(Action):
    """Do nothing for a moment and look again."""

    kind: ClassVar[str] = "wait"


@dataclass(frozen=True, slots=True)
class Finished(Action):
    """The policy says that the task is done."""

    content: str = ""
    kind: ClassVar[str] = "finished"


@dataclass(frozen=True, slots=True)
class Fail(Action):
    """The policy says that the task cannot be done (``call_user``, ``error_env``)."""

    reason: str = ""
    kind: ClassVar[str] = "fail"


ACTIONS: dict[str, type[Action]] = {
    cls.kind: cls
    for cls in (Click, DoubleClick, RightClick, Drag, Scroll, Hotkey, TypeText, Wait, Finished, Fail)
}


def same_action(one: Action, other: Action, reach: float) -> bool:
    """Whether two actions do the same: points at most ``reach`` pixels apart, in x and in y, are one place.

    Final words (``finished``, ``fail``) are the same whatever they say.
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, Finished | Fail):
        return True
    mine, yours = one.to_json(), other.to_json()
    for name, value in mine.items():
        point = name in ("x", "y", "to_x", "to_y") and isinstance(value, int) and isinstance(yours[name], int)
        if abs(value - yours[name]) > reach if point else value != yours[name]:
            return False
    return True


def from_json(data: dict[str, Any]) -> Action:
    """The inverse of ``Action.to_json``. Raises ValueError for anything that is no action."""
    values = dict(data)
    cls = ACTIONS.get(values.pop("type", None))
    if cls is None or set(values) - {f.name for f in fields(cls)}:
        raise ValueError(f"no action: {data!r}")
    if "keys" in values:
        values["keys"] = tuple(values["keys"])
    return cls(**values)
