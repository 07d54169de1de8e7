"""UI-TARS's text -> a typed action. The only place where model text is read; nothing is evaluated.

    Thought: ...
    Action: click(point='<point>x y</point>')                  package ui-tars, COMPUTER_USE_DOUBAO
    Action: click(start_box='<|box_start|>(x,y)<|box_end|>')   UI-TARS, UI-TARS-1.5, ARPO

What is a valid reply:

* Only the text after the last ``Action:`` counts. A marker that begins a line goes before one inside a
  line, so that ``type(content='Action: x')`` is read as it is meant. No marker: ``FormatError``.
* That text must be calls ``name(key='string', ...)`` and nothing else. Several calls, each on lines of
  its own, are all checked and **the first is taken**: the policy gets to see what it did before it acts
  again. (ARPO's runner runs them all, one step each.)
* An unknown name, key or argument, a repeated or missing argument: ``FormatError``. ARPO's runner lets
  an unknown name pass as an action without effect; here it costs the format penalty like other nonsense.
* A point outside the screen is moved to its edge (``Frame.to_screen``), no penalty.
* Aliases read as UI-TARS's own parser reads them: ``left_single`` = click, ``select`` = drag. ``press``
  of one key is a hotkey of one key. ``hover``, ``mouse_down``, ``keydown`` and the like are in no
  prompt that we use and in no typed action: ``FormatError``.
* ``call_user`` and ``error_env`` end the episode as OSWorld's FAIL, as in ARPO.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple, get_args

from arpo_replica.actions.coordinates import Coordinates, Frame
from arpo_replica.actions.keys import key_name
from arpo_replica.actions.types import (
    Action,
    Click,
    Direction,
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
from arpo_replica.config.models import PolicyConfig
from arpo_replica.errors import FormatError

MAX_REPLY = 100_000
"""Longest reply that is looked at, in characters."""
MAX_TEXT = 4_096
"""Longest text of one ``type``, ``finished`` or ``call_user``, in characters."""
MAX_POINT = 200
"""Longest text of a point, in characters; the longest that means one has under 100."""
MAX_CALLS = 16
MAX_KEYS = 4
"""Keys of one hotkey. The prompt asks for at most 3; window managers know some of 4."""

_MARKER_AT_LINE_START = re.compile(r"^[ \t]*Action:", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")
_BLANK = re.compile(r"\s*")
_AFTER_STRING = re.compile(r"\s*(?:\)|,\s*[A-Za-z_][A-Za-z0-9_]{0,31}\s*=)")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"', "\n": ""}
_CODE_POINT = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})")
_NUMBER = r"[+-]?\d{1,6}(?:\.\d{1,6})?"
_NUMBERS = rf"{_NUMBER}(?:(?:\s*,\s*|\s+){_NUMBER}){{1,3}}"
_BOX = re.compile(
    rf"(?:<\|box_start\|>)?\s*(?:<point>\s*({_NUMBERS})\s*</point>|<bbox>\s*({_NUMBERS})\s*</bbox>"
    rf"|\(\s*({_NUMBERS})\s*\)|\[\s*({_NUMBERS})\s*\]|({_NUMBERS}))\s*(?:<\|box_end\|>)?"
)
_START = ("point", "start_point", "start_box")
_END = ("end_point", "end_box")


class Call(NamedTuple):
    """One ``name(key='value', ...)``, not yet understood."""

    name: str
    arguments: dict[str, str]


class UITarsParser:
    """Reads replies of UI-TARS (a ``ReplyParser``)."""

    def __init__(
        self, coordinates: Coordinates, screen: tuple[int, int], image_size: tuple[int, int]
    ) -> None:
        """``screen``, ``image_size``: (width, height) in pixels, the latter after ``smart_resize``."""
        self.frame = Frame(coordinates, screen, image_size)

    @classmethod
    def of(cls, policy: PolicyConfig, screen: tuple[int, int]) -> UITarsParser:
        """The parser for a policy that looks at screens of this size."""
        frame = Frame.of(policy, screen)
        return cls(frame.coordinates, frame.screen, frame.image)

    def parse(self, text: str) -> Action:
        """The reply's (first) action, in screen pixels. Raises ``FormatError`` for anything else."""
        actions = [_build(call, self.frame) for call in parse_calls(action_text(text))]
        return actions[0]


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


def parse_calls(text: str) -> list[Call]:
    """All calls in ``text``, which must hold nothing else. Raises ``FormatError``."""
    calls: list[Call] = []
    position = _skip_blank(text, 0)
    while position < len(text) or not calls:
        if len(calls) == MAX_CALLS:
            raise FormatError(f"more than {MAX_CALLS} actions in one reply")
        call, end = _read_call(text, position)
        calls.append(call)
        position = _skip_blank(text, end)
        if position < len(text) and "\n" not in text[end:position]:
            raise FormatError(f"text after the action: {_quote(text[position:])}")
    return calls


def _read_call(text: str, position: int) -> tuple[Call, int]:
    name, position = _read_name(text, position)
    position = _expect(text, position, "(")
    arguments: dict[str, str] = {}
    if text.startswith(")", position):
        return Call(name, arguments), position + 1
    while True:
        key, position = _read_name(text, position)
        if key in arguments:
            raise FormatError(f"{name} has the argument '{key}' twice")
        position = _expect(text, position, "=")
        arguments[key], position = _read_string(text, position)
        position = _skip_blank(text, position)
        if text.startswith(")", position):
            return Call(name, arguments), position + 1
        position = _expect(text, position, ",")


def _read_name(text: str, position: int) -> tuple[str, int]:
    match = _NAME.match(text, position)
    if match is None:
        raise FormatError(f"expected a name, found {_quote(text[position:])}")
    return match.group(), _skip_blank(text, match.end())


def _expect(text: str, position: int, character: str) -> int:
    if not text.startswith(character, position):
        raise FormatError(f"expected '{character}', found {_quote(text[position:])}")
    return _skip_blank(text, position + 1)


def _read_string(text: str, position: int) -> tuple[str, int]:
    """A quoted string with Python's escapes.

    A quote ends the string only where ``)`` or ``, name=`` follows: like UI-TARS's parser, this reads
    ``content='it's'`` as it is meant. An unknown escape stands for itself, as in Python.
    """
    quote = text[position : position + 1]
    if quote not in ("'", '"'):
        raise FormatError(f"expected a quoted string, found {_quote(text[position:])}")
    position += 1
    parts: list[str] = []
    while position < len(text):
        character = text[position]
        if character == quote and _AFTER_STRING.match(text, position + 1):
            return "".join(parts), position + 1
        if character == "\\":
            value, position = _read_escape(text, position + 1)
            parts.append(value)
        else:
            parts.append(character)
            position += 1
    raise FormatError("a string has no end")


def _read_escape(text: str, position: int) -> tuple[str, int]:
    """What a backslash and the text from ``position`` on stand for, and where the next text begins."""
    character = text[position : position + 1]
    if character in _ESCAPES and character:
        return _ESCAPES[character], position + 1
    match = _CODE_POINT.match(text, position)
    if match is None:
        return "\\" + character, position + len(character)
    code = int(next(group for group in match.groups() if group), 16)
    if code > 0x10FFFF:
        raise FormatError("an escape names no character")
    return chr(code), match.end()


def _skip_blank(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    return match.end() if match else position


def _quote(text: str) -> str:
    return ascii(text[:24]) if text else "the end of the reply"


class _Arguments:
    """The arguments of one call; every one must be asked for."""

    def __init__(self, call: Call) -> None:
        self.name = call.name
        self.left = dict(call.arguments)

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
        if self.left:
            raise FormatError(f"{self.name} has no argument '{next(iter(self.left))}'")


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
    # Bounded and stripped first: on a long row of blanks the expression takes time by its square.
    text = text.strip()
    match = _BOX.fullmatch(text) if len(text) <= MAX_POINT else None
    values = [float(n) for n in re.findall(_NUMBER, next(filter(None, match.groups())))] if match else []
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


def _click(cls: type[Click | DoubleClick | RightClick]) -> Callable[[_Arguments, Frame], Action]:
    return lambda arguments, frame: cls(*_point(arguments.need(*_START), frame))


def _drag(arguments: _Arguments, frame: Frame) -> Action:
    return Drag(*_point(arguments.need(*_START), frame), *_point(arguments.need(*_END), frame))


def _scroll(arguments: _Arguments, frame: Frame) -> Action:
    direction = arguments.need("direction").strip().lower()
    point = arguments.take(*_START)
    for known in get_args(Direction):
        if direction == known:
            return Scroll(known) if point is None else Scroll(known, *_point(point, frame))
    raise FormatError(f"no direction: {_quote(direction)}")


def _hotkey(arguments: _Arguments, _: Frame) -> Action:
    written = arguments.need("key", "hotkey", "press")
    keys: list[str] = []
    for part in written.split():
        # 'ctrl+c' for 'ctrl c' is common; a lone '+' is the key itself.
        for name in [part] if key_name(part) else part.split("+"):
            key = key_name(name)
            if key is None:
                raise FormatError(f"no key: {_quote(name)}")
            keys.append(key)
    if not 1 <= len(keys) <= MAX_KEYS:
        raise FormatError(f"a hotkey has 1 to {MAX_KEYS} keys, not {len(keys)}")
    return Hotkey(tuple(keys))


def _press(arguments: _Arguments, frame: Frame) -> Action:
    action = _hotkey(arguments, frame)
    if isinstance(action, Hotkey) and len(action.keys) > 1:
        raise FormatError("press takes one key")
    return action


_BUILDERS: dict[str, Callable[[_Arguments, Frame], Action]] = {
    "click": _click(Click),
    "left_single": _click(Click),
    "left_double": _click(DoubleClick),
    "right_single": _click(RightClick),
    "drag": _drag,
    "select": _drag,
    "hotkey": _hotkey,
    "press": _press,
    "type": lambda arguments, _: TypeText(_text(arguments.need("content"))),
    "scroll": _scroll,
    "wait": lambda arguments, _: Wait(),
    "finished": lambda arguments, _: Finished(_text(arguments.take("content") or "")),
    "call_user": lambda arguments, _: Fail(_text(arguments.take("content") or "call_user")),
    "error_env": lambda arguments, _: Fail(_text(arguments.take("content") or "error_env")),
}
