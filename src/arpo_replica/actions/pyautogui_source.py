"""Typed actions as pyautogui source, for desktops that know only OSWorld's ``/execute``.

The source is ours: numbers, names from closed lists, and a policy's text as one escaped literal. No text of a
policy is ever code.
"""

import itertools

from arpo_replica.actions.keys import key_name
from arpo_replica.actions.types import Action, Click, DoubleClick, Drag, Hotkey, RightClick, Scroll, TypeText

PREFIX = "import pyautogui; import time; pyautogui.FAILSAFE = False; "
"""What desktop-env's client puts before every command (``controllers/python.py``)."""
NOTCHES = 5
DRAG_S = 1.0
"""As OSWorld's agents."""
DETACH = "import os; null = os.open(os.devnull, os.O_RDWR); [os.dup2(null, number) for number in (1, 2)]"
"""pyperclip leaves an ``xclip`` behind that holds the clipboard, and would hold the server's pipes too."""
PASTE_S = 0.6
"""Before the clipboard gets its old text back, the program must have read the new one."""
OWNED = "[time.sleep(0.02) for _ in range(100) if pyperclip.paste() != {piece!a}]"
"""xclip takes the clipboard after pyperclip has returned: Ctrl+V could paste the text before."""
KEYS = {"super": "winleft", "menu": "apps", "<": ("shift", ","), ">": ("shift", ".")}
"""Our names -> pyautogui's. On X11 it types ">" for "<": it takes the key's code but not its level."""


def source_of(action: Action) -> str | None:
    """Python source that applies the action; None for one that needs no input (``Wait``).

    Raises ValueError for an action that is none of a desktop's.
    """
    body = _body(action)
    return PREFIX + body if body else None


def _body(action: Action) -> str:  # noqa: PLR0911  # one per kind of action
    match action:
        case Click(x, y):
            return f"pyautogui.click({x:d}, {y:d})"
        case DoubleClick(x, y):
            return f"pyautogui.doubleClick({x:d}, {y:d})"
        case RightClick(x, y):
            return f"pyautogui.rightClick({x:d}, {y:d})"
        case Drag(x, y, to_x, to_y):
            # As ``guest.input`` drags, and for its reasons: 20 moves, then one pixel away and back.
            return (
                f"pyautogui.moveTo({x:d}, {y:d}); pyautogui.mouseDown(); "
                f"pyautogui.moveTo({to_x:d}, {to_y:d}, duration={DRAG_S}); "
                f"pyautogui.moveTo({to_x + (1 if to_x < x else -1):d}, {to_y:d}); "
                f"pyautogui.moveTo({to_x:d}, {to_y:d}); pyautogui.mouseUp()"
            )
        case Scroll(direction, x, y):
            move = "" if x is None or y is None else f"pyautogui.moveTo({x:d}, {y:d}); "
            function = "scroll" if direction in ("up", "down") else "hscroll"
            return f"{move}pyautogui.{function}({NOTCHES if direction in ('up', 'right') else -NOTCHES})"
        case Hotkey(keys):
            return _hotkey(keys)
        case TypeText(text):
            return _typing(text)
        case _ if action.kind == "wait":
            return ""
    raise ValueError(f"{action.kind} is no action of a desktop")


def _hotkey(keys: tuple[str, ...]) -> str:
    names: list[str] = []
    for key in keys:
        name = key_name(key)
        mapped = KEYS.get(name or "", name) if name else None
        if mapped is not None:
            names += [mapped] if isinstance(mapped, str) else [part for part in mapped if part not in names]
    return f"pyautogui.hotkey({', '.join(ascii(name) for name in names)})" if names else ""


def _typing(text: str) -> str:
    """Keys for ASCII; ``<`` by its own key; everything else through the clipboard, which is restored."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    statements = []
    for way, part in itertools.groupby(filter(_typable, plain), _way):
        piece = "".join(part)
        if way == "keys":
            statements.append(f"pyautogui.write({piece!a})")
        elif way == "shift":
            statements.append(f"[pyautogui.hotkey('shift', ',') for _ in range({len(piece)})]")
        else:
            statements.append(
                f"{DETACH}; import pyperclip; kept = pyperclip.paste(); "
                f"pyperclip.copy({piece!a}); {OWNED.format(piece=piece)}; pyautogui.hotkey('ctrl', 'v'); "
                f"time.sleep({PASTE_S}); pyperclip.copy(kept)"
            )
    return "; ".join(statements)


def _typable(char: str) -> bool:
    """False for control characters and halves of characters: there is no key for them."""
    code = ord(char)
    return char in "\n\t" or not (code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code <= 0xDFFF)


def _way(char: str) -> str:
    if char == "<":
        return "shift"
    return "keys" if ord(char) < 0x7F else "clipboard"
