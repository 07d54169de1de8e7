"""Names of keys: what a policy may write in ``hotkey(key=...)`` and what a desktop has to know.

The table that counts is ``NAMED_KEYS``: the guest's (``guest/keymap.py``, which can import nothing of
ours) has exactly these names, and every provider can press every one of them: tests compare them.
"""

import re

from arpo_replica.base.errors import FormatError
from arpo_replica.base.tables import table_of

NAMED_KEYS = frozenset(
    [
        *("ctrl", "alt", "shift", "super", "capslock", "numlock", "scrolllock"),
        *("enter", "esc", "tab", "space", "backspace", "delete", "insert"),
        *("home", "end", "pageup", "pagedown", "left", "right", "up", "down"),
        *("printscreen", "pause", "menu", "help"),
        *(f"f{number}" for number in range(1, 13)),
    ]
)
"""Keys with a name. Besides these, every printable ASCII character but the blank is a key.

F13 to F24 are on no keyboard layout of a desktop of ours: nothing could press them.
"""

_OTHERS = table_of(__file__)
_OTHERS |= {str(digit): f"num{digit} kp{digit} numpad{digit} digit{digit}" for digit in range(10)}
_SIDES = {**{key: key for key in ("ctrl", "alt", "shift", "super")}, "win": "super", "meta": "super"}
ALIASES = {
    **{other: key for key, others in _OTHERS.items() for other in others.split()},
    **{f"{name}{side}": key for name, key in _SIDES.items() for side in ("left", "right")},
    **{f"{side}{name}": key for name, key in _SIDES.items() for side in ("left", "right", "l", "r")},
    **{name: way for way in ("left", "right", "up", "down") for name in (f"arrow{way}", f"{way}arrow")},
}
"""Other spellings -> the name used here: those of pyautogui, X and the browser, and common ones, without
blanks, ``_`` and ``-``. The numeric pad's keys are those of the same sign: Num Lock changes nothing then."""

MAX_KEYS_TEXT = 100
"""Longest text of a combination, in characters."""
_WORD = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")
_JOINT = re.compile(r"\s*[+,-]\s*(?=\S)|\s+")
_ANGLE = re.compile(r"<\s*([a-z][a-z0-9_ -]*)>")


def key_name(name: str) -> str | None:
    """The name used here of one key of the policy, lower case, or None if there is no such key."""
    name = name.lower()
    if len(name) > 1:
        name = re.sub(r"[\s_-]", "", name)
        name = ALIASES.get(name, name)
    return name if name in NAMED_KEYS or (len(name) == 1 and "!" <= name <= "~") else None


def read_keys(written: str) -> tuple[str, ...]:
    """The keys of a combination: ``ctrl c``, ``Ctrl + Shift + T``, ``ctrl-c``, ``ctrl++``, ``<ctrl>c``.

    Blanks, ``+``, ``-`` and ``,`` join keys; one with nothing behind it, or a second one in a row, is the key
    itself. Two words are one key if one of them alone is none (``page down``, but not ``shift left``).
    Raises ``FormatError`` for anything that is no key.
    """
    if len(written) > MAX_KEYS_TEXT:
        raise FormatError(f"no key: {written[:24]!a}")
    words = _words(_ANGLE.sub(r" \1 ", written.lower()).strip())
    keys: list[str] = []
    while words:
        word = words.pop(0)
        key, pair = key_name(word), key_name(word + words[0]) if words else None
        if pair and (key is None or key_name(words[0]) is None):
            words.pop(0)
            keys.append(pair)
        elif key:
            keys.append(key)
        elif "_" in word:
            words = [*word.split("_"), *words]
        else:
            raise FormatError(f"no key: {word!a}")
    return tuple(keys)


def _words(text: str) -> list[str]:
    words: list[str] = []
    position = 0
    while position < len(text):
        match = _WORD.match(text, position)
        words.append(match.group() if match else text[position])
        position += len(words[-1])
        joint = _JOINT.match(text, position)
        if joint is None and position < len(text):
            raise FormatError(f"no key: {text[:24]!a}")
        position = joint.end() if joint else position
    return words
