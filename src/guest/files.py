"""Files of a desktop: browser wrapper and policy; window manager, toolkit, bar and dock; X authority.

Who makes the desktop (sandbox, container image) puts the read-only ones in place; nobody inside may change
them.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import struct
from dataclasses import dataclass
from pathlib import Path

from .config import GuestConfig

POLICY = "/etc/chromium/policies/managed/desktop.json"

BROWSER_FLAGS = (
    # The desktop is the sandbox; the browser's own would need namespaces inside namespaces.
    "--no-sandbox",
    "--test-type",
    "--no-first-run",
    "--no-default-browser-check",
    "--password-store=basic",
    # Software rendering without a GPU process: least CPU time per frame.
    "--disable-gpu",
    "--disable-software-rasterizer",
    "--in-process-gpu",
    "--num-raster-threads=1",
    "--force-device-scale-factor=1",
    "--force-color-profile=srgb",
    "--disable-lcd-text",
    "--disable-smooth-scrolling",
    # A frame as soon as there is something to draw, not at the next tick of a 60 Hz clock: the effect of a
    # click is on the screen 9 ms sooner. The price is on pages that animate without end (a processor
    # instead of a fifth); the tasks of this provider have none.
    "--disable-frame-rate-limit",
    # Nothing of its own accord: no updates, no pings, no reports, no pop-ups.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-domain-reliability",
    "--disable-breakpad",
    "--disable-client-side-phishing-detection",
    "--disable-session-crashed-bubble",
    "--hide-crash-restore-bubble",
    "--disable-prompt-on-repost",
    "--disable-search-engine-choice-screen",
    "--no-pings",
    "--no-service-autorun",
    "--mute-audio",
    # Parts of the browser's own surface that start renderers of their own (0.5 s CPU per window).
    "--disable-features=WebUIOmniboxAimPopup,WebUIOmniboxPopup,WebUIOmniboxFullPopup,AiModeOmniboxEntryPoint,"
    "PreloadTopChromeWebUI,SpareRendererForSitePerProcess,InitialWebUI,Translate,OptimizationHints,"
    "MediaRouter,DialMediaRouteProvider,CalculateNativeWinOcclusion,HttpsUpgrades,BackForwardCache",
)
FULLSCREEN_FLAGS = (
    "--no-startup-window",
    "--kiosk",
    # A page behind another window or without focus must go on as if it were in front.
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-background-timer-throttling",
    # A page is drawn whole, not only where it changed: drawn over itself, the rounded edges of two neighbours
    # end a shade darker or lighter, depending on how many frames a busy machine made of one click.
    "--disable-partial-raster",
    # Of no use to a page. An ordinary desktop keeps them: there are tasks about extensions and profiles.
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
)
WINDOWED_FLAGS = ("--start-maximized", "--force-renderer-accessibility", "--disable-dev-shm-usage")

GTK_SETTINGS = """[Settings]
gtk-cursor-blink=0
gtk-enable-animations=0
gtk-primary-button-warps-slider=0
"""

OPENBOX = """<?xml version="1.0" encoding="UTF-8"?>
<openbox_config xmlns="http://openbox.org/3.4/rc">
  <focus><focusNew>yes</focusNew><followMouse>no</followMouse><raiseOnFocus>yes</raiseOnFocus></focus>
  <placement><policy>Smart</policy></placement>
  <theme><animateIconify>no</animateIconify></theme>
  <desktops><number>1</number><popupTime>0</popupTime></desktops>
  <keyboard>
    <keybind key="A-F4"><action name="Close"/></keybind>
    <keybind key="A-Tab"><action name="NextWindow"/></keybind>
  </keyboard>
  <mouse>
    <context name="Titlebar">
      <mousebind button="Left" action="Drag"><action name="Move"/></mousebind>
      <mousebind button="Left" action="DoubleClick"><action name="ToggleMaximize"/></mousebind>
    </context>
    <context name="Client">
      <mousebind button="Left" action="Press"><action name="Focus"/><action name="Raise"/></mousebind>
      <mousebind button="Middle" action="Press"><action name="Focus"/><action name="Raise"/></mousebind>
      <mousebind button="Right" action="Press"><action name="Focus"/><action name="Raise"/></mousebind>
    </context>
    <context name="Close">
      <mousebind button="Left" action="Click"><action name="Close"/></mousebind>
    </context>
    <context name="Maximize">
      <mousebind button="Left" action="Click"><action name="ToggleMaximize"/></mousebind>
    </context>
    <context name="Iconify">
      <mousebind button="Left" action="Click"><action name="Iconify"/></mousebind>
    </context>
  </mouse>
  <applications>
    <application class="*" type="normal"><focus>yes</focus></application>
  </applications>
</openbox_config>
"""


# Bar and dock take the room that GNOME's take in OSWorld's VM (27 pixels above, 70 on the left), so that
# windows have the same geometry.
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


@dataclass(frozen=True)
class StaticFile:
    """Text and permission bits of one file."""

    text: str
    mode: int = 0o644


def static_files(config: GuestConfig) -> dict[str, StaticFile]:
    """Absolute path -> file."""
    share, wrappers = Path(config.share), Path(config.bin)
    files = {
        str(share / "openbox.xml"): StaticFile(OPENBOX),
        str(share / "gtk-3.0" / "settings.ini"): StaticFile(GTK_SETTINGS),
        str(share / "gtk-4.0" / "settings.ini"): StaticFile(GTK_SETTINGS),
        str(wrappers / "python"): StaticFile('#!/bin/sh\nexec /usr/bin/python3 "$@"\n', 0o755),
    }
    for name in ("google-chrome", "chromium", "chromium-browser", "google-chrome-stable"):
        files[str(wrappers / name)] = StaticFile(browser_wrapper(config), 0o755)
    if config.panels:
        files |= {str(share / name): StaticFile(text) for name, text in panel_settings().items()}
    if config.fullscreen:
        files[POLICY] = StaticFile(json.dumps(browser_policy(config), indent=1))
    return files


def panel_settings() -> dict[str, str]:
    """Name of a settings file -> its text, one for each panel (tint2's format)."""
    entries = [APPLICATIONS / f"{name}.desktop" for name in LAUNCHERS]
    items = "".join(f"launcher_item_app = {entry}\n" for entry in entries)
    return {"bar.tint2rc": _SHARED + _BAR, "dock.tint2rc": _SHARED + _DOCK + items}


def profile(config: GuestConfig) -> Path:
    """The browser's profile, where OSWorld's evaluators look for it."""
    return Path(config.home) / ".config" / "google-chrome"


def browser_wrapper(config: GuestConfig) -> str:
    """Shell script: Debian's Chromium under the name and with the profile that tasks expect."""
    flags = [
        *BROWSER_FLAGS,
        *(FULLSCREEN_FLAGS if config.fullscreen else WINDOWED_FLAGS),
        f"--user-data-dir={profile(config)}",
        *config.chromium_flags,
    ]
    port = f"--remote-debugging-port={config.devtools_port}"
    if config.fullscreen:
        flags.append(port)
    lines = " \\\n    ".join(shlex.quote(flag) for flag in flags)
    # The last flag wins. Tasks ask for port 1337, which desktops without a network of their own share.
    last = "" if config.private_network else f" {port}"
    return f'#!/bin/sh\nexec {shlex.quote(config.chromium)} \\\n    {lines} "$@"{last}\n'


def browser_policy(config: GuestConfig) -> dict[str, object]:
    """Chromium policy of a full-screen desktop: its site can be visited and nothing else.

    So an episode leaves traces in one origin of its own browser context, and that context is disposed of.
    """
    return {
        "URLBlocklist": ["*", "chrome://*", "devtools://*", "file://*"],
        "URLAllowlist": [
            f"127.0.0.1:{config.site_port}",
            f"localhost:{config.site_port}",
            "about:blank",
            "data:*",
        ],
        "DeveloperToolsAvailability": 1,
        "PrintingEnabled": False,
        "AllowFileSelectionDialogs": False,
        "DownloadRestrictions": 3,
        "BookmarkBarEnabled": False,
        "PasswordManagerEnabled": False,
        "AutofillAddressEnabled": False,
        "AutofillCreditCardEnabled": False,
        "TranslateEnabled": False,
        "MetricsReportingEnabled": False,
        "SearchSuggestEnabled": False,
        "NetworkPredictionOptions": 2,
        "BackgroundModeEnabled": False,
        "BrowserGuestModeEnabled": False,
        "BrowserAddPersonEnabled": False,
    }


def write_x_authority(path: Path, display: str) -> None:
    """A cookie for the display. The server asks for none, but X programs in Python complain without one."""
    fields = [os.uname().nodename.encode(), display.encode(), b"MIT-MAGIC-COOKIE-1", secrets.token_bytes(16)]
    family_local = 256
    entry = struct.pack(">H", family_local)
    entry += b"".join(struct.pack(">H", len(field)) + field for field in fields)
    path.write_bytes(entry)
    path.chmod(0o600)
