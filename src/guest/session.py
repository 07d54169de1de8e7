"""The desktop's session: X server, window manager, browser; their start, their health, their reset."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from Xlib.display import Display
from Xlib.error import DisplayConnectionError

from .config import GuestConfig
from .files import BACKGROUND, PANELS, profile, write_x_authority
from .input import InputDevice
from .processes import (
    Threads,
    become_reaper,
    below,
    descendants,
    folder_mb,
    kill,
    machine_shared_mb,
    private_memory_mb,
    reap,
    runs,
    shared_memory_mb,
    zombies,
)
from .screen import ChangeWatcher, Framebuffer
from .windows import Windows

AT_SPI = "/usr/libexec/at-spi-bus-launcher"
END_S = 3.0
WATCH_S = 0.25
MEMORY_EVERY = 4
PIDS_FRESH_S = 0.25
BROWSER_NICE = 5


class SessionError(Exception):
    """The desktop is broken and has to be made anew."""


class Session:
    """Everything that runs in the desktop besides the HTTP server."""

    def __init__(self, config: GuestConfig) -> None:
        self.config = config
        self.private = Path(config.tmp) / ".desktop"
        self.environment: dict[str, str] = {}
        self._core: dict[str, asyncio.subprocess.Process] = {}
        self._browser: asyncio.subprocess.Process | None = None
        self._pids: tuple[float, list[int]] = (0.0, [])
        self._threads = Threads()
        self.input: InputDevice
        self.framebuffer: Framebuffer
        self.changes: ChangeWatcher
        self.windows: Windows

    # -- start and end ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Bring everything up. Raises ``SessionError``."""
        limit = self.config.start_s
        become_reaper()
        self._limit()
        self._prepare_folders()
        number = await self._start_x()
        self.environment = self._environment(number)
        self._core["openbox"] = await self.spawn(
            ["openbox", "--sm-disable", "--config-file", f"{self.config.share}/openbox.xml"]
        )
        if not self.config.fullscreen:
            await self._start_accessibility()
        events, control = await _connect(number, limit), await _connect(number, limit)
        if not self.config.fullscreen:
            drop_doubled_key(control)
        self.windows = Windows(control, events, self.config.screen if self.config.fullscreen else None)
        self.framebuffer = Framebuffer(self.private / "Xvfb_screen0", self._core["Xvfb"].pid)
        self.changes = ChangeWatcher(events, self.busy, self.framebuffer.png)
        self.input = InputDevice(control, self.busy, self.config.wait_s)
        loop = asyncio.get_running_loop()
        loop.add_reader(events.fileno(), self._read_events, events)
        await _until(self.windows.manager_ready, "the window manager", limit)
        self.input.rest(*self._resting_place())
        await self._start_panels()
        if self.config.fullscreen:
            await self._launch_browser()
        self._read_events(events)

    async def _start_panels(self) -> None:
        """Bar, dock and background. A policy that kills them has made its own desktop, not broken it."""
        if self.config.panels:
            await self.spawn(["xsetroot", "-solid", BACKGROUND])
            for name in PANELS:
                await self.spawn(["tint2", "-c", f"{self.config.share}/{name}"])
            await _until(lambda: len(self.windows.docks()) == len(PANELS), "the dock", self.config.start_s)

    def _limit(self) -> None:
        config = self.config
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for kind, value in (
            (resource.RLIMIT_NPROC, config.max_processes),
            (resource.RLIMIT_NOFILE, config.max_files),
        ):
            hard = resource.getrlimit(kind)[1]
            limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (limit, limit))
        # If the machine runs out of memory, desktops go before the job that uses them.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("800")

    def _prepare_folders(self) -> None:
        for folder in (self.private / "run", self.private / "browser"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("Desktop", "Documents", "Downloads"):
            (Path(self.config.home) / name).mkdir(parents=True, exist_ok=True)
        if self.config.skeleton:
            shutil.copytree(self.config.skeleton, self.config.home, dirs_exist_ok=True, symlinks=True)
            write_x_authority(Path(self.config.home) / ".Xauthority", self.config.display)

    async def _start_x(self) -> str:
        width, height = self.config.screen
        reader, writer = os.pipe()
        arguments = [
            *([f":{self.config.display}"] if self.config.display else []),
            *("-displayfd", str(writer), "-screen", "0", f"{width}x{height}x24"),
            *("-fbdir", str(self.private), "-nolisten", "tcp", "-noreset", "-s", "0", "-dpms"),
        ]
        self._core["Xvfb"] = await asyncio.create_subprocess_exec(
            *([] if self.config.private_network else ["setpriv", "--pdeathsig", "KILL"]),
            "Xvfb",
            *arguments,
            pass_fds=[writer],
            **_quiet(self.private / "xvfb.log"),
        )
        os.close(writer)
        try:
            loop = asyncio.get_running_loop()
            answer = await asyncio.wait_for(
                loop.run_in_executor(None, _read_line, reader), self.config.start_s
            )
        except TimeoutError as error:
            raise SessionError(f"Xvfb did not start within {self.config.start_s:g} s") from error
        finally:
            os.close(reader)
        if not answer.strip():
            log = (self.private / "xvfb.log").read_text(errors="replace")
            raise SessionError(f"Xvfb did not start: {log.strip()[-300:]}")
        return answer.strip().decode()

    async def _start_accessibility(self) -> None:
        """The session bus and the accessibility bus, for programs that describe their windows."""
        bus = Path(self.environment["DBUS_SESSION_BUS_ADDRESS"].removeprefix("unix:path="))
        if shutil.which("dbus-daemon") is None or shutil.which(AT_SPI) is None:
            return  # /accessibility will say so
        address = self.environment["DBUS_SESSION_BUS_ADDRESS"]
        self._core["dbus-daemon"] = await self.spawn(
            ["dbus-daemon", "--session", "--nofork", "--nopidfile", f"--address={address}"]
        )
        await _until(bus.exists, "the session bus", self.config.start_s)
        self._core["at-spi"] = await self.spawn([AT_SPI, "--launch-immediately"])

    def _environment(self, number: str) -> dict[str, str]:
        config = self.config
        runtime = config.runtime or str(self.private / "run")
        return {
            "DISPLAY": f":{number}",
            "HOME": config.home,
            "USER": "user",
            "LOGNAME": "user",
            "SHELL": "/bin/bash",
            "PATH": f"{config.bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games",
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "TMPDIR": config.tmp,
            "XDG_SESSION_TYPE": "x11",
            "XDG_CURRENT_DESKTOP": "GNOME",
            "XDG_RUNTIME_DIR": runtime,
            "XDG_CONFIG_DIRS": f"{config.share}:/etc/xdg",
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={runtime}/bus",
            # GTK's own method keeps 16 bits of a key: U+FF20 (＠) would be Multi_key, U+FE74 a dead accent.
            "GTK_IM_MODULE": "gtk-im-context-none",
            "GTK_MODULES": "gail:atk-bridge",
            "NO_AT_BRIDGE": "1" if config.fullscreen else "0",
            "QT_ACCESSIBILITY": "1",
            "QT_LINUX_ACCESSIBILITY_ALWAYS_ON": "0" if config.fullscreen else "1",
        }

    def end(self) -> None:
        """Kill every process of the desktop, wait until they are gone, remove what is to be removed."""
        deadline = time.monotonic() + END_S
        while (left := descendants(os.getpid())) and time.monotonic() < deadline:
            kill([pid for pid, process in left.items() if process.alive])
            reap(zombies())
            time.sleep(0.005)
        if self.config.remove:
            shutil.rmtree(self.config.remove, ignore_errors=True)

    # -- programs ---------------------------------------------------------------------------------

    async def spawn(
        self, command: list[str], nice: int = 0, cwd: str | None = None, **extra: str
    ) -> asyncio.subprocess.Process:
        """Start a program of the desktop's user, in a session of its own."""
        # Without a process namespace nothing else ends the programs if this process is killed.
        bound = [] if self.config.private_network else ["setpriv", "--pdeathsig", "KILL"]
        process = await asyncio.create_subprocess_exec(
            *bound,
            *(["nice", "-n", str(nice)] if nice else []),
            *command,
            env={**self.environment, **extra},
            cwd=cwd or self.config.home,
            start_new_session=True,
            **_quiet(self.private / "programs.log"),
        )
        return process

    async def _launch_browser(self) -> None:
        command = [f"{self.config.bin}/google-chrome"]
        self._browser = await self.spawn(command, nice=BROWSER_NICE, TMPDIR=str(self.private / "browser"))
        await self.wait_for_browser()

    async def wait_for_browser(self) -> None:
        """Return when the browser's DevTools port answers. Raises ``SessionError``."""
        deadline = time.monotonic() + self.config.start_s
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.config.devtools_port)
            except OSError:
                ended = self._browser is not None and self._browser.returncode is not None
                if ended or time.monotonic() > deadline:
                    raise SessionError("the browser did not start") from None
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return

    @property
    def browser_alive(self) -> bool:
        """True if the desktop's own browser runs."""
        return self._browser is not None and self._browser.returncode is None

    def pids(self) -> list[int]:
        """The desktop's processes besides this one; may be a moment old."""
        now = time.monotonic()
        if now - self._pids[0] > PIDS_FRESH_S:
            self._pids = (now, list(descendants(os.getpid())))
        return self._pids[1]

    def busy(self) -> bool:
        """True if a program of the desktop is at work right now."""
        return self._threads.any_running(self.pids())

    def _read_events(self, display: Display) -> None:
        while display.pending_events():
            event = display.next_event()
            self.changes.on_event(event)
            self.windows.on_event(event)

    async def watch(self) -> str:
        """Return, with the reason, when the desktop is broken; otherwise never."""
        limit = self.config.memory_mb
        ended = set[int]()
        turn = 0
        while True:
            turn += 1
            await asyncio.sleep(WATCH_S)
            for name, process in self._core.items():
                if process.returncode is not None:
                    return f"{name} ended with status {process.returncode}"
            # Whoever started a program has collected it by now: the ended ones left from last time are
            # orphans.
            found = zombies()
            reap(found & ended)
            ended = found
            if turn % MEMORY_EVERY or not limit:
                continue
            pids = [os.getpid(), *self.pids()]
            private = private_memory_mb(pids)
            files = sum(folder_mb(Path(folder)) for folder in self.config.memory_folders)
            if private + max(files, machine_shared_mb()) <= limit:
                continue  # whatever part of the machine's shared memory is this desktop's
            # A mapped file of such a folder is shared memory as well.
            used = private + max(files, await asyncio.to_thread(shared_memory_mb, pids))
            if used > limit:
                return f"it took {used:.0f} MiB of memory (desktop.memory_mb is {limit})"

    # -- reset ------------------------------------------------------------------------------------

    async def reset(self, relaunch: bool, windows: int) -> str:
        """Bring the desktop to the state after ``start``. Returns what became of the browser:
        ``kept``, ``relaunched`` or ``none`` (there is one only if a task launches it).

        A full-screen desktop keeps its browser unless told otherwise: the caller has cleaned it, and
        ``windows`` of them are left. Raises ``SessionError``.
        """
        keep = self.config.fullscreen and self.browser_alive and not relaunch
        await self._kill_strays(keep)
        if keep:
            keep = await self.windows.wait_for_count(windows, 1.0)
            if not keep:
                await self._kill_strays(False)
        self.input.rest(*self._resting_place())
        self.windows.clear_selections()
        self._wipe(keep)
        self._prepare_folders()
        await self._start_panels()
        if not self.config.fullscreen:
            return "none"
        if not keep:
            await self._launch_browser()
        return "kept" if keep else "relaunched"

    async def _kill_strays(self, keep_browser: bool) -> None:
        keep = {process.pid for process in self._core.values()}
        program = self.config.chromium
        deadline = time.monotonic() + 5.0
        while True:
            found = descendants(os.getpid())
            own = keep | {pid for core in keep for pid in below(core, found)}
            if keep_browser and self._browser is not None:
                own |= {self._browser.pid}
                own |= {pid for pid in below(self._browser.pid, found) if runs(pid, program)}
            strays = [pid for pid, process in found.items() if pid not in own and process.alive]
            if not strays:
                self._pids = (0.0, [])
                return
            if time.monotonic() > deadline:
                raise SessionError(f"processes do not end: {[found[pid].name for pid in strays]}")
            kill(strays)
            await asyncio.sleep(0.01)

    def _wipe(self, keep_browser: bool) -> None:
        kept = {str(self.private), f"{self.config.tmp}/.X11-unix"}
        if self.config.runtime:  # where the buses listen
            kept |= {f"{self.config.runtime}/bus", f"{self.config.runtime}/at-spi"}
        if keep_browser:
            kept.add(str(profile(self.config)))
        for folder in (self.config.home, self.config.tmp, *self.config.memory_folders):
            _empty(Path(folder), kept)
        if not keep_browser:
            _empty(self.private / "browser", set())

    def _resting_place(self) -> tuple[int, int]:
        """The pointer's place after a reset: the lower right corner, where it hides least."""
        return self.config.screen[0] - 1, self.config.screen[1] - 1


def _empty(folder: Path, kept: set[str]) -> None:
    """Remove what lies in the folder, except the kept paths and the folders on the way to them."""
    for path in folder.iterdir() if folder.is_dir() else ():
        name = str(path)
        if name in kept or (path.name.startswith(".X") and path.name.endswith("-lock")):
            continue
        if path.is_dir() and not path.is_symlink():
            if any(other.startswith(name + "/") for other in kept):
                _empty(path, kept)
            elif not os.path.ismount(path):
                shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _quiet(log: Path) -> dict[str, Any]:
    # Opened anew each time and shortened: a chatty program must not fill the desktop's memory.
    file = log.open("wb")
    return {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}


def _read_line(descriptor: int) -> bytes:
    """A line, or what comes before the end. Xvfb writes its number and the newline apart: whoever closes
    the pipe in between kills it."""
    line = b""
    while not line.endswith(b"\n") and (part := os.read(descriptor, 16)):
        line += part
    return line


async def _connect(number: str, limit_s: float) -> Display:
    """A connection to the X server, which may refuse one in its very first moment."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            return Display(f":{number}")
        except DisplayConnectionError as error:
            if time.monotonic() > deadline:
                raise SessionError(f"Xvfb accepts no connection: {error}") from error
            await asyncio.sleep(0.01)


async def _until(ready: Any, what: str, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not ready():
        if time.monotonic() > deadline:
            raise SessionError(f"{what} was not ready within {limit_s:g} s")
        await asyncio.sleep(0.01)


def log(message: str) -> None:
    """One line on stderr, which the owner keeps for its error messages."""
    print(message, file=sys.stderr, flush=True)


def drop_doubled_key(display: Display) -> None:
    """Take ``<`` and ``>`` off the key that European keyboards have beside Shift.

    pyautogui finds ``<`` there, thinks that it needs Shift, and types ``>``. Now it takes the comma's key.
    """
    least, most = display.display.info.min_keycode, display.display.info.max_keycode
    for offset, keysyms in enumerate(display.get_keyboard_mapping(least, most - least + 1)):
        if tuple(keysyms[:2]) == (ord("<"), ord(">")):
            display.change_keyboard_mapping(least + offset, [tuple(0 for _ in keysyms)])
    display.sync()
