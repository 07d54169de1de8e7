"""Provider ``container``: desktops in containers of our Debian image (envs/desktop). No KVM, no VM image.

A guest is started in a container by an engine (Docker, bubblewrap), handed its sockets, watched and ended.
Results are OSWorld-compatible, not OSWorld's: see docs/fidelity.md.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import json
import logging
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arpo_replica.actions.types import Action
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.config.desktop import BUILT_IMAGE, ContainerConfig, DesktopConfig
from arpo_replica.desktop.interface import DesktopAddress
from arpo_replica.desktop.sandbox import USER_ID, DataFiles
from arpo_replica.providers.bwrap_engine import why_no_network
from arpo_replica.providers.desktop_image import VERSIONS
from arpo_replica.providers.engine import ContainerSpec, Engine, make_engine
from arpo_replica.providers.guest_desktop import NARROW, Ended, GuestDesktop, Running, listen, pack_assets
from arpo_replica.providers.relay import relay
from arpo_replica.suites.evaluate import seconds_to_settle, uses_osworld, verdict
from arpo_replica.tasks.model import Task
from guest.config import GuestConfig
from guest.container_start import ASSET, CONTROL, END, image_config
from guest.files import POLICY, static_files

if TYPE_CHECKING:
    from arpo_replica.suites.osworld.client import OSWorldWorker

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


class RunningContainer(Running):
    """One guest in a container."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        fds: list[int],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """``reader`` and ``writer``: the connection to the guest. It says what goes wrong, and ends when
        either side ends."""
        super().__init__(fds, reader)
        self.name, self.engine, self.writer = name, engine, writer
        self.vlc_path = f"/proc/self/fd/{fds[2]}"
        """The socket of what listens on port 8080 inside."""

    @property
    def alive(self) -> bool:
        return not self.log_reader.done()

    async def wait(self) -> None:
        await asyncio.wait({self.log_reader})

    async def end(self) -> None:
        await _remove(self.engine, self.name)
        self.writer.close()
        self.log_reader.cancel()
        await asyncio.wait({self.log_reader})
        self.close_files()


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
        running = await _hand_over(connection, settings, assets, name=name, engine=engine)
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
    await _remove(engine, name)


async def _remove(engine: Engine, name: str) -> None:
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
        start_s=config.start_timeout_s,
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
    connection: socket.socket, settings: GuestConfig, assets: dict[str, bytes], *, name: str, engine: Engine
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
    return RunningContainer(name, engine, kept, reader, writer)


# -- the provider --------------------------------------------------------------------------------

WITH_WINDOW = (
    "code", "eog", "evince", "gedit", "gimp", "gnome-terminal", "google-chrome", "libreoffice", "nautilus",
    "soffice", "thunderbird", "vlc",
)  # fmt: skip
FILE_COMMANDS = {"cat", "chmod", "cp", "ls", "mkdir", "mv", "rm", "rmdir", "tee", "touch"}
"""What the stand-in for sudo can do on the user's own files (``bwrap_engine.SUDO``)."""
WINDOW_S = 30.0
CALM_S = 8.0
"""Longest wait for a desktop to come to rest after a set-up: a video or an animation never does."""


class Past(enum.Enum):
    """What a container has been through."""

    NOTHING = enum.auto()
    CLEANABLE = enum.auto()
    ANYTHING = enum.auto()


def kind_of(task: Task, config: DesktopConfig) -> Kind:
    """What the task's container is allowed."""
    own = config.container
    network = own.network == "always" or (own.network == "task" and task.needs_network)
    sudo = own.sudo == "always" or (own.sudo == "task" and needs_sudo(task))
    return Kind(network=network, sudo=sudo)


def needs_sudo(task: Task) -> bool:
    """True if the task file speaks of sudo or of the user's password anywhere."""
    text = json.dumps(task.raw or {"instruction": task.instruction, "config": task.config}).lower()
    return any(word in text for word in ("sudo", "{client_password}", "password is 'password'", "pkexec"))


def needs_root(task: Task) -> bool:
    """True if the task wants more of sudo than to work on the user's own files: packages, users, another's
    files."""
    text = json.dumps(task.raw or {"instruction": task.instruction, "config": task.config})
    commands = re.findall(r"\bsudo(?: -\S+)* (\w+)", text)
    return needs_sudo(task) and not (commands and set(commands) <= FILE_COMMANDS)


def refuse_for_bubblewrap(tasks: Iterable[Task], own: ContainerConfig) -> None:
    """Refuse tasks that no desktop without Docker could solve. Raises ``UserError``."""
    for task in tasks:
        lacks = []
        if own.sudo == "task" and needs_root(task):
            lacks.append("a sudo that is root's")
        if own.network == "task" and task.needs_network and (problem := why_no_network()):
            lacks.append(f"a network ({problem})")
        if lacks:
            raise UserError(
                f"Task {task.domain}/{task.id} wants {' and '.join(lacks)}, which desktops by bubblewrap do "
                "not have here: start a Docker daemon, or leave the task out of the split."
            )


def opens_window(task: Task) -> bool:
    """True if a window has to be there after the task's set-up."""
    for step in task.config:
        parameters = step.get("parameters", {})
        if step.get("type") == "open":
            return True
        command = parameters.get("command", "")
        words = command.split() if isinstance(command, str) else command
        if step.get("type") == "launch" and words and Path(words[0]).name in WITH_WINDOW:
            return True
    return False


class ContainerDesktop(GuestDesktop):
    """One desktop; see ``arpo_replica.desktop.interface.Desktop``."""

    _running: RunningContainer | None

    def __init__(self, name: str, config: DesktopConfig, provider: ContainerProvider) -> None:
        super().__init__(name, config)
        self._provider = provider
        self._kind = Kind()
        self._past = Past.NOTHING
        self._worker: OSWorldWorker | None = None
        self._acted: float | None = None

    async def _launch(self) -> RunningContainer:
        self._past = Past.NOTHING
        running = await self._provider.take(self._kind)
        try:
            self.ran_on = await self._provider.ran_on()
        except BaseException:  # also when cancelled: nobody else can end it yet
            await asyncio.shield(running.end())
            raise
        return running

    async def reset(self, task: Task) -> None:
        """OSWorld's tasks, and those that may do more than others, get a new container."""
        if self._closed:
            raise DesktopError(f"desktop {self.name} is closed")
        self._acted = None
        kind, theirs = kind_of(task, self._config), uses_osworld(task)
        hard = self._config.container.reset == "hard" or theirs or kind != Kind()
        if (
            kind != self._kind
            or self._past is Past.ANYTHING
            or (hard and self._past is Past.CLEANABLE)
            or self._running is None
            or not self._running.alive
        ):
            await self._replace(kind)
        self._past = Past.ANYTHING if hard else Past.CLEANABLE
        if not theirs:
            await super().reset(task)
            return
        self._seen = None
        await self._with_worker(lambda worker, address: worker.set_up(task, address, self.screen))
        await self._alive(self.guest.calm(int(opens_window(task)), WINDOW_S, CALM_S))

    async def _replace(self, kind: Kind) -> None:
        self._kind = kind
        await self._stop()
        await self.start()

    async def _with_worker(
        self, work: Callable[[OSWorldWorker, DesktopAddress], Coroutine[Any, Any, Any]]
    ) -> Any:
        """Let OSWorld's evaluators work on this desktop. They know nothing of its end: we look after that."""
        running = self._running
        if running is None or not running.alive:
            raise DesktopError(f"desktop {self.name} has ended")
        if self._worker is None:
            from arpo_replica.suites.osworld.client import OSWorldWorker

            self._worker = await OSWorldWorker.start(self.name)
        worker = self._worker
        try:
            async with relay(running.server_path, running.devtools_path, running.vlc_path) as address:
                return await running.meanwhile(work(worker, address))
        except BaseException as error:
            # It may hang on what is gone, or have ended itself: the next task gets a new one.
            self._worker = None
            await asyncio.shield(worker.close())
            if isinstance(error, Ended):
                raise DesktopError(f"desktop {self.name} has ended: {running.last_words()}") from None
            raise

    async def act(self, action: Action, action_id: str) -> None:
        await super().act(action, action_id)
        self._acted = time.monotonic()

    async def evaluate(self, task: Task, last_action: Action | None) -> float:
        if not uses_osworld(task):
            return await super().evaluate(task, last_action)
        known = verdict(task, last_action)
        if known is not None:
            return known
        await asyncio.sleep(seconds_to_settle(task, self._acted))
        score: float = await self._with_worker(
            lambda worker, address: worker.evaluate(task, address, self.screen, False)
        )
        return score

    async def close(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.close()
        await super().close()
        await self._provider.forget(self)


class ContainerProvider:
    """Makes desktops; see ``arpo_replica.desktop.interface.DesktopProvider``. Belongs to one event loop."""

    def __init__(self, config: DesktopConfig, assets: Mapping[str, Path] | None = None) -> None:
        """``assets``: as of ``ProcessProvider``."""
        self._config = config
        self._folders = assets
        self._desktops = set[ContainerDesktop]()
        self._spares = list[asyncio.Task[RunningContainer]]()
        self._reaped: asyncio.Task[list[str]] | None = None
        self._ran_on: dict[str, str] = {}

    def check(self) -> None:
        """Raises ``UserError`` naming what is missing: the daemon, the image, the site's folder.

        Our own image need not be there yet: a rule builds it.
        """
        self._engine.check()
        if self._config.container.image != BUILT_IMAGE:
            self._engine.image(self._config.container.image)
        pack_assets(self._folders)

    @functools.cached_property
    def _engine(self) -> Engine:
        return make_engine(self._config.container)

    @functools.cached_property
    def _assets(self) -> dict[str, bytes]:
        return pack_assets(self._folders)

    async def start(self, name: str) -> ContainerDesktop:
        """The first one removes what killed processes have left."""
        if self._reaped is None:
            self._reaped = asyncio.create_task(asyncio.to_thread(self._engine.reap))
        for leftover in await asyncio.shield(self._reaped):
            logger.info("removed the container %s of a process that was killed", leftover)
        desktop = ContainerDesktop(name, self._config, self)
        self._desktops.add(desktop)
        try:
            await desktop.start()
        except BaseException:
            await self.forget(desktop)
            raise
        return desktop

    async def take(self, kind: Kind) -> RunningContainer:
        """A new container of that kind: a spare one if there is one. A new spare is started then."""
        running = await self._spare() if kind == Kind() else None
        if running is None:
            running = await self._launch("desktop", kind)
        while kind == Kind() and len(self._spares) < self._config.container.spares:
            self._spares.append(asyncio.create_task(self._launch("spare", kind)))
        return running

    async def ran_on(self) -> dict[str, str]:
        """See ``Desktop``; of a desktop that has started."""
        if not self._ran_on:
            about = await asyncio.to_thread(self._engine.describe)
            image = await asyncio.to_thread(self._engine.image, self._config.container.image)
            self._ran_on = {key: about[key] for key in ("engine", "root", "sudo")} | {
                "image": image["id"].removeprefix("sha256:")
            }
        return self._ran_on

    async def _launch(self, label: str, kind: Kind) -> RunningContainer:
        return await launch_container(self._config, label, kind, self._assets, self._engine)

    async def _spare(self) -> RunningContainer | None:
        while self._spares:
            task = self._spares.pop(0)
            try:
                running = await task
            except DesktopError as error:
                logger.warning("a spare desktop did not start: %s", error)
            except asyncio.CancelledError:
                await _drop(task)
                raise
            else:
                if running.alive:
                    return running
                await running.end()
        return None

    async def forget(self, desktop: ContainerDesktop) -> None:
        """A desktop is closed. With the last one the spares go."""
        self._desktops.discard(desktop)
        if not self._desktops:
            spares, self._spares = self._spares, []
            await asyncio.gather(*(_drop(spare) for spare in spares))

    def describe(self) -> dict[str, Any]:
        own = self._config.container
        image = self._engine.image(own.image)
        versions = json.loads(self._engine.read(own.image, VERSIONS))
        return {
            "provider": self._config.provider,
            "mark": "OSWorld-compatible, container desktop",
            "isolation": "container",
            **self._engine.describe(),
            "image": image["id"],
            "image_inputs": image["labels"].get("arpo.inputs", ""),
            "screen": list(self._config.screen),
            "packages": versions,
        }


async def _drop(spare: asyncio.Task[RunningContainer]) -> None:
    """End a spare desktop, started or not. Never raises."""
    if not spare.done():
        spare.cancel()
    await asyncio.wait({spare})
    if not spare.cancelled() and spare.exception() is None:
        await spare.result().end()
