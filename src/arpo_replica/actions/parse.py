"""UI-TARS's text -> typed actions, and back. The only place where model text is read; nothing is evaluated.

    Thought: ...
    Action: click(point='<point>x y</point>')                  package ui-tars, COMPUTER_USE_DOUBAO
    Action: click(start_box='<|box_start|>(x,y)<|box_end|>')   UI-TARS, UI-TARS-1.5, ARPO

What is a valid reply:

* Only the text after the last ``Action:`` counts. A marker that begins a line goes before one inside a
  line, so that ``type(content='Action: x')`` is read as it is meant. No marker: ``FormatError``.
* That text must be calls and nothing else (``syntax``). All are checked, whatever then runs. Of several,
  ``policy.actions_per_reply`` decides: the first, so that the policy sees what it did before it acts again;
  or all, as in ARPO's release and OSWorld's agents. There a control action (``finished``, ``wait``,
  ``call_user``, ``error_env``) stands for its whole reply.
* An unknown name, key or argument, a repeated or missing argument: ``FormatError``. Arguments that change
  nothing are passed over where upstream's parsers act: ``wait(5)``, ``finished(answer='42')``,
  ``scroll(..., steps='3')``.
* A point outside the screen is moved to its edge (``Frame.to_screen``), no penalty.
* ``left_single`` = click, ``select`` = drag; ``press`` of one key is a hotkey of one key. ``hover``,
  ``mouse_down``, ``keydown`` and the like are in no prompt that we use and in no typed action.
* ``call_user`` and ``error_env`` end the episode as OSWorld's FAIL, as in ARPO.

docs/actions.md compares this, construct by construct, with ARPO's released parser and OSWorld's.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from arpo_replica.actions import types as t
from arpo_replica.actions.coordinates import Frame
from arpo_replica.actions.keys import read_keys
from arpo_replica.actions.syntax import Call, read_calls
from arpo_replica.actions.types import Action, Direction
from arpo_replica.base.errors import FormatError
from arpo_replica.config.policy import PolicyConfig

MAX_REPLY = 100_000
"""Longest reply that is looked at, in characters."""
MAX_TEXT = 4_096
"""Longest text of one ``type``, ``finished`` or ``call_user``, in characters."""
MAX_POINT = 200
"""Longest text of a point, in characters; the longest that means one has under 100."""
MAX_CALLS = 16
MAX_KEYS = 4
"""Keys of one hotkey. The prompt asks for at most 3; window managers know some of 4."""

_MARKER_AT_LINE_START = re.compile(r"^[ \t]*+Action:", re.MULTILINE)
_NUMBER = r"[+-]?+(?:\d{1,6}+(?:\.\d*+)?+|\.\d++)"
_SEPARATOR = r"(?:\s*+,\s*+|\s++)"
_NUMBERS = re.compile(rf"{_NUMBER}(?:{_SEPARATOR}{_NUMBER}){{1,3}}")
_BRACKETS = re.compile(r"<\|(?:box|point)_(?:start|end)\|>|</?(?:point|bbox|box)>|[()\[\]]")
"""What stands around the numbers of a point; which of it, and whether it is closed, says nothing."""
_DIRECTIONS: tuple[Direction, ...] = ("up", "down", "left", "right")
_START = ("point", "start_point", "start_box")
_END = ("end_point", "end_box")
_CONTROL = (t.Finished, t.Wait, t.Fail)
_LENIENT = frozenset({"wait", "finished", "scroll", "call_user", "error_env"})
"""Calls whose unknown arguments, and those without a name, are passed over."""


@dataclass(frozen=True, slots=True)
class UITarsParser:
    """Reads replies of UI-TARS (a ``ReplyParser``)."""

    frame: Frame
    per_reply: Literal["first", "all"] = "first"

    @classmethod
    def of(cls, policy: PolicyConfig, screen: tuple[int, int]) -> UITarsParser:
        """The parser for a policy that looks at screens of this size."""
        return cls(Frame.of(policy, screen), policy.actions_per_reply)

    def parse(self, text: str) -> Action:
        """The first action of ``actions``."""
        return self.actions(text)[0]

    def actions(self, text: str) -> list[Action]:
        """What the reply does, in order, in screen pixels; never empty. Raises ``FormatError``."""
        actions = [_build(call, self.frame) for call in read_calls(action_text(text), MAX_CALLS)]
        if self.per_reply == "first":
            return actions[:1]
        control = next((action for action in actions if isinstance(action, _CONTROL)), None)
        return actions if control is None else [control]


def action_text(reply: str) -> str:
    """What follows the last ``Action:`` of a reply. Raises ``FormatError`` if there is none."""
    if len(reply) > MAX_REPLY:
        raise FormatError(f"the reply has more than {MAX_REPLY} characters")
    at_line_start = list(_MARKER_AT_LINE_START.finditer(reply))
    if at_line_start:
        return reply[at_line_start[-1].end() :]
    _, marker, after = reply.rpartition("Action:")
    if not marker:
        raise FormatError("the reply has no 'Action:'")
    return after


def _quote(text: str) -> str:
    return ascii(text[:24]) if text else "an empty string"


class _Arguments:
    """The arguments of one call; every one must be asked for, but those of ``_LENIENT`` calls."""

    def __init__(self, call: Call) -> None:
        self.name = call.name
        self.left = dict(call.arguments)
        self.extra = call.extra

    def take(self, *names: str) -> str | None:
        found = [name for name in names if name in self.left]
        if len(found) > 1:
            raise FormatError(f"{self.name} has both '{found[0]}' and '{found[1]}'")
        return self.left.pop(found[0]) if found else None

    def need(self, *names: str) -> str:
        value = self.take(*names)
        if value is None:
            raise FormatError(f"{self.name} lacks the argument '{names[0]}'")
        return value

    def done(self) -> None:
        unknown = next(iter(self.left), self.extra)
        if unknown is not None and self.name not in _LENIENT:
            raise FormatError(f"{self.name} has no argument {_quote(unknown)}")


def _build(call: Call, frame: Frame) -> Action:
    build = _BUILDERS.get(call.name)
    if build is None:
        raise FormatError(f"there is no action '{call.name}'")
    arguments = _Arguments(call)
    action = build(arguments, frame)
    arguments.done()
    return action


def _point(text: str, frame: Frame) -> tuple[int, int]:
    """The screen pixel of a point, or of the middle of a box of four numbers."""
    if len(text) <= MAX_POINT:
        bare = _BRACKETS.sub(" ", text).strip()
        values = [float(number) for number in re.findall(_NUMBER, bare)] if _NUMBERS.fullmatch(bare) else []
        if len(values) == 2:
            return frame.to_screen(*values)
        if len(values) == 4:
            return frame.to_screen((values[0] + values[2]) / 2, (values[1] + values[3]) / 2)
    raise FormatError(f"no point: {_quote(text)}")


def _text(text: str) -> str:
    """Text that may be typed: bounded, no control characters but newline and tab."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if len(text) > MAX_TEXT:
        raise FormatError(f"a text has more than {MAX_TEXT} characters")
    for character in text:
        if character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cs"):
            raise FormatError(f"a text has the control character {character!a}")
    return text


def _click(cls: type[t.Click | t.DoubleClick | t.RightClick]) -> Callable[[_Arguments, Frame], Action]:
    return lambda arguments, frame: cls(*_point(arguments.need(*_START), frame))


def _drag(arguments: _Arguments, frame: Frame) -> Action:
    return t.Drag(*_point(arguments.need(*_START), frame), *_point(arguments.need(*_END), frame))


def _scroll(arguments: _Arguments, frame: Frame) -> Action:
    written = arguments.need("direction")
    # 'scroll down' is down; of several, up goes first, as in upstream's parsers.
    direction = next((word for word in _DIRECTIONS if word in written.lower()), None)
    if direction is None:
        raise FormatError(f"no direction: {_quote(written)}")
    point = arguments.take(*_START)
    return t.Scroll(direction, *_point(point, frame)) if point and point.strip() else t.Scroll(direction)


def _hotkey(arguments: _Arguments, _: Frame) -> t.Hotkey:
    keys = read_keys(arguments.need("key", "hotkey", "press"))
    if not 1 <= len(keys) <= MAX_KEYS:
        raise FormatError(f"a hotkey has 1 to {MAX_KEYS} keys, not {len(keys)}")
    return t.Hotkey(keys)


def _press(arguments: _Arguments, frame: Frame) -> Action:
    action = _hotkey(arguments, frame)
    if len(action.keys) > 1:
        raise FormatError("press takes one key")
    return action


_BUILDERS: dict[str, Callable[[_Arguments, Frame], Action]] = {
    "click": _click(t.Click),
    "left_single": _click(t.Click),
    "left_double": _click(t.DoubleClick),
    "right_single": _click(t.RightClick),
    "drag": _drag,
    "select": _drag,
    "hotkey": _hotkey,
    "press": _press,
    "type": lambda arguments, _: t.TypeText(_text(arguments.need("content"))),
    "scroll": _scroll,
    "wait": lambda arguments, _: t.Wait(),
    "finished": lambda arguments, _: t.Finished(_text(arguments.take("content") or "")),
    "call_user": lambda arguments, _: t.Fail(_text(arguments.take("content") or "call_user")),
    "error_env": lambda arguments, _: t.Fail(_text(arguments.take("content") or "error_env")),
}


# --- and back: what a perfect policy would have written ----------------------------------------


def format_reply(thought: str, action: Action, frame: Frame) -> str:
    """A whole reply in the prompt's output format. ``thought`` must be one line without ``Action:``."""
    return f"Thought: {thought}\nAction: {format_action(action, frame)}"


def format_action(action: Action, frame: Frame) -> str:
    """The call in the format of COMPUTER_USE_DOUBAO, without ``Action:``; ``frame`` maps the points."""
    name, arguments = _call_of(action, frame)
    written = ", ".join(f"{key}='{value}'" for key, value in arguments.items())
    return f"{name}({written})"


def _call_of(action: Action, frame: Frame) -> tuple[str, dict[str, str]]:  # noqa: PLR0911  # one per kind
    def point(x: int, y: int) -> str:
        x, y = frame.to_policy(x, y)
        return f"<point>{x} {y}</point>"

    match action:
        case t.Click(x, y):
            return "click", {"point": point(x, y)}
        case t.DoubleClick(x, y):
            return "left_double", {"point": point(x, y)}
        case t.RightClick(x, y):
            return "right_single", {"point": point(x, y)}
        case t.Drag(x, y, to_x, to_y):
            return "drag", {"start_point": point(x, y), "end_point": point(to_x, to_y)}
        case t.Scroll(direction, x, y):
            at = {} if x is None or y is None else {"point": point(x, y)}
            return "scroll", {**at, "direction": direction}
        case t.Hotkey(keys):
            return "hotkey", {"key": _escape(" ".join(keys))}
        case t.TypeText(text):
            return "type", {"content": _escape(text)}
        case t.Finished(content):
            return "finished", {"content": _escape(content)}
        case t.Fail(reason):
            return "call_user", {"content": _escape(reason)}
        case t.Wait():
            return "wait", {}
    raise ValueError(f"no action: {action!r}")


def _escape(text: str) -> str:
    return (
        text.replace("\\", "\\\\")
        .replace("'", "\\'")
        .replace('"', '\\"')
        .replace("\n", "\\n")
        .replace("\t", "\\t")
    )
