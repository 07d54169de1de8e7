"""A desktop with our guest server in it: what the providers ``process`` and ``container`` share."""

import asyncio
import collections
import contextlib
import logging
import os
import shutil
import socket
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import TypeVar

from arpo_replica.actions.types import Action
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.desktop import sandbox
from arpo_replica.desktop.browser import EpisodeDevTools
from arpo_replica.desktop.client import GuestClient
from arpo_replica.desktop.devtools import unix
from arpo_replica.desktop.interface import FRESH_S
from arpo_replica.suites.evaluate import evaluate_task, run_setup
from arpo_replica.suites.miniwob.pages import html_root
from arpo_replica.tasks.model import Task

Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)

ORIGINS = ("http://localhost:8000", "http://127.0.0.1:8000")
"""What a page can be loaded from inside a full-screen desktop."""
NARROW = 640
"""Below this width no browser window with its bars fits: the page fills the screen instead."""
LOG_LINES = 20
ENDING_S = 2.0
"""A desktop that does not answer may be about to end; why is known only then."""


class Ended(DesktopError):
    """The guest has ended."""


class Running(ABC):
    """A guest that has been started, and what it takes to reach it."""

    def __init__(self, fds: list[int], log: asyncio.StreamReader) -> None:
        """``fds``: ours to close; the first two lead to the sockets below. ``log``: what the guest says."""
        self.server_path, self.devtools_path = (f"/proc/self/fd/{fd}" for fd in fds[:2])
        """Unix sockets of the HTTP server and of the browser's DevTools. They have no name on disk: valid in
        this process alone."""
        self.fds = fds
        self.log = collections.deque[str](maxlen=LOG_LINES)
        self.log_reader = asyncio.create_task(self._read_log(log))

    async def _read_log(self, stream: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, ValueError):  # a line without end: the guest is not to be trusted
            while line := await stream.readline():
                self.log.append(line.decode(errors="replace").rstrip())

    def last_words(self) -> str:
        """What the guest said last, for error messages."""
        return " | ".join(self.log)[-600:]

    def close_files(self) -> None:
        """After the guest's end."""
        fds, self.fds = self.fds, []
        for fd in fds:
            os.close(fd)

    async def meanwhile(self, work: Awaitable[Answer]) -> Answer:
        """What ``work`` gives. It ends with the guest: raises ``Ended`` then."""
        working, ended = asyncio.ensure_future(work), asyncio.ensure_future(self.wait())
        try:
            await asyncio.wait({working, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise Ended("its sandbox ended")
            return working.result()
        finally:
            ended.cancel()
            working.cancel()
            await asyncio.wait({working})

    @property
    @abstractmethod
    def alive(self) -> bool:
        """False once it has ended."""

    @abstractmethod
    async def wait(self) -> None:
        """Return when it has ended."""

    @abstractmethod
    async def end(self) -> None:
        """Kill everything and wait until it is gone. Never raises."""


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


def pack_assets(folders: Mapping[str, Path] | None) -> dict[str, bytes]:
    """What the desktop's site serves, as zip archives; None: the MiniWoB++ pages.

    Raises ``UserError`` if a folder does not exist.
    """
    assets = {"miniwob": html_root()} if folders is None else folders
    for name, folder in assets.items():
        if not folder.is_dir():
            raise UserError(f"The folder {folder} for the desktop's site '{name}' does not exist.")
    return {name: sandbox.pack_folder(folder) for name, folder in assets.items()}


class GuestDesktop(ABC):
    """One desktop; see ``arpo_replica.desktop.interface.Desktop``.

    ``guest`` and ``devtools`` are there for set-up steps, evaluators, the scripted expert and tests.
    """

    _running: Running | None

    def __init__(self, name: str, config: DesktopConfig) -> None:
        self.name = name
        self.screen: tuple[int, int] = config.screen
        self.ran_on: dict[str, str] = {}
        self._config = config
        self._running = None
        self._seen: tuple[float, bytes] | None = None
        self._closed = False
        self.guest: GuestClient
        self.devtools: EpisodeDevTools

    @abstractmethod
    async def _launch(self) -> Running:
        """Start the guest's surroundings; it may still be starting itself. Raises ``DesktopError``."""

    async def start(self) -> None:
        """Start it and wait until it answers. Raises ``DesktopError``."""
        running = self._running = await self._launch()
        self.guest = GuestClient(
            unix(running.server_path), self.screen, self._config.act_timeout_s, act_s=self._config.act_limit_s
        )
        self.devtools = EpisodeDevTools(
            unix(running.devtools_path), "http://localhost", self._config.act_timeout_s, self.screen, ORIGINS
        )
        try:
            health = await running.meanwhile(self.guest.health(self._config.start_timeout_s))
            if health["browser"]:
                await self.devtools.begin()
        except BaseException as error:
            # Also when cancelled: nobody else can close it yet.
            await asyncio.shield(self._stop())
            if isinstance(error, DesktopError):
                raise DesktopError(
                    f"desktop {self.name} did not start: {error}. {running.last_words()}"
                ) from error
            raise

    async def _stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            await self.devtools.disconnect()
            await self.guest.close()
            await running.end()

    async def close(self) -> None:
        self._closed = True
        try:
            await self._stop()
        except (OSError, DesktopError) as error:
            logger.warning("closing desktop %s: %r", self.name, error)

    async def reset(self, task: Task) -> None:
        """A desktop that cannot be cleaned is replaced as a whole."""
        if self._closed:
            raise DesktopError(f"desktop {self.name} is closed")
        self._seen = None
        try:
            await self._clean()
        except DesktopError as error:
            logger.warning("desktop %s is made anew: %s", self.name, error)
            await self._stop()
            await self.start()
        await run_setup(task, self.guest, self.devtools)
        if self.devtools.in_use:
            await self.devtools.ready()
        await self.guest.rest()

    async def _clean(self) -> None:
        if self._running is None or not self._running.alive:
            raise DesktopError("it has ended")
        cleaned = await self.devtools.clean()
        disposed = not cleaned and await self._dispose()
        browser = await self.guest.reset(
            relaunch=not (cleaned or disposed), windows=int(cleaned), timeout_s=self._config.start_timeout_s
        )
        if browser != "kept":
            await self.devtools.disconnect()
        if browser == "relaunched" or disposed:
            await self.devtools.begin()

    async def _dispose(self) -> bool:
        """Dispose of the browser context; False if the browser cannot go on."""
        if self.devtools.context is None:
            return False
        try:
            return await self.devtools.end()
        except DesktopError as error:
            logger.info("desktop %s: the browser is relaunched: %s", self.name, error)
            return False

    async def screenshot(self) -> bytes:
        seen, self._seen = self._seen, None
        if seen is not None and time.monotonic() - seen[0] < FRESH_S:
            return seen[1]
        return await self._alive(self.guest.screenshot())

    async def act(self, action: Action, action_id: str) -> None:
        self._seen = None
        _, png = await self._alive(self.guest.act(action, action_id))
        self._seen = (time.monotonic(), png)

    async def evaluate(self, task: Task, last_action: Action | None) -> float:
        return await self._alive(evaluate_task(task, last_action, self.devtools))

    async def _alive(self, work: Awaitable[Answer]) -> Answer:
        try:
            return await work
        except DesktopError as error:
            running = self._running
            if running is None:
                raise DesktopError(f"desktop {self.name} is closed") from error
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(running.wait(), ENDING_S)
                raise DesktopError(f"desktop {self.name} has ended: {running.last_words()}") from error
            raise
