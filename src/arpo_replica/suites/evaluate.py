"""Runs a task's set-up steps and scores it by its own evaluator: tasks of our own; OSWorld's have ``client``.

Types and parameters of steps are OSWorld's (``desktop_env/controllers/setup.py``). Unlike there, a step that
fails always raises, and a type that cannot run here is refused before any work starts. ``miniwob_start`` is
ours. An evaluator has OSWorld's seams: ``func`` is a metric, ``result`` a getter (``evaluate`` of
``desktop_env/desktop_env.py``; ``evaluators/getters``, ``evaluators/metrics``).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from arpo_replica.actions.types import Action, Fail
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.desktop.client import Command, GuestClient
from arpo_replica.desktop.devtools import DevTools
from arpo_replica.desktop.interface import Score
from arpo_replica.suites.miniwob.pages import read_reward, start_page
from arpo_replica.suites.osworld.inventory import refuse_unsupported
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
        words = command.split() if isinstance(command, str) else command
        program = PurePosixPath(words[0]).name if words else ""
        if self.devtools.context is None or program not in _BROWSERS:
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


# --- the score ------------------------------------------------------------------------------------------


def _miniwob_reward(reward: float | None) -> float:
    """Reward of MiniWoB++ (-1 to 1, 0 for no end) as a score in [0, 1]; partial rewards are kept."""
    return 0.0 if reward is None else min(max(reward, 0.0), 1.0)


CHROMIUM_WRITES_S = 3.0
"""Chromium writes its bookmarks 2.5 s after a change, and loses them when it is killed before that. Measured
with a right solution: evaluated up to 1.5 s after the last action it scores 0, from 3 s on 1."""


def seconds_to_settle(task: Task, acted: float | None) -> float:
    """How long an evaluation has to wait for what programs write late; OSWorld's runner always waits 20 s.

    ``acted``: when the last action ended (``time.monotonic()``), None if there was none. Only evaluators that
    kill Chromium have to wait.
    """
    steps = str(task.evaluator.get("postconfig", "")) if acted is not None else ""
    if acted is None or "pkill" not in steps or "chrom" not in steps:
        return 0.0
    return max(0.0, acted + CHROMIUM_WRITES_S - time.monotonic())


GETTERS = {"miniwob_episode": read_reward}
METRICS = {"miniwob_reward": _miniwob_reward}


def uses_osworld(task: Task) -> bool:
    """True if desktop-env sets the task up and scores it, in every provider; False for tasks of our own."""
    metric = task.evaluator.get("func")
    return metric is not None and not (isinstance(metric, str) and metric in METRICS)


def verdict(task: Task, last_action: Action | None) -> float | None:
    """The score that needs no look at the desktop, or None: the one place for FAIL and infeasible tasks.

    As in OSWorld (``DesktopEnv.evaluate``), a last action FAIL is right on an infeasible task and wrong on
    any other, and the state does not matter then.
    """
    failed = isinstance(last_action, Fail)
    if not (task.infeasible or failed):
        return None
    expected = "FAIL: the task cannot be done" if task.infeasible else "no FAIL: the task can be done"
    return Score.of(float(task.infeasible and failed), expected, "FAIL" if failed else "no FAIL")


def check_task(task: Task) -> None:
    """Refuse a task that cannot be set up or scored here. Raises ``UserError``; needs no desktop."""
    if uses_osworld(task):
        refuse_unsupported(task)
        return
    check_steps(task, task.config)
    metric = task.evaluator.get("func")
    getter = (task.evaluator.get("result") or {}).get("type") if isinstance(metric, str) else None
    if not isinstance(metric, str) or metric not in METRICS:
        raise UserError(
            f"Task {task.domain}/{task.id}: the evaluator function {metric!r} does not exist here; "
            f"drop the task from its split or use one of: infeasible, {', '.join(METRICS)}."
        )
    if getter not in GETTERS:
        raise UserError(
            f"Task {task.domain}/{task.id}: the result type {getter!r} does not exist here; "
            f"drop the task from its split or use one of: {', '.join(GETTERS)}."
        )
    check_steps(task, task.evaluator.get("postconfig", []))


def check_provider(tasks: Iterable[Task], kind: str) -> None:
    """Raises ``UserError`` for a task that desktops of ``kind`` (``DesktopConfig.kind``) cannot run."""
    for task in tasks:
        if kind == "process" and uses_osworld(task):
            raise UserError(
                f"Task {task.domain}/{task.id} is one of OSWorld's: a desktop of provider 'process' has no "
                "programs but a browser; set desktop.provider to 'container' or 'osworld'."
            )
        if kind == "osworld" and not uses_osworld(task):
            raise UserError(
                f"Task {task.domain}/{task.id} is no task of OSWorld; set desktop.provider to 'container' "
                "or 'process'."
            )


async def evaluate_task(
    task: Task, last_action: Action | None, guest: GuestClient, devtools: DevTools
) -> float:
    """Score in [0, 1] of the state as it is. Raises ``DesktopError``: never a score for a broken desktop."""
    known = verdict(task, last_action)
    if known is not None:
        return known
    try:
        getter = GETTERS[task.evaluator["result"]["type"]]
        metric = METRICS[task.evaluator["func"]]
    except (KeyError, TypeError) as error:
        raise DesktopError(f"task {task.id} has no evaluator that exists here: {error!r}") from error
    await run_steps(task, task.evaluator.get("postconfig", []), guest, devtools)
    result = await getter(devtools)
    found = "the page did not end" if result is None else f"the page ended with reward {result:g}"
    return Score.of(metric(result), "the page ends with reward 1", found)
