"""What the guest is told when it starts: one JSON object on its command line."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class GuestConfig:
    """Settings of one guest. File descriptors are inherited; -1 means none."""

    screen: tuple[int, int]
    """Width and height in pixels."""
    fullscreen: bool
    """True: the browser is part of the desktop and each of its windows fills the screen. False: an
    ordinary desktop; a browser runs only if someone launches it."""
    home: str = "/home/user"
    tmp: str = "/tmp"  # noqa: S108 - the desktop's own, private one
    remove: str = ""
    """Folder to remove at the end; empty: none."""
    bin: str = "/opt/desktop/bin"
    """Folder of our wrappers, first on PATH."""
    share: str = "/opt/desktop/share"
    """Folder of openbox's and GTK's settings."""
    chromium: str = "/opt/chrome/chrome"
    """The browser's program file. Tasks expect a process called ``chrome``."""
    panels: bool = False
    """A bar and a dock, as OSWorld's VM has."""
    skeleton: str = ""
    """Folder whose content a fresh home has; empty: none."""
    runtime: str = ""
    """XDG_RUNTIME_DIR; empty: a private folder."""
    chromium_flags: tuple[str, ...] = ()
    """Further flags of the browser."""
    display: str = ""
    """Display number to use, such as ``0``; empty: the first free one."""
    server_fd: int = -1
    """Listening Unix socket of the HTTP server."""
    devtools_fd: int = -1
    """Listening Unix socket that is relayed to the browser's DevTools port."""
    vlc_fd: int = -1
    """Listening Unix socket that is relayed to VLC's HTTP interface."""
    lifeline_fd: int = -1
    """Read end of a pipe; when it closes, the owner is gone and the guest ends."""
    private_network: bool = True
    """The desktop has a loopback interface of its own: fixed ports cannot clash."""
    tcp: str = ""
    """``host:port`` where the HTTP server listens as well; empty: nowhere."""
    site_port: int = 8000
    """Port on 127.0.0.1 of the static site; 0: any free one."""
    assets: dict[str, str] = field(default_factory=dict)
    """First part of the site's paths -> zip file that is served below it."""
    devtools_port: int = 1337
    """DevTools port of the browser on 127.0.0.1; tasks launch Chrome with 1337."""
    memory_folders: tuple[str, ...] = ()
    """Mount points held in memory: what lies there counts as memory and is wiped on reset."""
    memory_mb: int = 1500
    """All processes of the desktop together may hold so much private memory; 0: no limit of ours."""
    max_processes: int = 1024
    """Limit on processes and threads of the desktop's user."""
    max_files: int = 4096
    """Limit on open files per process."""
    start_s: float = 30.0
    """Longest time that each part of the desktop may take to start."""
    settle_ms: int = 400
    """Longest wait after an action for the screen to change and come to rest."""
    wait_s: float = 0.5
    """How long the action ``wait`` lasts."""
    pause_s: float = 0.0
    """Shortest time from an action to its screenshot; effects by a timer come without any sign before."""

    @classmethod
    def from_json(cls, text: str) -> GuestConfig:
        """Raises ValueError for unknown keys."""
        data = json.loads(text)
        unknown = set(data) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"unknown guest settings: {sorted(unknown)}")
        data["screen"] = (int(data["screen"][0]), int(data["screen"][1]))
        for key in ("chromium_flags", "memory_folders"):
            data[key] = tuple(data.get(key, ()))
        return cls(**data)
