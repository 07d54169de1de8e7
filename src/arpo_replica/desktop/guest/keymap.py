"""Key names and characters to X keysyms and keycodes. Pure logic: no X connection here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

FIRST_KEYCODE = 8
NO_SYMBOL = 0

SHIFT, RETURN, TAB, BACKSPACE, CAPS_LOCK = 0xFFE1, 0xFF0D, 0xFF09, 0xFF08, 0xFFE5

KEYS: dict[str, int] = {
    "ctrl": 0xFFE3, "control": 0xFFE3, "ctrlleft": 0xFFE3, "ctrlright": 0xFFE4,
    "shift": SHIFT, "shiftleft": SHIFT, "shiftright": 0xFFE2,
    "alt": 0xFFE9, "altleft": 0xFFE9, "altright": 0xFFEA, "option": 0xFFE9,
    "win": 0xFFEB, "super": 0xFFEB, "meta": 0xFFEB, "cmd": 0xFFEB, "command": 0xFFEB,
    "enter": RETURN, "return": RETURN, "tab": TAB, "space": 0x20, "backspace": BACKSPACE,
    "esc": 0xFF1B, "escape": 0xFF1B, "delete": 0xFFFF, "del": 0xFFFF, "insert": 0xFF63,
    "home": 0xFF50, "end": 0xFF57,
    "pageup": 0xFF55, "page_up": 0xFF55, "pgup": 0xFF55,
    "pagedown": 0xFF56, "page_down": 0xFF56, "pgdn": 0xFF56,
    "up": 0xFF52, "arrowup": 0xFF52, "arrow_up": 0xFF52,
    "down": 0xFF54, "arrowdown": 0xFF54, "arrow_down": 0xFF54,
    "left": 0xFF51, "arrowleft": 0xFF51, "arrow_left": 0xFF51,
    "right": 0xFF53, "arrowright": 0xFF53, "arrow_right": 0xFF53,
    "capslock": CAPS_LOCK, "caps_lock": CAPS_LOCK, "numlock": 0xFF7F, "scrolllock": 0xFF14,
    "printscreen": 0xFF61, "prtsc": 0xFF61, "pause": 0xFF13, "menu": 0xFF67, "apps": 0xFF67,
    "plus": 0x2B, "minus": 0x2D, "comma": 0x2C, "period": 0x2E, "slash": 0x2F,
}  # fmt: skip
KEYS.update({f"f{n}": 0xFFBD + n for n in range(1, 25)})


def key_keysym(name: str) -> int | None:
    """Keysym of a key by its name in UI-TARS's prompt (or pyautogui's); None if there is no such key."""
    key = name.strip().lower() if len(name) > 1 else name
    if key in KEYS:
        return KEYS[key]
    return char_keysym(name) if len(name) == 1 and name.isprintable() else None


def char_keysym(char: str) -> int | None:
    """Keysym that types the character; None for control characters other than newline and tab."""
    code = ord(char)
    if char in "\n\r":
        return RETURN
    if char == "\t":
        return TAB
    if code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code <= 0xDFFF:
        return None
    return code if code < 0x100 else 0x01000000 | code


@dataclass(frozen=True)
class Stroke:
    """One key to press, with or without Shift."""

    keycode: int
    shift: bool


class Layout:
    """The X server's keyboard mapping, and the spare keycodes that carry what it lacks."""

    def __init__(self, mapping: Sequence[Sequence[int]]) -> None:
        """``mapping[i]``: keysyms of keycode ``FIRST_KEYCODE + i`` (group 1: plain, shifted, ...)."""
        self._strokes: dict[int, Stroke] = {}
        self._spare: list[int] = []
        self._lent: OrderedDict[int, int] = OrderedDict()
        for level, shift in ((0, False), (1, True)):
            for offset, keysyms in enumerate(mapping):
                keysym = keysyms[level] if len(keysyms) > level else NO_SYMBOL
                if keysym != NO_SYMBOL:
                    self._strokes.setdefault(keysym, Stroke(FIRST_KEYCODE + offset, shift))
        for offset, keysyms in enumerate(mapping):
            if not any(keysyms):
                self._spare.append(FIRST_KEYCODE + offset)

    @property
    def capacity(self) -> int:
        """How many different characters outside the mapping can be typed in one go."""
        return len(self._spare) + len(self._lent)

    def stroke(self, keysym: int) -> Stroke | None:
        """How to type the keysym now; None if a spare keycode has to be lent first."""
        if keysym in self._lent:
            self._lent.move_to_end(keysym)
            return Stroke(self._lent[keysym], False)
        return self._strokes.get(keysym)

    def lend(self, keysym: int) -> int:
        """Give the keysym a keycode, the least recently used one if none is free; returns it.

        The caller tells the X server. Raises LookupError if the server has no spare keycode at all.
        """
        if self._spare:
            keycode = self._spare.pop()
        elif self._lent:
            _, keycode = self._lent.popitem(last=False)
        else:
            raise LookupError("the keyboard mapping has no spare keycode")
        self._lent[keysym] = keycode
        return keycode

    def evicts(self, text: str) -> bool:
        """True if typing the text takes a keycode away from a keysym that was lent it before."""
        keysyms = {keysym for char in text if (keysym := char_keysym(char)) is not None}
        return len([k for k in keysyms if self.stroke(k) is None]) > len(self._spare)

    def chunks(self, text: str) -> list[str]:
        """The text in pieces, each typable without lending one keycode twice."""
        pieces: list[str] = []
        piece, foreign = "", set[int]()
        for char in text:
            keysym = char_keysym(char)
            if keysym is None:
                continue
            if keysym not in self._strokes and keysym not in foreign:
                if len(foreign) >= max(self.capacity, 1):
                    pieces.append(piece)
                    piece, foreign = "", set()
                foreign.add(keysym)
            piece += char
        return [*pieces, piece] if piece else pieces
