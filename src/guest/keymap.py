"""Key names and characters to X keysyms and keycodes. Pure logic: no X connection here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

FIRST_KEYCODE = 8
FIRST_LENT = 208
"""Keycodes from here on are those of multimedia keys, which nobody presses here."""
SPECIAL = frozenset({208, 209, 215, 216, 225, 232, 233, 235, 239, 240, 241})
"""Of these, the ones that browsers know by their code, whatever they mean (Chromium's dom_code_data.inc:
media, search, brightness, display, mail). 225 is the search key: it goes to the address bar."""
NO_SYMBOL = 0

SHIFT, RETURN, TAB, BACKSPACE, CAPS_LOCK = 0xFFE1, 0xFF0D, 0xFF09, 0xFF08, 0xFFE5

KEYS: dict[str, int] = {
    "ctrl": 0xFFE3, "shift": SHIFT, "alt": 0xFFE9, "super": 0xFFEB,
    "capslock": CAPS_LOCK, "numlock": 0xFF7F, "scrolllock": 0xFF14,
    "enter": RETURN, "tab": TAB, "space": 0x20, "backspace": BACKSPACE, "esc": 0xFF1B,
    "delete": 0xFFFF, "insert": 0xFF63, "home": 0xFF50, "end": 0xFF57, "pageup": 0xFF55, "pagedown": 0xFF56,
    "up": 0xFF52, "down": 0xFF54, "left": 0xFF51, "right": 0xFF53,
    "printscreen": 0xFF61, "pause": 0xFF13, "menu": 0xFF67, "help": 0xFF6A,
}  # fmt: skip
KEYS.update({f"f{n}": 0xFFBD + n for n in range(1, 13)})
"""The named keys of ``actions/keys.py``, which also knows their other spellings."""


def key_keysym(name: str) -> int | None:
    """Keysym of a key of ``KEYS`` or of a printable character; None if there is no such key."""
    if name in KEYS:
        return KEYS[name]
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
    """The X server's keyboard mapping, and the keycodes lent to characters that it lacks.

    Lent are the codes from ``FIRST_LENT`` on, but none that is ``SPECIAL``. One request changes
    them all; of several in a row, programs take in some too late.
    """

    def __init__(self, mapping: Sequence[Sequence[int]]) -> None:
        """``mapping[i]``: keysyms of keycode ``FIRST_KEYCODE + i`` (group 1: plain, shifted, ...)."""
        self._strokes: dict[int, Stroke] = {}
        self._lent: OrderedDict[int, int] = OrderedDict()
        self._codes = range(FIRST_LENT, FIRST_KEYCODE + len(mapping))
        self._free = [code for code in self._codes if code not in SPECIAL]
        self.capacity = len(self._free)
        """How many different characters outside the mapping can be typed in one go."""
        for level, shift in ((0, False), (1, True)):
            for offset, keysyms in enumerate(mapping[: FIRST_LENT - FIRST_KEYCODE]):
                keysym = keysyms[level] if len(keysyms) > level else NO_SYMBOL
                if keysym != NO_SYMBOL:
                    self._strokes.setdefault(keysym, Stroke(FIRST_KEYCODE + offset, shift))

    def stroke(self, keysym: int) -> Stroke:
        """How to type the keysym. Raises KeyError if a keycode has to be lent to it first."""
        if keysym in self._lent:
            return Stroke(self._lent[keysym], False)
        return self._strokes[keysym]

    def has(self, keysym: int) -> bool:
        """True if the keysym has a keycode now."""
        return keysym in self._lent or keysym in self._strokes

    def lacks(self, text: str) -> set[int]:
        """Keysyms of the text that have no keycode now."""
        keysyms = {keysym for char in text if (keysym := char_keysym(char)) is not None}
        return {keysym for keysym in keysyms if not self.has(keysym)}

    def evicts(self, text: str) -> bool:
        """True if typing the text takes a keycode away from a keysym that was lent it before."""
        return len(self.lacks(text)) > len(self._free)

    def lend(self, text: str) -> list[tuple[int, int]] | None:
        """Give each character of the text a keycode. What the keycodes from ``FIRST_LENT`` on then mean,
        to be told to the X server; None if nothing changes.

        ``text`` is one of ``chunks``: more than ``capacity`` characters are a ValueError.
        """
        missing = self.lacks(text)
        if not missing:
            return None
        keysyms = {keysym for char in text if (keysym := char_keysym(char)) is not None}
        needed = keysyms & self._lent.keys()
        for keysym in needed:
            self._lent.move_to_end(keysym)
        if len(missing) + len(needed) > self.capacity:
            raise ValueError("too many different characters at once")
        for keysym in sorted(missing):
            if not self._free:
                self._free.append(self._lent.popitem(last=False)[1])
            self._lent[keysym] = self._free.pop(0)
        return self.lent()

    def lent(self) -> list[tuple[int, int]]:
        """What the keycodes from ``FIRST_LENT`` on mean now."""
        meaning = {keycode: keysym for keysym, keycode in self._lent.items()}
        return [(meaning.get(code, NO_SYMBOL), meaning.get(code, NO_SYMBOL)) for code in self._codes]

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
