"""Provider ``container``: desktops in containers of our Debian image (envs/desktop). No KVM, no VM image.

Results are OSWorld-compatible, not OSWorld's: see docs/fidelity.md.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import json
import logging
import re
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arpo_replica.actions.types import Action
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.config.desktop import BUILT_IMAGE, ContainerConfig, DesktopConfig
from arpo_replica.desktop.address import DesktopAddress
from arpo_replica.providers.container_launch import Kind, RunningContainer, launch_container
from arpo_replica.providers.engine import Engine, make_engine
from arpo_replica.providers.guest_desktop import GuestDesktop, pack_assets
from arpo_replica.providers.relay import relay
from arpo_replica.suites.evaluate import seconds_to_settle, uses_osworld, verdict
from arpo_replica.tasks.model import Task

if TYPE_CHECKING:
    from arpo_replica.suites.osworld.client import OSWorldWorker

logger = logging.getLogger(__name__)

VERSIONS = "/opt/desktop/versions.json"
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
        if own.network == "task" and task.needs_network:
            lacks.append("a network")
        if lacks:
            raise UserError(
                f"Task {task.domain}/{task.id} wants {' and '.join(lacks)}, which desktops by bubblewrap do "
                "not have: start a Docker daemon, or leave the task out of the split."
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

    @property
    def container(self) -> str | None:
        """Name of its container; None if it is closed."""
        return None if self._running is None else self._running.name

    async def _launch(self) -> RunningContainer:
        self._past = Past.NOTHING
        return await self._provider.take(self._kind)

    async def reset(self, task: Task) -> None:
        """See the interface. OSWorld's tasks, and those that may do more than others, get a new container."""
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
                working = asyncio.ensure_future(work(worker, address))
                ended = asyncio.ensure_future(running.wait())
                try:
                    await asyncio.wait({working, ended}, return_when=asyncio.FIRST_COMPLETED)
                    if working.done():
                        return working.result()
                finally:
                    ended.cancel()
                    working.cancel()
                    await asyncio.wait({working})
            raise DesktopError(f"desktop {self.name} has ended: {running.last_words()}")
        except BaseException:
            # It may hang on what is gone, or have ended itself: the next task gets a new one.
            self._worker = None
            await asyncio.shield(worker.close())
            raise

    async def act(self, action: Action, action_id: str) -> None:
        """See the interface."""
        await super().act(action, action_id)
        self._acted = time.monotonic()

    async def evaluate(self, task: Task, last_action: Action | None) -> float:
        """See the interface."""
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
        """See the interface."""
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
        """See the interface. The first one removes what killed processes have left."""
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
        """See the interface."""
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
