"""Provider ``process``: desktops as sandboxed processes of this machine. No Docker, no virtual machine.

A desktop is one bubblewrap sandbox with Xvfb, openbox, Chromium and the guest server (``src/guest``). Here a
guest is started in its sandbox, watched, and ended without a trace.
"""

import asyncio
import contextlib
import functools
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.base.processes import free_port
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.desktop import sandbox
from arpo_replica.providers.guest_desktop import NARROW, GuestDesktop, Running, listen, pack_assets
from arpo_replica.providers.root_files import RootFileSystem
from guest.config import GuestConfig
from guest.files import POLICY, static_files
from guest.processes import descendants, kill

KILL_S = 5.0


@dataclass(frozen=True)
class Parts:
    """What a desktop is made of."""

    guest: bytes
    """Zip archive."""
    assets: dict[str, bytes]
    """Zip archives."""
    bubblewrap: list[str]
    """How it is called."""
    root: Path
    """The system whose programs the desktop has."""
    ran_on: dict[str, str]
    """See ``Desktop``."""


class RunningGuest(Running):
    """One guest in its sandbox."""

    def __init__(
        self, process: asyncio.subprocess.Process, fds: list[int], folder: sandbox.PlainFolder | None
    ) -> None:
        assert process.stderr is not None
        super().__init__(fds, process.stderr)
        self.process = process
        self.folder = folder
        self.first_process = -1
        """pidfd of the sandbox's first process; -1 without a sandbox."""

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    async def wait(self) -> None:
        await self.process.wait()

    async def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.first_process >= 0:
                # It is gone only when the kernel has ended all other processes of the sandbox.
                signal.pidfd_send_signal(self.first_process, signal.SIGKILL)
            elif self.alive:
                self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.process.wait(), KILL_S)
        except TimeoutError:
            kill([*descendants(self.process.pid), self.process.pid])
            await self.process.wait()
        await self.log_reader
        self.first_process = -1
        self.close_files()
        if self.folder is not None:
            await asyncio.to_thread(self.folder.remove)


async def launch(config: DesktopConfig, number: int, parts: Parts) -> RunningGuest:
    """Start one guest; it takes a second until it answers. Raises ``DesktopError``.

    ``number`` is unique in this process.
    """
    data = sandbox.DataFiles()
    lent: list[int] = []
    kept: list[int] = []
    folder: sandbox.PlainFolder | None = None
    try:
        listen(lent, kept)
        listen(lent, kept)
        _pipe(lent, kept, ours_reads=False)
        base = GuestConfig(
            screen=config.screen,
            fullscreen=config.screen[0] < NARROW,
            memory_mb=config.memory_mb,
            start_s=config.start_timeout_s,
            settle_ms=config.settle_ms,
            wait_s=config.wait_seconds,
            pause_s=config.pause_seconds,
            server_fd=lent[0],
            devtools_fd=lent[1],
            lifeline_fd=lent[2],
        )
        if config.isolation == "namespace":
            _pipe(lent, kept, ours_reads=True)
            command, environment = _namespaced(base, config.disk_mb, parts, data, lent[3]), None
        else:
            user = sandbox.unprivileged_id(number)
            folder = sandbox.PlainFolder(user)
            command, environment = _plain(base, parts, folder)
        process = await asyncio.create_subprocess_exec(
            *sandbox.unprivileged(number),
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=[*lent, *data.fds],
            start_new_session=True,
            cwd="/",
            env=environment,
        )
    except OSError as error:
        for fd in kept:
            os.close(fd)
        if folder is not None:
            folder.remove()
        raise DesktopError(f"the desktop could not be started: {error}") from error
    finally:
        data.close()
        for fd in lent:
            os.close(fd)
    running = RunningGuest(process, kept, folder)
    if config.isolation == "namespace":
        await _find_first_process(running, kept[3], config.start_timeout_s)
    return running


def _pipe(lent: list[int], kept: list[int], ours_reads: bool) -> None:
    reader, writer = os.pipe()
    kept.append(reader if ours_reads else writer)
    lent.append(writer if ours_reads else reader)


async def _find_first_process(running: RunningGuest, info_fd: int, limit_s: float) -> None:
    """Learn the sandbox's first process from bubblewrap."""
    try:
        async with asyncio.timeout(limit_s):
            child = await asyncio.to_thread(sandbox.first_process, info_fd)
        running.first_process = os.pidfd_open(child)
        running.fds.append(running.first_process)
    except (TimeoutError, OSError, ValueError, KeyError) as error:
        if running.alive:
            running.process.kill()
        await running.end()
        raise DesktopError(f"the sandbox did not start: {running.last_words() or repr(error)}") from error


def _namespaced(
    base: GuestConfig, disk_mb: int, parts: Parts, data: sandbox.DataFiles, info_fd: int
) -> list[str]:
    places = {name: f"/opt/desktop/assets/{name}.zip" for name in parts.assets}
    config = replace(
        base,
        display="0",
        assets=places,
        memory_folders=(base.home, base.tmp, "/dev/shm"),  # noqa: S108 - the sandbox's own
    )
    contents = {places[name]: archive for name, archive in parts.assets.items()}
    contents[sandbox.GUEST_ARCHIVE] = parts.guest
    return sandbox.bubblewrap(
        config,
        program=parts.bubblewrap,
        root=parts.root,
        disk_mb=disk_mb,
        files=static_files(config),
        archives=contents,
        data=data,
        info_fd=info_fd,
    )


def _plain(base: GuestConfig, parts: Parts, folder: sandbox.PlainFolder) -> tuple[list[str], dict[str, str]]:
    """The fallback: no namespaces. Own ports, and Chromium's own rules keep it to its site."""
    site, devtools = free_port(), free_port()
    rules = ",".join(f"MAP {host}:8000 127.0.0.1:{site}" for host in ("localhost", "127.0.0.1"))
    assets = {
        name: str(folder.write(f"assets/{name}.zip", archive)) for name, archive in parts.assets.items()
    }
    guest = folder.write("guest.zip", parts.guest)
    config = replace(
        base,
        home=str(folder.private("home")),
        tmp=str(folder.private("tmp")),
        remove=str(folder.path),
        bin=str(folder.path / "bin"),
        share=str(folder.path / "share"),
        chromium=str(sandbox.CHROMIUM),
        chromium_flags=(f"--host-resolver-rules={rules},MAP * ~NOTFOUND",),
        private_network=False,
        site_port=site,
        devtools_port=devtools,
        assets=assets,
    )
    for place, file in static_files(config).items():
        if place != POLICY:
            folder.write(str(Path(place).relative_to(folder.path)), file.text.encode(), file.mode)
    folder.give_away()
    environment = {"PATH": "/usr/bin:/bin", "HOME": config.home, "LANG": "C.UTF-8", "PYTHONPATH": str(guest)}
    return sandbox.guest_command(config), environment


# -- the provider --------------------------------------------------------------------------------

PROGRAMS = {
    "Xvfb": "xvfb",
    "openbox": "openbox",
    "setpriv": "util-linux",
    "python3": "python3",
    "chromium": "chromium",
}
FIND = (
    "/usr/bin/env", "-i", sandbox.PYTHON, "-c",
    "import importlib.util, sys; print(*(m for m in sys.argv[1:] if importlib.util.find_spec(m) is None))",
)  # fmt: skip
"""Prints those of the modules that are missing."""
MODULES = {"aiohttp": "python3-aiohttp", "Xlib": "python3-xlib", "PIL": "python3-pil"}


class ProcessDesktop(GuestDesktop):
    """One desktop; see ``arpo_replica.desktop.interface.Desktop``."""

    _running: RunningGuest | None

    def __init__(self, name: str, config: DesktopConfig, parts: Parts, number: int) -> None:
        super().__init__(name, config)
        self._parts = parts
        self._number = number

    async def _launch(self) -> RunningGuest:
        self.ran_on = self._parts.ran_on
        return await launch(self._config, self._number, self._parts)


class ProcessProvider:
    """Makes desktops; see ``arpo_replica.desktop.interface.DesktopProvider``."""

    def __init__(self, config: DesktopConfig, assets: Mapping[str, Path] | None = None) -> None:
        """``assets``: first part of a path on the desktop's site -> folder served below it.

        Without it the MiniWoB++ pages are served under ``/miniwob/``.
        """
        self._config = config
        self._assets = assets
        self._numbers = itertools.count()
        own = config.process
        self._image = None if own.image is None else RootFileSystem(own.image, own, "desktop.process")

    def check(self) -> None:
        """Raises ``UserError`` naming what is missing and how to install it."""
        if self._image is not None:
            self._image.identify()
            self._image.check()
        parts, namespaces = self._parts, self._config.isolation == "namespace"
        folders = (str(parts.root / folder) for folder in ("usr/bin", "usr/lib/chromium"))
        path = None if self._image is None else os.pathsep.join(folders)
        missing = [
            package for program, package in PROGRAMS.items() if shutil.which(program, path=path) is None
        ]
        if namespaces and shutil.which(parts.bubblewrap[0]) is None:
            missing.append("bubblewrap")
        problem = ""
        if namespaces and "bubblewrap" not in missing:
            problem = sandbox.why_no_sandbox([*self._sandbox, "true"])
        if self._image is None or not problem:
            missing += [MODULES[name] for name in self._output(*FIND, *MODULES).split()]
        if missing and self._image is not None:
            raise UserError(
                f"{self._image.image} (desktop.process.image) lacks {', '.join(missing)}: give an image that "
                "build_desktop_image has made."
            )
        if missing:
            raise UserError(
                f"Desktops need Debian packages; run: apt-get install {' '.join(missing)}, or give "
                "desktop.process.image."
            )
        if problem:
            other = ", or set desktop.isolation to 'browser'" if self._image is None else ""
            raise UserError(f"{problem.rstrip('.')}{other}.")

    @functools.cached_property
    def _parts(self) -> Parts:
        guest, assets = sandbox.pack_guest(), pack_assets(self._assets)
        ran_on = {"engine": "bwrap" if self._config.isolation == "namespace" else "none"}
        if self._image is None:
            return Parts(guest, assets, ["bwrap"], sandbox.HOST, ran_on)
        root = self._image.folder()
        ran_on |= {"root": self._image.way, "image": self._image.identify()["sha256"]}
        return Parts(guest, assets, self._image.bubblewrap(), root, ran_on)

    @property
    def _sandbox(self) -> list[str]:
        """Command prefix: among the programs that desktops have, closed in as these are."""
        parts = self._parts
        options = ["--unshare-all", "--die-with-parent", "--ro-bind", str(parts.root), "/", "--proc", "/proc"]
        options += ["--dev", "/dev", "--size", "1048576", "--tmpfs", "/tmp"]  # noqa: S108  # bubblewrap >= 0.7
        return [*parts.bubblewrap, *options]

    def _output(self, *command: str) -> str:
        """What a program of the desktops prints."""
        inside = [] if self._image is None else [*sandbox.unprivileged(0), *self._sandbox]
        done = subprocess.run([*inside, *command], capture_output=True, text=True, check=False, cwd="/")
        return done.stdout.strip()

    async def start(self, name: str) -> ProcessDesktop:
        desktop = ProcessDesktop(name, self._config, self._parts, next(self._numbers))
        await desktop.start()
        return desktop

    def describe(self) -> dict[str, Any]:
        config = self._config
        version = ("dpkg-query", "--showformat=${Version}", "--show")
        about = {
            "provider": config.provider,
            "isolation": config.isolation,
            "screen": list(config.screen),
            "browser": self._output(str(sandbox.CHROMIUM), "--version"),
            "x_server": f"xvfb {self._output(*version, 'xvfb')}",
            "window_manager": f"openbox {self._output(*version, 'openbox')}",
        }
        return about if self._image is None else {**about, "image": self._image.identify()["sha256"]}
