"""Container desktops without Docker, KVM or root: bubblewrap on one root file system.

The root file system is one squashfs (rule ``build_desktop_image``), mounted by squashfuse or unpacked once
per machine. What stands in for control groups: a limit on processes, counted inside the sandbox's own user
namespace; the guest's watch over memory; sizes of the memory file systems; and a filter of system calls.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.base.files import remembered_sha256
from arpo_replica.config.desktop import Apps
from arpo_replica.desktop.sandbox import USER_ID, DataFiles, unprivileged, unprivileged_id
from arpo_replica.providers.call_filter import desktop_filter
from arpo_replica.providers.engine import ContainerSpec
from arpo_replica.providers.root_files import RootFileSystem, build_rootfs, record_of

OLDEST = (0, 8)
"""Of bubblewrap: the first that can forbid further user namespaces."""
STOP_S = 10.0
FIRST_TO_GO = ("sh", "-c", 'echo 800 >/proc/self/oom_score_adj; exec "$@"', "sh")
"""Command prefix: if the machine runs out of memory, desktops go before the job that uses them."""
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/home/user",
    "LANG": "C.UTF-8",
    "PYTHONPATH": "/opt/desktop",
    "PYTHONDONTWRITEBYTECODE": "1",
}

SUDO = b"""#!/bin/sh
# No second user can be had here: what sudo runs stays the same user's (files of the home folder, no
# packages).
while [ $# -gt 0 ]; do
    case $1 in
    -u | -p | -g) shift 2 ;;
    --) shift && break ;;
    -*) shift ;;
    *=*) export "$1" && shift ;;
    *) break ;;
    esac
done
exec "$@"
"""


@dataclass
class _Sandbox:
    process: subprocess.Popen[bytes]
    first: int
    """pidfd of its first process: with that one the kernel ends all others."""


class BwrapEngine:
    """See ``engine.Engine``."""

    def __init__(self, image: Path, scratch: Path, sha256: str | None = None) -> None:
        """``sha256``: what the image must be; None: not looked at."""
        self._image = image
        self._sha256 = sha256
        self._root = RootFileSystem(image, scratch)
        self._sandboxes: dict[str, _Sandbox] = {}
        self._lock = threading.Lock()
        self._number = itertools.count()

    def check(self) -> None:
        """Raises ``UserError`` naming what is missing: a program, or what keeps bubblewrap from working."""
        self._root.check()
        # An image that is not there yet brings a bubblewrap that cannot be tried yet.
        if (new_enough() or self._image.is_file()) and (problem := why_no_sandbox(self.program())):
            raise UserError(problem)

    def build(self, apps: Apps, output: TextIO) -> dict[str, Any]:
        """See the protocol. By an ordinary user where Debian's tools allow it (envs/desktop/rootfs.sh)."""
        return build_rootfs(apps, output)

    def image(self, name: str) -> dict[str, Any]:
        """``{id, tags, labels}`` of the image. Raises ``UserError`` if its file is not there."""
        if not self._image.is_file():
            raise UserError(
                f"There is no desktop image {self._image}; build it "
                "(snakemake --forcerun build_desktop_image) or correct desktop.container.image."
            )
        if self._sha256 is not None and self._sha256 != (found := remembered_sha256(self._image)):
            raise UserError(
                f"{self._image} has sha256 {found}, but desktop.container.image_sha256 is {self._sha256}: "
                "bring that file, or correct the key."
            )
        record = record_of(self._image)
        about = json.loads(record.read_bytes()) if record.is_file() else {}
        return {
            "id": about.get("sha256", ""),
            "tags": [],
            "labels": {"arpo.inputs": about.get("inputs_sha256", "")},
        }

    def version(self) -> str:
        """Version of bubblewrap."""
        return ".".join(map(str, _version(self.program())))

    def program(self) -> list[str]:
        """bubblewrap: the machine's own if it is new enough, else the image's, which runs by the image's own
        libraries."""
        if new_enough():
            return ["bwrap"]
        libraries = self._root.folder() / "usr/lib/x86_64-linux-gnu"
        loader = [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries)]
        return [*loader, str(self._root.folder() / "usr/bin/bwrap")]

    def describe(self) -> dict[str, Any]:
        """What records say of the engine."""
        return {"engine": "bwrap", "bubblewrap": self.version(), "root": self._root.way, "sudo": "stand-in"}

    def read(self, image: str, path: str) -> bytes:
        """A file of the image."""
        return (self._root.folder() / path.lstrip("/")).read_bytes()

    def run(self, spec: ContainerSpec) -> None:
        """Start a desktop. Raises ``DesktopError``."""
        reader, writer = os.pipe()
        data = DataFiles()
        number = next(self._number)
        user = unprivileged_id(number)
        try:
            if user is not None:  # what the owner alone may enter is to be mounted by that user
                os.chown(spec.control.parent, user, user)
            command = [
                *unprivileged(number),
                *FIRST_TO_GO,
                *self.program(),
                *sandbox_options(self._root.folder(), spec, data, writer),
            ]
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[writer, *data.fds],
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            os.close(reader)
            raise DesktopError(f"the sandbox did not start: {error}") from error
        finally:
            os.close(writer)
            data.close()
        text = b""
        while b"}" not in text and (piece := os.read(reader, 4096)):
            text += piece
        os.close(reader)
        try:
            first = os.pidfd_open(json.loads(text)["child-pid"])
        except (OSError, ValueError, KeyError) as error:
            process.kill()
            said = process.communicate()[1].decode(errors="replace").strip()[-300:]
            raise DesktopError(f"the sandbox did not start: {said or error!r}") from error
        with self._lock:
            self._sandboxes[spec.name] = _Sandbox(process, first)

    def running(self, name: str) -> bool:
        """True if the desktop runs."""
        with self._lock:
            found = self._sandboxes.get(name)
        return found is not None and found.process.poll() is None

    def remove(self, name: str) -> None:
        """Kill a desktop and wait until it is gone; none of that name is fine. Raises ``DesktopError``."""
        with self._lock:
            found = self._sandboxes.pop(name, None)
        if found is None:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(found.first, signal.SIGKILL)
        try:
            found.process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            raise DesktopError(f"the sandbox {name} does not end") from None
        finally:
            os.close(found.first)

    def owned(self) -> list[str]:
        """Names of the desktops of this process that run."""
        with self._lock:
            names = list(self._sandboxes)
        return [name for name in names if self.running(name)]

    def reap(self) -> list[str]:
        """Nothing to do: a desktop ends by itself when the connection to its owner closes."""
        return []


def new_enough() -> bool:
    """True if this machine's own bubblewrap can close a desktop in."""
    return _version(["bwrap"]) >= OLDEST


def _version(bubblewrap: list[str]) -> tuple[int, ...]:
    """Of a bubblewrap; (0,) if there is none."""
    try:
        done = subprocess.run([*bubblewrap, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return (0,)
    return tuple(int(part) for part in re.findall(r"\d+", done.stdout)) or (0,)


def sandbox_options(root: Path, spec: ContainerSpec, data: DataFiles, info_fd: int = -1) -> list[str]:
    """bubblewrap's options for one desktop. Its first process is the guest, which then limits the rest."""
    args = _closed_in(root, data)
    if info_fd >= 0:
        args += ["--info-fd", str(info_fd)]
    args += ["--size", str(1 << 20), "--tmpfs", "/sys"]
    args += ["--ro-bind-try", "/sys/devices/system/cpu", "/sys/devices/system/cpu"]
    args += ["--perms", "1777", "--size", str(spec.shared_mb << 20), "--tmpfs", "/dev/shm"]  # noqa: S108
    # A memory file system of our own: a read-only root has no place for further mounts.
    args += ["--size", str(1 << 20), "--tmpfs", "/run", "--dir", "/run/user"]
    args += ["--ro-bind", str(spec.control), "/run/arpo"]
    for place, options in spec.tmpfs.items():
        named = dict(option.partition("=")[::2] for option in options.split(","))
        size = int(named["size"].rstrip("m")) << 20
        args += ["--perms", named["mode"].zfill(4), "--size", str(size), "--tmpfs", place]
    for file, place in spec.files.items():
        args += ["--ro-bind", str(file), place]
    if spec.sudo:
        args += ["--perms", "0755", "--ro-bind-data", data.add(SUDO), "/usr/bin/sudo"]
    args += ["--remount-ro", "/dev", "--remount-ro", "/run", "--remount-ro", "/sys"]
    for key, value in ENVIRONMENT.items():
        args += ["--setenv", key, value]
    args += ["--chdir", ENVIRONMENT["HOME"], "--", *_limited(spec.processes)]
    return [*args, "/usr/bin/python3", "-m", "guest"]


def _closed_in(root: Path, data: DataFiles) -> list[str]:
    """bubblewrap's options for a root file system and for all that keeps a desktop in."""
    # --unshare-user by name: else --disable-userns is refused. No --die-with-parent: it follows the thread
    # that started the sandbox; the guest ends when the connection to its owner closes.
    args = ["--seccomp", data.add(desktop_filter()), "--unshare-user", "--unshare-all"]
    args += ["--disable-userns", "--as-pid-1", "--new-session", "--hostname", "desktop"]
    args += ["--uid", str(USER_ID), "--gid", str(USER_ID), "--clearenv", "--cap-drop", "ALL"]
    return [*args, "--ro-bind", str(root), "/", "--proc", "/proc", "--dev", "/dev"]


def _limited(processes: int) -> list[str]:
    """Command prefix: inside the namespace, where the limit counts this desktop's processes alone."""
    return ["prlimit", f"--nproc={processes}", "--core=0", "--"]


def why_no_sandbox(bubblewrap: list[str]) -> str:
    """What keeps bubblewrap from making a desktop on this machine, with the fix, in one sentence; empty if
    nothing.

    Runs the launcher's own command, on this machine's own files.
    """
    data = DataFiles()
    try:
        command = [*unprivileged(0), *FIRST_TO_GO, *bubblewrap, *_closed_in(Path("/"), data)]
        command += ["--perms", "0700", "--size", str(1 << 20), "--tmpfs", "/tmp"]  # noqa: S108 - its own
        command += ["--", *_limited(64), "true"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, pass_fds=data.fds)
    finally:
        data.close()
    if done.returncode == 0:
        return ""
    said = (done.stderr.strip().splitlines() or ["no word"])[-1]
    return f"bubblewrap cannot make a desktop here ({said[:160]}): {_fix(said, _sysctl)}."


def _fix(said: str, sysctl: Callable[[str], str]) -> str:
    """The cause's remedy, by what bubblewrap said and the kernel's settings."""
    for name in ("user/max_user_namespaces", "user/max_net_namespaces"):
        if sysctl(name) == "0":
            return f"the administrator must raise {name.replace('/', '.')} (sysctl), which is 0"
    if sysctl("kernel/unprivileged_userns_clone") == "0":
        return "sysctl kernel.unprivileged_userns_clone=1"
    if sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "load AppArmor's profile bwrap-userns-restrict, or "
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        )
    return "allow user namespaces (in a container: without its seccomp filter), or use a Docker daemon"


def _sysctl(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return ""
