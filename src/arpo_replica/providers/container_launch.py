"""Starts one guest in a container, hands it its sockets, knows whether it lives, and ends it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from arpo_replica.base.errors import DesktopError
from arpo_replica.config.desktop import ContainerConfig, DesktopConfig
from arpo_replica.desktop.sandbox import USER_ID, DataFiles
from arpo_replica.providers.engine import ContainerSpec, Engine
from arpo_replica.providers.process_launch import LOG_LINES, NARROW, listen
from guest.config import GuestConfig
from guest.container_start import ASSET, CONTROL, END, image_config
from guest.files import POLICY, static_files

logger = logging.getLogger(__name__)

SPARE_MB = 256
"""The container may hold so much more than the guest grants its programs: it can still say why it ends."""
LOOK_S = 0.25
RUNTIME = "/run/user/1000"
PLACES = {"home": "/home/user", "tmp": "/tmp", "more": "/var/tmp"}  # noqa: S108 - the container's own
LISTENERS = ("server_fd", "devtools_fd", "vlc_fd")


@dataclass(frozen=True)
class Kind:
    """What a task may ask of its container."""

    network: bool = False
    sudo: bool = False


@dataclass
class RunningContainer:
    """One guest in a container and what it takes to reach and to end it."""

    name: str
    kind: Kind
    engine: Engine
    server_path: str
    """Path of the HTTP server's Unix socket. It has no name on disk: valid in this process alone."""
    devtools_path: str
    """The same for what listens on port 9222 inside."""
    vlc_path: str
    """The same for port 8080."""
    fds: list[int]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    """The connection to the guest: it says what goes wrong, and ends when either side ends."""
    log: collections.deque[str] = field(default_factory=lambda: collections.deque(maxlen=LOG_LINES))
    log_reader: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """False once the guest has ended."""
        return self.log_reader is not None and not self.log_reader.done()

    async def wait(self) -> None:
        """Return when the guest has ended."""
        assert self.log_reader is not None
        await asyncio.wait({self.log_reader})

    def last_words(self) -> str:
        """What the guest said last, for error messages."""
        return " | ".join(self.log)[-600:]

    async def read_log(self) -> None:
        """Keep the last lines that the guest says."""
        with contextlib.suppress(OSError, ValueError):  # a line without end: the guest is not to be trusted
            while line := await self.reader.readline():
                self.log.append(line.decode(errors="replace").rstrip())

    async def end(self) -> None:
        """Kill and remove the container. Never raises."""
        try:
            await asyncio.to_thread(self.engine.remove, self.name)
        except DesktopError as error:
            logger.warning("%s", error)
        self.writer.close()
        if self.log_reader is not None:
            self.log_reader.cancel()
            await asyncio.wait({self.log_reader})
        fds, self.fds = self.fds, []
        for fd in fds:
            os.close(fd)


async def launch_container(
    config: DesktopConfig, label: str, kind: Kind, assets: dict[str, bytes], engine: Engine
) -> RunningContainer:
    """Start one container; its guest answers within a second. Raises ``DesktopError``."""
    name = f"arpo-{secrets.token_hex(8)}"
    folder = Path(tempfile.mkdtemp(prefix="arpo-"))
    settings = guest_settings(config)
    creation: asyncio.Future[None] | None = None
    try:
        control, files = _prepare(folder, settings)
        spec = container_spec(config, kind, name=name, label=label, control=folder / "run", files=files)
        with control:
            creation = asyncio.ensure_future(asyncio.to_thread(engine.run, spec))
            await asyncio.shield(creation)
            connection = await _accept(control, engine, name, config.start_timeout_s)
        running = await _hand_over(connection, settings, assets, name=name, kind=kind, engine=engine)
    except BaseException as error:
        # Also when cancelled: the thread that starts the container goes on.
        await asyncio.shield(_discard(engine, name, creation))
        if isinstance(error, OSError):
            raise DesktopError(f"the container could not be started: {error}") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return running


async def _discard(engine: Engine, name: str, creation: asyncio.Future[None] | None) -> None:
    if creation is None:
        return
    await asyncio.wait({creation})
    if not creation.cancelled():
        creation.exception()
    try:
        await asyncio.to_thread(engine.remove, name)
    except DesktopError as error:
        logger.warning("%s", error)


def guest_settings(config: DesktopConfig) -> GuestConfig:
    """What the guest in the container is told, apart from its sockets."""
    return replace(
        image_config(config.screen, fullscreen=config.screen[0] < NARROW),
        memory_mb=config.memory_mb,
        memory_folders=(*PLACES.values(), "/dev/shm", RUNTIME),  # noqa: S108 - the container's own
        settle_ms=config.settle_ms,
        wait_s=config.wait_seconds,
        pause_s=config.pause_seconds,
    )


def container_spec(
    config: DesktopConfig, kind: Kind, *, name: str, label: str, control: Path, files: dict[Path, str]
) -> ContainerSpec:
    """What the container is given. ``disk_mb`` is split as in provider ``process``."""
    own: ContainerConfig = config.container
    quarter = max(config.disk_mb // 4, 1)
    options = f"rw,exec,nosuid,nodev,uid={USER_ID},gid={USER_ID}"
    return ContainerSpec(
        name=name,
        image=own.image,
        label=label,
        control=control,
        files=files,
        tmpfs={
            PLACES["home"]: f"{options},mode=755,size={2 * quarter}m",
            PLACES["tmp"]: f"{options},mode=1777,size={quarter}m",
            PLACES["more"]: f"{options},mode=1777,size={quarter}m",
            RUNTIME: f"{options},mode=700,size=16m",
        },
        shared_mb=quarter,
        memory_mb=config.memory_mb + SPARE_MB,
        cpus=own.cpus,
        processes=own.processes,
        network=kind.network,
        sudo=kind.sudo,
    )


def _prepare(folder: Path, settings: GuestConfig) -> tuple[socket.socket, dict[Path, str]]:
    """Put what the container sees into ``folder``, which nobody else may enter: no matter to a mount."""
    shared = folder / "run"
    shared.mkdir()
    shared.chmod(0o755)
    control = socket.socket(socket.AF_UNIX)
    path = shared / CONTROL.name
    control.bind(str(path))
    path.chmod(0o666)
    control.listen(1)
    control.setblocking(False)
    files = {}
    if settings.fullscreen:
        policy = folder / "policy.json"
        policy.write_text(static_files(settings)[POLICY].text)
        policy.chmod(0o644)
        files[policy] = POLICY
    return control, files


async def _accept(control: socket.socket, engine: Engine, name: str, limit_s: float) -> socket.socket:
    """The guest's connection. Raises ``DesktopError`` if it ends or says nothing in time."""
    waiting = asyncio.ensure_future(asyncio.get_running_loop().sock_accept(control))
    try:
        async with asyncio.timeout(limit_s):
            while not (await asyncio.wait({waiting}, timeout=LOOK_S))[0]:
                if not await asyncio.to_thread(engine.running, name):
                    raise DesktopError("the container ended at once; is it an image of ours?")
        return waiting.result()[0]
    except TimeoutError:
        raise DesktopError(f"the container's guest did not start within {limit_s:g} s") from None
    finally:
        waiting.cancel()


async def _hand_over(
    connection: socket.socket,
    settings: GuestConfig,
    assets: dict[str, bytes],
    *,
    name: str,
    kind: Kind,
    engine: Engine,
) -> RunningContainer:
    """Give the guest its settings and its listening sockets."""
    data = DataFiles()
    lent: list[int] = []
    kept: list[int] = []
    try:
        for _ in LISTENERS:
            listen(lent, kept)
        for archive in assets.values():
            data.add(archive)
        names = [*LISTENERS, *(ASSET + asset for asset in assets)]
        text = json.dumps({"settings": asdict(settings), "fds": names}).encode() + END
        connection.setblocking(True)
        socket.send_fds(connection, [text], [*lent, *data.fds])
        connection.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=connection)
    except BaseException:
        connection.close()
        for fd in kept:
            os.close(fd)
        raise
    finally:
        data.close()
        for fd in lent:
            os.close(fd)
    server, devtools, vlc = (f"/proc/self/fd/{fd}" for fd in kept)
    running = RunningContainer(name, kind, engine, server, devtools, vlc, kept, reader, writer)
    running.log_reader = asyncio.create_task(running.read_log())
    return running
