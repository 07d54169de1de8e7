"""Names of keys: what a policy may write in ``hotkey(key=...)`` and what a desktop has to know."""

from __future__ import annotations

ALIASES = {
    "arrowleft": "left",
    "arrowright": "right",
    "arrowup": "up",
    "arrowdown": "down",
    "control": "ctrl",
    "ctrlleft": "ctrl",
    "ctrlright": "ctrl",
    "altleft": "alt",
    "altright": "alt",
    "option": "alt",
    "shiftleft": "shift",
    "shiftright": "shift",
    "win": "super",
    "winleft": "super",
    "winright": "super",
    "windows": "super",
    "meta": "super",
    "cmd": "super",
    "command": "super",
    "return": "enter",
    "escape": "esc",
    "del": "delete",
    "ins": "insert",
    "pgup": "pageup",
    "page_up": "pageup",
    "pgdn": "pagedown",
    "page_down": "pagedown",
    "prtsc": "printscreen",
    "prtscr": "printscreen",
    "print": "printscreen",
    "plus": "+",
    "minus": "-",
    "comma": ",",
    "period": ".",
    "slash": "/",
}
"""Other spellings (pyautogui's, the browser's ``Arrow...``, common ones) -> the name used here."""

NAMED_KEYS = frozenset(
    [
        *("ctrl", "alt", "shift", "super", "capslock", "numlock", "scrolllock"),
        *("enter", "esc", "tab", "space", "backspace", "delete", "insert"),
        *("home", "end", "pageup", "pagedown", "left", "right", "up", "down"),
        *("printscreen", "pause", "menu"),
        *(f"f{number}" for number in range(1, 25)),
    ]
)
"""Keys with a name. Besides these, every printable ASCII character but the blank is a key."""


def key_name(name: str) -> str | None:
    """The name used here of one key of the policy, lower case, or None if there is no such key."""
    name = name.lower()
    name = ALIASES.get(name, name)
    if name in NAMED_KEYS or (len(name) == 1 and "!" <= name <= "~"):
        return name
    return None
