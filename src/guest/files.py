"""Files of a desktop: browser wrapper and policy; window manager, toolkit, bar and dock; X authority.

Who makes the desktop (sandbox, container image) puts the read-only ones in place; nobody inside may change
them. What they say stands in ``settings``.
"""

from __future__ import annotations

import os
import secrets
import shlex
import struct
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from .config import GuestConfig

POLICY = "/etc/chromium/policies/managed/desktop.json"
"""Chromium's policy of a full-screen desktop: its site can be visited and nothing else. So an episode leaves
traces in one origin of its own browser context, and that context is disposed of."""
APPLICATIONS = Path("/usr/share/applications")
BACKGROUND = "#2c2033"
"""As bar and dock have it."""
PANELS = ("bar.tint2rc", "dock.tint2rc")
"""They take the room of GNOME's in OSWorld's VM (27 pixels above, 70 on the left), so that windows have
the same geometry. Launchers that the image lacks are left out."""


def setting(name: str) -> str:
    """The text of a file of ``settings``."""
    return (resources.files(__package__) / "settings" / name).read_text()


@dataclass(frozen=True)
class StaticFile:
    """Text and permission bits of one file."""

    text: str
    mode: int = 0o644


def static_files(config: GuestConfig) -> dict[str, StaticFile]:
    """Absolute path -> file."""
    share, wrappers = Path(config.share), Path(config.bin)
    files = {
        str(share / "openbox.xml"): StaticFile(setting("openbox.xml")),
        str(share / "gtk-3.0" / "settings.ini"): StaticFile(setting("gtk.ini")),
        str(share / "gtk-4.0" / "settings.ini"): StaticFile(setting("gtk.ini")),
        str(wrappers / "python"): StaticFile('#!/bin/sh\nexec /usr/bin/python3 "$@"\n', 0o755),
    }
    for name in ("google-chrome", "chromium", "chromium-browser", "google-chrome-stable"):
        files[str(wrappers / name)] = StaticFile(browser_wrapper(config), 0o755)
    if config.panels:
        shared = setting("panels.tint2rc")
        files |= {str(share / name): StaticFile(shared + setting(name)) for name in PANELS}
    if config.fullscreen:
        files[POLICY] = StaticFile(setting("policy.json"))
    return files


def profile(config: GuestConfig) -> Path:
    """The browser's profile, where OSWorld's evaluators look for it."""
    return Path(config.home) / ".config" / "google-chrome"


def browser_wrapper(config: GuestConfig) -> str:
    """Shell script: Debian's Chromium under the name and with the profile that tasks expect."""
    lists = setting("browser.flags") + setting("fullscreen.flags" if config.fullscreen else "windowed.flags")
    flags = [line for line in lists.splitlines() if not line.startswith("#")]
    flags += [f"--user-data-dir={profile(config)}", *config.chromium_flags]
    port = f"--remote-debugging-port={config.devtools_port}"
    if config.fullscreen:
        flags.append(port)
    lines = " \\\n    ".join(shlex.quote(flag) for flag in flags)
    # The last flag wins. Tasks ask for port 1337, which desktops without a network of their own share.
    last = "" if config.private_network else f" {port}"
    return f'#!/bin/sh\nexec {shlex.quote(config.chromium)} \\\n    {lines} "$@"{last}\n'


def write_x_authority(path: Path, display: str) -> None:
    """A cookie for the display. The server asks for none, but X programs in Python complain without one."""
    fields = [os.uname().nodename.encode(), display.encode(), b"MIT-MAGIC-COOKIE-1", secrets.token_bytes(16)]
    family_local = 256
    entry = struct.pack(">H", family_local)
    entry += b"".join(struct.pack(">H", len(field)) + field for field in fields)
    path.write_bytes(entry)
    path.chmod(0o600)
