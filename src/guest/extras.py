"""What an ordinary desktop has besides a window manager: bar and dock, background, X authority, key map.

Bar and dock take the room that GNOME's take in OSWorld's VM (27 pixels above, 70 on the left), so that
windows have the same geometry.
"""

from __future__ import annotations

import os
import secrets
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from Xlib.display import Display

BAR_HEIGHT, DOCK_WIDTH = 27, 70
BACKGROUND = "#2c2033"
LAUNCHERS = (
    "google-chrome", "thunderbird", "org.gnome.Nautilus", "libreoffice-writer", "libreoffice-calc",
    "libreoffice-impress", "vlc", "gimp", "org.gnome.gedit", "org.gnome.Terminal",
)  # fmt: skip
"""Names of .desktop files; those that the image lacks are left out."""
APPLICATIONS = Path("/usr/share/applications")

CHROME_ENTRY = """[Desktop Entry]
Type=Application
Name=Google Chrome
Exec=google-chrome %U
Icon=chromium
Categories=Network;WebBrowser;
MimeType=text/html;text/xml;application/xhtml+xml;x-scheme-handler/http;x-scheme-handler/https;
StartupWMClass=chromium
"""
"""Chromium under the name that tasks know."""

_SHARED = f"""rounded = 0
border_width = 0
background_color = {BACKGROUND} 100
border_color = {BACKGROUND} 0

panel_monitor = all
panel_margin = 0 0
panel_padding = 0 0 4
panel_background_id = 1
wm_menu = 0
panel_layer = normal
strut_policy = follow_size
panel_window_name = tint2
disable_transparency = 1
mouse_effects = 0
font_shadow = 0
"""
_BAR = f"""panel_items = FCF
panel_size = 100% {BAR_HEIGHT}
panel_position = top center horizontal
time1_format = %b %d  %H:%M
time1_font = DejaVu Sans 10
clock_font_color = #ffffff 100
clock_background_id = 0
"""
_DOCK = f"""panel_items = LT
panel_size = 100% {DOCK_WIDTH}
panel_position = center left vertical
launcher_padding = 8 8 10
launcher_background_id = 0
launcher_icon_size = 48
launcher_icon_theme = hicolor
launcher_icon_theme_override = 0
launcher_tooltip = 0
startup_notifications = 0
taskbar_mode = single_desktop
taskbar_padding = 8 8 8
taskbar_background_id = 0
taskbar_name = 0
task_text = 0
task_icon = 1
task_centered = 1
task_maximum_size = 54 54
task_padding = 4 4 4
task_background_id = 0
task_active_background_id = 0
task_tooltip = 0
"""


def panel_settings() -> dict[str, str]:
    """Name of a settings file -> its text, one for each panel (tint2's format)."""
    entries = [APPLICATIONS / f"{name}.desktop" for name in LAUNCHERS]
    items = "".join(f"launcher_item_app = {entry}\n" for entry in entries)
    return {"bar.tint2rc": _SHARED + _BAR, "dock.tint2rc": _SHARED + _DOCK + items}


def write_x_authority(path: Path, display: str) -> None:
    """A cookie for the display. The server asks for none, but X programs in Python complain without one."""
    fields = [os.uname().nodename.encode(), display.encode(), b"MIT-MAGIC-COOKIE-1", secrets.token_bytes(16)]
    family_local = 256
    entry = struct.pack(">H", family_local)
    entry += b"".join(struct.pack(">H", len(field)) + field for field in fields)
    path.write_bytes(entry)
    path.chmod(0o600)


def drop_doubled_key(display: Display) -> None:
    """Take ``<`` and ``>`` off the key that European keyboards have beside Shift.

    pyautogui finds ``<`` there, thinks that it needs Shift, and types ``>``. Now it takes the comma's key.
    """
    least, most = display.display.info.min_keycode, display.display.info.max_keycode
    for offset, keysyms in enumerate(display.get_keyboard_mapping(least, most - least + 1)):
        if tuple(keysyms[:2]) == (ord("<"), ord(">")):
            display.change_keyboard_mapping(least + offset, [tuple(0 for _ in keysyms)])
    display.sync()
