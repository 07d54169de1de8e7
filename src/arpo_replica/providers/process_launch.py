"""Starts a guest in its sandbox, knows whether it lives, and ends it without a trace."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from arpo_replica.base.errors import DesktopError
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.desktop import sandbox
from guest.config import GuestConfig
from guest.files import POLICY, static_files
from guest.processes import descendants, kill

NARROW = 640
"""Below this width no browser window with its bars fits: the page fills the screen instead."""
KILL_S = 5.0
LOG_LINES = 20


@dataclass(frozen=True)
class Archives:
    """What a desktop is made of, as zip archives."""

    guest: bytes
    assets: dict[str, bytes]


@dataclass
class RunningGuest:
    """One guest and what it takes to reach and to end it."""

    process: asyncio.subprocess.Process
    server_path: str
    """Path of the HTTP server's Unix socket. It has no name on disk: valid in this process alone."""
    devtools_path: str
    """The same for the browser's DevTools."""
    fds: list[int]
    first_process: int
    """pidfd of the sandbox's first process; -1 without a sandbox."""
    folder: sandbox.PlainFolder | None
    log: collections.deque[str] = field(default_factory=lambda: collections.deque(maxlen=LOG_LINES))
    log_reader: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """False once the sandbox has ended."""
        return self.process.returncode is None

    async def wait(self) -> None:
        """Return when the sandbox has ended."""
        await self.process.wait()

    def last_words(self) -> str:
        """What the guest wrote last, for error messages."""
        return " | ".join(self.log)[-600:]

    async def end(self) -> None:
        """Kill everything in the sandbox and wait until it is gone. Never raises."""
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
        if self.log_reader is not None:
            await self.log_reader
        fds, self.fds = [*self.fds, self.first_process], []
        self.first_process = -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)
        if self.folder is not None:
            await asyncio.to_thread(self.folder.remove)

    async def read_log(self) -> None:
        """Keep the last lines of the guest's stderr."""
        stream = self.process.stderr
        assert stream is not None
        while line := await stream.readline():
            self.log.append(line.decode(errors="replace").rstrip())


async def launch(config: DesktopConfig, number: int, archives: Archives) -> RunningGuest:
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
            settle_ms=config.settle_ms,
            wait_s=config.wait_seconds,
            pause_s=config.pause_seconds,
            server_fd=lent[0],
            devtools_fd=lent[1],
            lifeline_fd=lent[2],
        )
        if config.isolation == "namespace":
            _pipe(lent, kept, ours_reads=True)
            command, environment = _namespaced(base, config.disk_mb, archives, data, lent[3]), None
        else:
            user = sandbox.unprivileged_id(number)
            folder = sandbox.PlainFolder(user)
            command, environment = _plain(base, archives, folder)
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
    paths = [f"/proc/self/fd/{fd}" for fd in kept[:2]]
    running = RunningGuest(process, paths[0], paths[1], kept, -1, folder)
    running.log_reader = asyncio.create_task(running.read_log())
    if config.isolation == "namespace":
        await _find_first_process(running, kept[3], config.start_timeout_s)
    return running


def listen(lent: list[int], kept: list[int]) -> None:
    """A listening Unix socket for the guest, and our way to it: a descriptor of its unlinked name.

    So nothing lies on disk, whatever happens to us, and no other user can connect.
    """
    folder = tempfile.mkdtemp(prefix="arpo-")
    listener = socket.socket(socket.AF_UNIX)
    try:
        path = f"{folder}/socket"
        listener.bind(path)
        listener.listen(64)
        kept.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
        lent.append(listener.detach())
    finally:
        listener.close()
        shutil.rmtree(folder)


def _pipe(lent: list[int], kept: list[int], ours_reads: bool) -> None:
    reader, writer = os.pipe()
    kept.append(reader if ours_reads else writer)
    lent.append(writer if ours_reads else reader)


async def _find_first_process(running: RunningGuest, info_fd: int, limit_s: float) -> None:
    """Learn the sandbox's first process from bubblewrap."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(info_fd, ready.set)
    text = b""
    try:
        async with asyncio.timeout(limit_s):
            while b"}" not in text:
                await ready.wait()
                ready.clear()
                if not (piece := os.read(info_fd, 4096)):
                    break
                text += piece
        running.first_process = os.pidfd_open(json.loads(text)["child-pid"])
    except (TimeoutError, OSError, ValueError, KeyError) as error:
        if running.alive:
            running.process.kill()
        await running.end()
        raise DesktopError(f"the sandbox did not start: {running.last_words() or repr(error)}") from error
    finally:
        loop.remove_reader(info_fd)


def _namespaced(
    base: GuestConfig, disk_mb: int, archives: Archives, data: sandbox.DataFiles, info_fd: int
) -> list[str]:
    places = {name: f"/opt/desktop/assets/{name}.zip" for name in archives.assets}
    config = replace(
        base,
        display="0",
        assets=places,
        memory_folders=(base.home, base.tmp, "/dev/shm"),  # noqa: S108 - the sandbox's own
    )
    contents = {places[name]: archive for name, archive in archives.assets.items()}
    contents[sandbox.GUEST_ARCHIVE] = archives.guest
    return sandbox.bubblewrap(
        config,
        disk_mb=disk_mb,
        files=static_files(config),
        archives=contents,
        data=data,
        info_fd=info_fd,
    )


def _plain(
    base: GuestConfig, archives: Archives, folder: sandbox.PlainFolder
) -> tuple[list[str], dict[str, str]]:
    """The fallback: no namespaces. Own ports, and Chromium's own rules keep it to its site."""
    site, devtools = _free_port(), _free_port()
    rules = ",".join(f"MAP {host}:8000 127.0.0.1:{site}" for host in ("localhost", "127.0.0.1"))
    assets = {
        name: str(folder.write(f"assets/{name}.zip", archive)) for name, archive in archives.assets.items()
    }
    guest = folder.write("guest.zip", archives.guest)
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
