"""Where a guest that is the first process of a container gets its settings.

Our own provider mounts a folder with one listening socket, read-only. The guest connects and is handed its
settings and its listening sockets (SCM_RIGHTS): so it is reached without any network, nobody inside can write
to the host, and the connection itself is the lifeline: it closes when the owner dies, however that happens.
Without that socket somebody else started the image (``docker run``, OSWorld's own provider): the guest then
listens on TCP port 5000 of all addresses, as OSWorld's server does, and the container's network decides
who can reach it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from .config import GuestConfig
from .files import APPLICATIONS, POLICY, setting, static_files
from .processes import forbid_tracing

CONTROL = Path("/run/arpo/control")
"""Socket of the owner, as seen inside."""
ROOT = "/opt/desktop"
STOCK_PORT = 5000
SCREEN_VARIABLE = "ARPO_SCREEN"
"""Environment variable of the image: ``1920x1080``."""
PACKAGES = (
    "chromium", "gimp", "gnome-terminal", "gedit", "libreoffice-core", "nautilus", "openbox", "python3",
    "thunderbird", "vlc", "xvfb",
)  # fmt: skip
"""Whose versions the image's record names."""
ASSET = "asset:"
MAX_FDS = 32
END = b"\n"


def image_config(screen: tuple[int, int], fullscreen: bool) -> GuestConfig:
    """Settings that lie in the image (envs/desktop/Dockerfile), in a folder of its own for either kind."""
    kind = f"{ROOT}/{'fullscreen' if fullscreen else 'windowed'}"
    return GuestConfig(
        screen=screen,
        fullscreen=fullscreen,
        bin=f"{kind}/bin",
        share=f"{kind}/share",
        chromium="/usr/lib/chromium/chrome",
        panels=not fullscreen,
        skeleton="" if fullscreen else f"{ROOT}/home",
        runtime="" if fullscreen else "/run/user/1000",
        display="0",
        # Counted per user id on the whole machine, which all containers share: theirs is the limit.
        max_processes=1 << 20,
    )


def write_image_files() -> None:
    """Called while the image is built: put the files of both kinds of desktop in place.

    A browser policy applies to every browser of a container, so its place stays empty here; who starts a
    full-screen desktop mounts the policy there.
    """
    for fullscreen in (False, True):
        for place, file in static_files(image_config((0, 0), fullscreen)).items():
            path = Path(place)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}" if place == POLICY else file.text)
            path.chmod(file.mode)
    # Chromium under the name that tasks know.
    (APPLICATIONS / "google-chrome.desktop").write_text(setting("google-chrome.desktop"))
    listed = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${Version} ${db:Status-Status}\n", *PACKAGES],
        stdout=subprocess.PIPE,
        text=True,
        check=False,  # some of them are in the full image only
    ).stdout
    lines = [line.split() for line in listed.splitlines()]
    versions = {words[0]: words[1] for words in lines if words[-1] == "installed"}
    Path(f"{ROOT}/versions.json").write_text(json.dumps(versions, indent=1))


def own_config() -> GuestConfig:
    """The settings of this container's guest, which is closed to others from now on.

    Raises OSError or ValueError.
    """
    forbid_tracing()
    if CONTROL.exists():
        return _handed_over()
    width, _, height = os.environ.get(SCREEN_VARIABLE, "1920x1080").partition("x")
    config = image_config((int(width), int(height)), fullscreen=False)
    return replace(config, tcp=f"0.0.0.0:{STOCK_PORT}", memory_mb=0)


def _handed_over() -> GuestConfig:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(CONTROL))
    text, fds = b"", list[int]()
    while not text.endswith(END):
        piece, more, _, _ = socket.recv_fds(connection, 1 << 16, MAX_FDS)
        if not piece:
            raise OSError("the owner closed the connection without a word")
        text += piece
        fds += more
    for fd in fds:
        os.set_inheritable(fd, False)
    message = json.loads(text)
    named = dict(zip(message["fds"], fds, strict=True))
    # What the guest has to say goes to its owner; no file keeps it.
    lifeline = connection.detach()
    os.dup2(lifeline, 2)
    settings: dict[str, Any] = {**message["settings"], "lifeline_fd": lifeline}
    for name in ("server_fd", "devtools_fd", "vlc_fd"):
        settings[name] = named[name]
    assets = {name: fd for name, fd in named.items() if name.startswith(ASSET)}
    settings["assets"] = {name.removeprefix(ASSET): f"/proc/self/fd/{fd}" for name, fd in assets.items()}
    return GuestConfig.from_json(json.dumps(settings))
