"""Provider ``process``: desktops as sandboxed processes of this machine. No Docker, no virtual machine.

A desktop is one bubblewrap sandbox with Xvfb, openbox, Chromium and the guest server (``guest/``).
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arpo_replica.actions.types import Action
from arpo_replica.config.models import DesktopConfig
from arpo_replica.desktop import sandbox
from arpo_replica.desktop.browser import EpisodeDevTools
from arpo_replica.desktop.client import GuestClient
from arpo_replica.desktop.devtools import unix
from arpo_replica.desktop.launch import Archives, RunningGuest, launch
from arpo_replica.errors import DesktopError, UserError
from arpo_replica.tasks.evaluate import evaluate_task
from arpo_replica.tasks.miniwob import html_root
from arpo_replica.tasks.model import Task
from arpo_replica.tasks.setup import run_setup

logger = logging.getLogger(__name__)

PROGRAMS = {
    "Xvfb": "xvfb",
    "openbox": "openbox",
    "setpriv": "util-linux",
    sandbox.PYTHON: "python3",
    str(sandbox.CHROMIUM): "chromium",
}
MODULES = {"aiohttp": "python3-aiohttp", "Xlib": "python3-xlib", "PIL": "python3-pil"}
ORIGINS = ("http://localhost:8000", "http://127.0.0.1:8000")
"""What a page can be loaded from inside a full-screen desktop."""
FRESH_S = 0.2
"""A screenshot that came with an action's answer is what ``screenshot`` returns for so long, once."""


class ProcessDesktop:
    """One desktop; see ``arpo_replica.desktop.interface.Desktop``.

    ``guest`` and ``devtools`` are there for set-up steps, evaluators, the scripted expert and tests.
    """

    def __init__(self, name: str, config: DesktopConfig, archives: Archives, number: int) -> None:
        self.name = name
        self.screen: tuple[int, int] = config.screen
        self._config = config
        self._archives = archives
        self._number = number
        self._running: RunningGuest | None = None
        self._seen: tuple[float, bytes] | None = None
        self._closed = False
        self.guest: GuestClient
        self.devtools: EpisodeDevTools

    @property
    def process_id(self) -> int | None:
        """Process that all others of the desktop descend from; None if it is closed."""
        return None if self._running is None else self._running.process.pid

    async def start(self) -> None:
        """Start the sandbox and wait until it answers. Raises ``DesktopError``."""
        running = self._running = await launch(self._config, self._number, self._archives)
        self.guest = GuestClient(unix(running.server_path), self.screen, self._config.act_timeout_s)
        self.devtools = EpisodeDevTools(
            unix(running.devtools_path),
            "http://localhost",
            self._config.act_timeout_s,
            self.screen,
            ORIGINS,
        )
        health = asyncio.create_task(self.guest.health(self._config.start_timeout_s))
        ended = asyncio.create_task(running.process.wait())
        await asyncio.wait({health, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        try:
            if not health.done():
                raise DesktopError("its sandbox ended")
            health.result()
        except DesktopError as error:
            health.cancel()
            await self._stop()
            raise DesktopError(
                f"desktop {self.name} did not start: {error}. {running.last_words()}"
            ) from error
        if health.result()["browser"]:
            await self.devtools.begin()

    async def _stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            await self.devtools.disconnect()
            await self.guest.close()
            await running.end()

    async def close(self) -> None:
        """See the interface."""
        self._closed = True
        try:
            await self._stop()
        except (OSError, DesktopError) as error:
            logger.warning("closing desktop %s: %r", self.name, error)

    async def reset(self, task: Task) -> None:
        """See the interface. A desktop that cannot be cleaned is replaced as a whole."""
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
            relaunch=not (cleaned or disposed),
            windows=int(cleaned),
            timeout_s=self._config.start_timeout_s,
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
        """See the interface."""
        seen, self._seen = self._seen, None
        if seen is not None and time.monotonic() - seen[0] < FRESH_S:
            return seen[1]
        return await self._alive(self.guest.screenshot())

    async def act(self, action: Action, action_id: str) -> None:
        """See the interface."""
        self._seen = None
        _, png = await self._alive(self.guest.act(action, action_id))
        self._seen = (time.monotonic(), png)

    async def evaluate(self, task: Task, last_action: Action | None) -> float:
        """See the interface."""
        return await self._alive(evaluate_task(task, last_action, self.guest, self.devtools))

    async def _alive(self, work: Any) -> Any:
        try:
            return await work
        except DesktopError as error:
            running = self._running
            if running is None or not running.alive:
                words = "it is closed" if running is None else running.last_words()
                raise DesktopError(f"desktop {self.name} has ended: {words}") from error
            raise


class ProcessProvider:
    """Makes desktops; see ``arpo_replica.desktop.interface.DesktopProvider``."""

    def __init__(self, config: DesktopConfig, assets: Mapping[str, Path] | None = None) -> None:
        """``assets``: first part of a path on the desktop's site -> folder served below it.

        Without it the MiniWoB++ pages are served under ``/miniwob/``.
        """
        self._config = config
        self._assets = assets
        self._numbers = itertools.count()

    def check(self) -> None:
        """Raises ``UserError`` naming what is missing and how to install it."""
        missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
        if self._config.isolation == "namespace" and shutil.which("bwrap") is None:
            missing.append("bubblewrap")
        if "python3" not in missing:
            missing += [package for module, package in MODULES.items() if not _has_module(module)]
        if missing:
            raise UserError(f"Desktops need Debian packages; run: apt-get install {' '.join(missing)}")
        self._read_archives()
        if self._config.isolation == "namespace":
            _check_namespaces()

    @functools.cached_property
    def _archives(self) -> Archives:
        return self._read_archives()

    def _read_archives(self) -> Archives:
        assets = {"miniwob": html_root()} if self._assets is None else self._assets
        for name, folder in assets.items():
            if not folder.is_dir():
                raise UserError(f"The folder {folder} for the desktop's site '{name}' does not exist.")
        packed = {name: sandbox.pack_folder(folder) for name, folder in assets.items()}
        return Archives(sandbox.pack_guest(), packed)

    async def start(self, name: str) -> ProcessDesktop:
        """See the interface."""
        desktop = ProcessDesktop(name, self._config, self._archives, next(self._numbers))
        await desktop.start()
        return desktop

    def describe(self) -> dict[str, Any]:
        """See the interface."""
        config = self._config
        return {
            "provider": config.provider,
            "isolation": config.isolation,
            "screen": list(config.screen),
            "browser": _output([str(sandbox.CHROMIUM), "--version"]),
            "x_server": _package_version("xvfb"),
            "window_manager": _package_version("openbox"),
        }


def _has_module(name: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    return subprocess.run([sandbox.PYTHON, "-c", code], env={}, check=False).returncode == 0


def _check_namespaces() -> None:
    test = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    result = subprocess.run(
        [*sandbox.unprivileged(0), *test], capture_output=True, text=True, check=False, timeout=30, cwd="/"
    )
    if result.returncode != 0:
        raise UserError(
            "This machine does not let bubblewrap make namespaces "
            f"({result.stderr.strip()[-200:]}); allow user namespaces, or set desktop.isolation to 'browser'."
        )


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _package_version(package: str) -> str:
    return f"{package} {_output(['dpkg-query', '--showformat=${Version}', '--show', package])}"
