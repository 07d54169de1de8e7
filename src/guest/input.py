"""Mouse and keyboard: typed actions to XTEST events, inside this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from Xlib import X
from Xlib.display import Display
from Xlib.ext import xtest

from .keymap import CAPS_LOCK, FIRST_KEYCODE, FIRST_LENT, SHIFT, Layout, char_keysym, key_keysym

BUTTONS = {"up": 4, "down": 5, "left": 6, "right": 7}
SCROLL_NOTCHES = 5
DOUBLE_CLICK_PAUSE_S = 0.03
DRAG_MOVES = 20
DRAG_PAUSE_S = 0.05
"""As ``pyautogui.dragTo(..., duration=1.0)`` moves, which OSWorld's agents write."""
MULTI_CLICK_S = 0.55
"""Programs join clicks closer than 0.5 s at one place to a double click: single ones keep this apart."""
MULTI_CLICK_PX = 8
DRAG_CALM_S = 1.0
"""Longest wait for the programs at the end of a drag."""
CALM_S = 0.05
CALM_LIMIT_S = 5.0
CALM_PER_KEY_S = 0.01
"""A program may be that much longer at work for each key that was typed since it was last seen at rest."""


class InputDevice:
    """The one mouse and the one keyboard of the desktop."""

    def __init__(self, display: Display, busy: Callable[[], bool], wait_s: float) -> None:
        """``busy()``: True while a program of the desktop is at work; ``wait_s``: how long ``wait`` lasts."""
        self._display = display
        self._busy = busy
        self._wait_s = wait_s
        self._root = display.screen().root
        self._read_layout()
        # Before a program starts: browsers keep the mapping that they find, and what a lent key once meant
        # is what a page would be told of it.
        self._tell(self._layout.lent())
        self._unread = 0
        """Keys typed since the programs were last seen at rest."""
        self._last_click = (-1000.0, -1000, -1000)
        self.last_sent = time.monotonic()
        """When the last event of the last action went out."""

    def _read_layout(self) -> None:
        count = self._display.display.info.max_keycode - FIRST_KEYCODE + 1
        self._layout = Layout(self._display.get_keyboard_mapping(FIRST_KEYCODE, count))

    async def perform(self, action: dict[str, Any]) -> list[str]:
        """Apply one action (``Action.to_json`` of the pipeline). Returns the key names it ignored.

        Raises ValueError, KeyError or TypeError for anything that is no action; nothing was done then.
        """
        kind = action["type"]
        if kind == "wait":
            await asyncio.sleep(self._wait_s)
        elif kind in ("click", "double_click", "right_click"):
            x, y = int(action["x"]), int(action["y"])
            await self._apart(x, y)
            button = 3 if kind == "right_click" else 1
            self._move(x, y)
            self._button(button)
            if kind == "double_click":
                # Two clicks in the same millisecond are one to some programs.
                self._send()
                await asyncio.sleep(DOUBLE_CLICK_PAUSE_S)
                self._button(button)
            self._last_click = (time.monotonic(), x, y)
        elif kind == "drag":
            await self._drag(*(int(action[key]) for key in ("x", "y", "to_x", "to_y")))
        elif kind == "scroll":
            button = BUTTONS[action["direction"]]
            if action.get("x") is not None and action.get("y") is not None:
                self._move(int(action["x"]), int(action["y"]))
            for _ in range(SCROLL_NOTCHES):
                self._button(button)
        elif kind == "hotkey":
            return self._hotkey([str(key) for key in action["keys"]])
        elif kind == "type_text":
            await self._type(str(action["text"]))
        else:
            raise ValueError(f"no such action: {kind!r}")
        self._send()
        return []

    async def _apart(self, x: int, y: int) -> None:
        when, last_x, last_y = self._last_click
        if abs(x - last_x) <= MULTI_CLICK_PX and abs(y - last_y) <= MULTI_CLICK_PX:
            await asyncio.sleep(max(0.0, when + MULTI_CLICK_S - time.monotonic()))

    def _send(self) -> None:
        self.last_sent = time.monotonic()
        self._display.sync()

    def _move(self, x: int, y: int) -> None:
        xtest.fake_input(self._display, X.MotionNotify, x=_coordinate(x), y=_coordinate(y))

    def _button(self, button: int) -> None:
        xtest.fake_input(self._display, X.ButtonPress, button)
        xtest.fake_input(self._display, X.ButtonRelease, button)

    async def _drag(self, x: int, y: int, to_x: int, to_y: int) -> None:
        await self._apart(x, y)
        self._move(x, y)
        xtest.fake_input(self._display, X.ButtonPress, 1)
        path = [
            (x + (to_x - x) * step // DRAG_MOVES, y + (to_y - y) * step // DRAG_MOVES)
            for step in range(1, DRAG_MOVES + 1)
        ]
        # A page learns of its target by one move over it and may drop there after a second one. On a small
        # target only the last step of the path is one, so the pointer leaves the end by a pixel and returns.
        for at in path:
            self._send()
            await asyncio.sleep(DRAG_PAUSE_S)
            self._move(*at)
        for at in [(to_x + (1 if to_x < x else -1), to_y), (to_x, to_y)]:
            self._send()
            await asyncio.sleep(DRAG_PAUSE_S)
            await self._calm(DRAG_CALM_S)  # on a busy machine the page is behind
            self._move(*at)
        self._send()
        await asyncio.sleep(DRAG_PAUSE_S)
        await self._calm(DRAG_CALM_S)
        xtest.fake_input(self._display, X.ButtonRelease, 1)
        self._send()

    def _hotkey(self, names: list[str]) -> list[str]:
        keysyms = {name: key_keysym(name) for name in names}
        # Foreign characters as parts of key combinations do not occur: who needs one types it.
        known = [keysym for keysym in keysyms.values() if keysym is not None]
        strokes = [self._layout.stroke(keysym) for keysym in known if self._layout.has(keysym)]
        shift = self._layout.stroke(SHIFT).keycode
        codes = [shift] if any(stroke.shift for stroke in strokes) else []
        codes += [stroke.keycode for stroke in strokes if stroke.keycode not in codes]
        for code in codes:
            xtest.fake_input(self._display, X.KeyPress, code)
        for code in reversed(codes):
            xtest.fake_input(self._display, X.KeyRelease, code)
        self._send()
        return [name for name, keysym in keysyms.items() if keysym is None or not self._layout.has(keysym)]

    async def _type(self, text: str) -> None:
        self._unlock()
        shift = self._layout.stroke(SHIFT).keycode
        for piece in self._layout.chunks(text.replace("\r\n", "\n")):
            if self._layout.evicts(piece):
                # A program asks for the mapping when it gets to a key: what it has not read must stay.
                await self._calm()
            keysyms = self._layout.lend(piece)
            if keysyms is not None:
                self._tell(keysyms)
                # A key pressed at once could still be read by the old mapping.
                await self._calm()
            strokes = [
                self._layout.stroke(keysym) for keysym in map(char_keysym, piece) if keysym is not None
            ]
            held = False
            for stroke in strokes:
                if stroke.shift != held:
                    xtest.fake_input(self._display, X.KeyPress if stroke.shift else X.KeyRelease, shift)
                    held = stroke.shift
                xtest.fake_input(self._display, X.KeyPress, stroke.keycode)
                xtest.fake_input(self._display, X.KeyRelease, stroke.keycode)
            if held:
                xtest.fake_input(self._display, X.KeyRelease, shift)
            self._send()
            self._unread += len(strokes)

    def _tell(self, keysyms: list[tuple[int, int]]) -> None:
        """Tell the X server what the keycodes from ``FIRST_LENT`` on mean."""
        self._display.change_keyboard_mapping(FIRST_LENT, keysyms)
        self._display.sync()

    async def _calm(self, limit_s: float = CALM_LIMIT_S) -> None:
        """Return when the programs have nothing left to do (or go on for too long)."""
        deadline = time.monotonic() + limit_s + CALM_PER_KEY_S * self._unread
        self._unread = 0
        calm = 0
        while calm < 2 and time.monotonic() < deadline:
            await asyncio.sleep(CALM_S)
            calm = 0 if self._busy() else calm + 1

    def _unlock(self) -> None:
        """Switch Caps Lock off: text has to arrive as it is written."""
        if self._root.query_pointer().mask & X.LockMask:
            code = self._layout.stroke(CAPS_LOCK).keycode
            xtest.fake_input(self._display, X.KeyPress, code)
            xtest.fake_input(self._display, X.KeyRelease, code)
            self._send()

    def position(self) -> tuple[int, int]:
        """Where the pointer is."""
        pointer = self._root.query_pointer()
        return pointer.root_x, pointer.root_y

    def pressed(self) -> tuple[list[int], list[int]]:
        """Keycodes and mouse buttons that are down."""
        keymap = self._display.query_keymap()
        keys = [8 * i + bit for i, byte in enumerate(keymap) for bit in range(8) if byte >> bit & 1]
        mask = self._root.query_pointer().mask
        return keys, [n for n in range(1, 6) if mask & (X.Button1Mask << (n - 1))]

    def rest(self, x: int, y: int) -> None:
        """Release everything, switch locks off, put the pointer at (x, y)."""
        keys, buttons = self.pressed()
        for button in buttons:
            xtest.fake_input(self._display, X.ButtonRelease, button)
        for key in keys:
            xtest.fake_input(self._display, X.KeyRelease, key)
        self._unlock()
        self._move(x, y)
        self._send()
        self._last_click = (-1000.0, -1000, -1000)


def _coordinate(value: int) -> int:
    """X coordinates are 16 bits; the server clips to the screen."""
    return max(0, min(value, 32767))
