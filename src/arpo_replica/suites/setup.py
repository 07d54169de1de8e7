"""Runs a task's set-up steps. Types and parameters are OSWorld's (``desktop_env/controllers/setup.py``).

Unlike there, a step that fails always raises, and a type that cannot run here is refused before any
work starts. ``miniwob_start`` is ours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.desktop.client import Command, GuestClient
from arpo_replica.desktop.devtools import DevTools
from arpo_replica.suites.miniwob.pages import start_page
from arpo_replica.tasks.model import Task


class _Setup:
    """The steps of one task, one method per type; parameters are those of the task file."""

    def __init__(self, task: Task, guest: GuestClient, devtools: DevTools) -> None:
        self.task = task
        self.guest = guest
        self.devtools = devtools
        self.newest_tab: str | None = None

    async def launch(self, command: Command, shell: bool = False) -> None:
        """A browser that is part of the desktop runs already; a second one would only slow it down."""
        if self.devtools.context is None or not _is_browser(command):
            await self.guest.launch(self._fill(command), shell)

    async def execute(
        self, command: Command, shell: bool = False, stdout: str = "", stderr: str = "", until: Any = None
    ) -> None:
        if stdout or stderr or until:
            raise DesktopError("execute with stdout, stderr or until is not supported")
        result = await self.guest.execute(self._fill(command), shell)
        if result["returncode"] != 0:
            raise DesktopError(f"{command!r} ended with {result['returncode']}: {result['error'][:200]}")

    command = execute

    async def open(self, path: str) -> None:
        await self.guest.open_file(path)

    async def activate_window(self, window_name: str, strict: bool = False, by_class: bool = False) -> None:
        await self.guest.activate_window(window_name, strict, by_class)

    async def close_window(self, window_name: str, strict: bool = False, by_class: bool = False) -> None:
        await self.guest.close_window(window_name, strict, by_class)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def upload_file(self, files: list[dict[str, str]]) -> None:
        for file in files:
            await self.guest.upload(file["path"], _read(Path(file["local_path"])))

    async def download(self, files: list[dict[str, str]]) -> None:
        for file in files:
            await self.guest.upload(file["path"], _read(Path(unquote(urlsplit(file["url"]).path))))

    async def chrome_open_tabs(self, urls_to_open: list[str]) -> None:
        """The browser's blank first tab, if there is one, shows the first page, as in OSWorld."""
        await self._wait_for_browser()
        pages = await self.devtools.pages()
        blank = next((page.id for page in pages if page.url in _BLANK), None)
        for url in urls_to_open:
            if blank is None:
                self.newest_tab = await self.devtools.open(url)
            else:
                await self.devtools.navigate(url, blank)
                self.newest_tab, blank = blank, None

    async def _wait_for_browser(self) -> None:
        deadline = time.monotonic() + BROWSER_START_S
        while True:
            try:
                await self.devtools.connect()
            except DesktopError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)
            else:
                return

    async def chrome_close_tabs(self, urls_to_close: list[str]) -> None:
        for url in urls_to_close:
            pages = await self.devtools.pages()
            found = [page.id for page in pages if _same_url(page.url, url)]
            if not found:
                raise DesktopError(f"no tab shows {url}")
            for page in found:
                await self.devtools.close_page(page)

    async def miniwob_start(self, seed: int) -> None:
        """Start the episode of the MiniWoB++ page just opened; its text must be the instruction."""
        text = await start_page(self.devtools, seed, self.newest_tab)
        if text != self.task.instruction:
            raise DesktopError(
                f"task {self.task.id} says {self.task.instruction!r} but its page says {text!r}; "
                "make the task files again"
            )

    def _fill(self, command: Command) -> Command:
        """OSWorld's templates in commands. The desktop's user has no password."""
        if not isinstance(command, str):
            return [str(self._fill(word)) for word in command]
        width, height = self.guest.screen
        halves = {"SCREEN_WIDTH_HALF": width // 2, "SCREEN_HEIGHT_HALF": height // 2}
        values = {"CLIENT_PASSWORD": "", "SCREEN_WIDTH": width, "SCREEN_HEIGHT": height, **halves}
        for key, value in values.items():
            command = command.replace(f"{{{key}}}", str(value))
        return command


BROWSER_START_S = 60.0
"""A browser that was launched has to answer on its DevTools port by then."""
_BROWSERS = ("google-chrome", "chromium", "chrome")
_NEW = ("newtab", "new-tab-page", "new-tab-page-third-party")
_BLANK = {"about:blank", *(f"chrome://{name}/" for name in _NEW)}
_STEPS: dict[str, Callable[..., Awaitable[None]]] = {
    name: run for name, run in vars(_Setup).items() if not name.startswith("_")
}
"""A task names these methods alone."""


def check_steps(task: Task, steps: list[dict[str, Any]]) -> None:
    """Refuse a step of the task (``config`` or the evaluator's ``postconfig``) that cannot run on a desktop.

    Raises ``UserError``; needs no desktop.
    """
    where = f"Task {task.domain}/{task.id}"
    for step in steps:
        kind = step.get("type")
        if kind not in _STEPS:
            raise UserError(
                f"{where}: the set-up step {kind!r} cannot run on this desktop; drop the task from its "
                f"split or use one of: {', '.join(_STEPS)}."
            )
        parameters = step.get("parameters", {})
        if kind in ("execute", "command") and any(parameters.get(k) for k in ("stdout", "stderr", "until")):
            raise UserError(
                f"{where}: 'stdout', 'stderr' and 'until' of {kind} are not supported; drop the task."
            )
        for file in parameters.get("files", []):
            local = _local_file(kind, file)
            if local is None:
                raise UserError(
                    f"{where}: {file.get('url')} needs the network; store the file and use a file: URL."
                )
            if not local.is_file():
                raise UserError(f"{where}: the file {local} of step {kind} does not exist; restore it.")


async def run_setup(task: Task, guest: GuestClient, devtools: DevTools) -> None:
    """Run the task's set-up steps in order. Raises ``DesktopError`` that names the step that failed."""
    await run_steps(task, task.config, guest, devtools)


async def run_steps(task: Task, steps: list[dict[str, Any]], guest: GuestClient, devtools: DevTools) -> None:
    """Run any list of steps of the task."""
    setup = _Setup(task, guest, devtools)
    for index, step in enumerate(steps):
        run = _STEPS.get(str(step.get("type")))
        if run is None:
            raise DesktopError(f"step {index}: there is no set-up step {step.get('type')!r}")
        try:
            await run(setup, **step.get("parameters", {}))
        except (DesktopError, OSError, TypeError, KeyError) as error:
            raise DesktopError(f"set-up step {index} ({step['type']}) failed: {error}") from error


def _is_browser(command: Command) -> bool:
    words = command.split() if isinstance(command, str) else command
    return bool(words) and PurePosixPath(words[0]).name in _BROWSERS


def _local_file(kind: str, file: dict[str, str]) -> Path | None:
    if kind == "upload_file":
        return Path(file.get("local_path", ""))
    url = urlsplit(file.get("url", ""))
    return Path(unquote(url.path)) if url.scheme == "file" else None


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _same_url(left: str, right: str) -> bool:
    """Equal but for scheme, ``www.`` and a final slash, as OSWorld compares them."""

    def plain(url: str) -> str:
        parts = urlsplit(url if "//" in url else f"//{url}")
        query = f"?{parts.query}" if parts.query else ""
        return parts.netloc.removeprefix("www.") + parts.path.rstrip("/") + query

    return plain(left) == plain(right)
