"""Provider ``process``: desktops as sandboxed processes of this machine. No Docker, no virtual machine.

A desktop is one bubblewrap sandbox with Xvfb, openbox, Chromium and the guest server (``guest/``).
"""

from __future__ import annotations

import functools
import itertools
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arpo_replica.base.errors import UserError
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.desktop import sandbox
from arpo_replica.providers.guest_desktop import GuestDesktop, pack_assets
from arpo_replica.providers.process_launch import Archives, RunningGuest, launch

PROGRAMS = {
    "Xvfb": "xvfb",
    "openbox": "openbox",
    "setpriv": "util-linux",
    sandbox.PYTHON: "python3",
    str(sandbox.CHROMIUM): "chromium",
}
MODULES = {"aiohttp": "python3-aiohttp", "Xlib": "python3-xlib", "PIL": "python3-pil"}


class ProcessDesktop(GuestDesktop):
    """One desktop; see ``arpo_replica.desktop.interface.Desktop``."""

    _running: RunningGuest | None

    def __init__(self, name: str, config: DesktopConfig, archives: Archives, number: int) -> None:
        super().__init__(name, config)
        self._archives = archives
        self._number = number

    @property
    def process_id(self) -> int | None:
        """Process that all others of the desktop descend from; None if it is closed."""
        return None if self._running is None else self._running.process.pid

    async def _launch(self) -> RunningGuest:
        return await launch(self._config, self._number, self._archives)


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
        return Archives(sandbox.pack_guest(), pack_assets(self._assets))

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
    test = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc"]
    test += ["--size", "1048576", "--tmpfs", "/tmp", "true"]  # noqa: S108  # as the sandbox does; bubblewrap >= 0.7
    result = subprocess.run(
        [*sandbox.unprivileged(0), *test], capture_output=True, text=True, check=False, timeout=30, cwd="/"
    )
    if result.returncode != 0:
        raise UserError(
            "This machine does not let bubblewrap make namespaces "
            f"({result.stderr.strip()[-200:]}); allow user namespaces (in Docker: --security-opt "
            "seccomp=unconfined; on Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0), or set "
            "desktop.isolation to 'browser'."
        )


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _package_version(package: str) -> str:
    return f"{package} {_output(['dpkg-query', '--showformat=${Version}', '--show', package])}"
