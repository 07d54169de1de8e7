"""A typed action -> UI-TARS's text: what a perfect policy would have written. Inverse of ``parse``."""

from __future__ import annotations

from arpo_replica.actions.coordinates import Frame
from arpo_replica.actions.types import (
    Action,
    Click,
    DoubleClick,
    Drag,
    Fail,
    Finished,
    Hotkey,
    RightClick,
    Scroll,
    TypeText,
    Wait,
)

_CLICKS: dict[type[Action], str] = {
    Click: "click",
    DoubleClick: "left_double",
    RightClick: "right_single",
}


def format_action(action: Action, frame: Frame) -> str:
    """The call in the format of COMPUTER_USE_DOUBAO, without ``Action:``; ``frame`` maps the points."""
    name, arguments = _call(action, frame)
    written = ", ".join(f"{key}='{value}'" for key, value in arguments.items())
    return f"{name}({written})"


def _call(action: Action, frame: Frame) -> tuple[str, dict[str, str]]:
    name, arguments = "", {}
    match action:
        case Click() | DoubleClick() | RightClick():
            name, arguments = _CLICKS[type(action)], {"point": _point(action.x, action.y, frame)}
        case Drag():
            start = _point(action.x, action.y, frame)
            end = _point(action.to_x, action.to_y, frame)
            name, arguments = "drag", {"start_point": start, "end_point": end}
        case Scroll():
            if action.x is not None and action.y is not None:
                arguments["point"] = _point(action.x, action.y, frame)
            name, arguments["direction"] = "scroll", action.direction
        case Hotkey():
            name, arguments = "hotkey", {"key": _escape(" ".join(action.keys))}
        case TypeText():
            name, arguments = "type", {"content": _escape(action.text)}
        case Finished():
            name, arguments = "finished", {"content": _escape(action.content)}
        case Fail():
            name, arguments = "call_user", {"content": _escape(action.reason)}
        case Wait():
            name = "wait"
        case _:
            raise ValueError(f"no action: {action!r}")
    return name, arguments


def format_reply(thought: str, action: Action, frame: Frame) -> str:
    """A whole reply in the prompt's output format. ``thought`` must be one line without ``Action:``."""
    return f"Thought: {thought}\nAction: {format_action(action, frame)}"


def _point(x: int, y: int, frame: Frame) -> str:
    x, y = frame.to_policy(x, y)
    return f"<point>{x} {y}</point>"


def _escape(text: str) -> str:
    return (
        text.replace("\\", "\\\\")
        .replace("'", "\\'")
        .replace('"', '\\"')
        .replace("\n", "\\n")
        .replace("\t", "\\t")
    )
