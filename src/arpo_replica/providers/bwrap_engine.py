"""Container desktops without Docker, KVM or root: bubblewrap on one root file system.

The root file system is one squashfs (rule ``build_desktop_image``), mounted by squashfuse or unpacked once
per machine. What stands in for control groups: a limit on processes, counted inside the sandbox's own user
namespace; the guest's watch over memory; sizes of the memory file systems; and a filter of system calls.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET
from typing import Any, TextIO

import psutil

from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.config.desktop import Apps
from arpo_replica.desktop import sandbox
from arpo_replica.providers.call_filter import desktop_filter
from arpo_replica.providers.engine import ContainerSpec
from arpo_replica.providers.root_files import OLDEST, RootFileSystem, build_rootfs

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

RESOLVER = "10.0.2.3"
"""Where a desktop with a network asks for names; pasta hands that on to this machine's own resolver."""
PASTA = (
    # A user namespace whose one id is the desktop's already: in one that pasta makes there is but root, which
    # bubblewrap could not map.
    "unshare", "--user", f"--map-user={sandbox.USER_ID}", f"--map-group={sandbox.USER_ID}", "--keep-caps",
    "pasta", "--quiet", "--ipv4-only", "--netns-only", "--config-net", "--no-map-gw",
    "--dns-forward", RESOLVER, "-t", "none", "-u", "none", "-T", "none", "-U", "none", "--",
    "unshare", "--mount", "sh", "-c",
    'for address in $0; do ip route add blackhole "$address" || exit 1; done; '
    # pasta gives it a process namespace too, in whose /proc bubblewrap looks for its child.
    'mount -t proc proc /proc && exec setpriv --ambient-caps=-all --inh-caps=-all "$@"',
)  # fmt: skip
"""Command prefix, before the addresses that are closed: a network with a way out, which pasta takes as any
program of this user could, but none to this machine. What runs in it can change none of that."""
LINK_LOCAL = "169.254.0.0/16"
"""Where clouds tell a machine its secrets."""

SUDO = Path(__file__).with_name("sudo.sh").read_bytes()


@dataclass
class _Sandbox:
    process: subprocess.Popen[bytes]
    first: int
    """pidfd of its first process: with that one the kernel ends all others."""


class BwrapEngine:
    """See ``engine.Engine``."""

    def __init__(self, root: RootFileSystem) -> None:
        self._root = root
        self._sandboxes: dict[str, _Sandbox] = {}
        self._lock = threading.Lock()
        self._number = itertools.count()

    def check(self) -> None:
        """Raises ``UserError`` naming what is missing: a program, or what keeps bubblewrap from working."""
        self._root.check()
        # An image that is not there yet brings a bubblewrap that cannot be tried yet.
        if self._root.image.exists() or sandbox.bwrap_version() >= OLDEST:
            data = sandbox.DataFiles()
            command = [*FIRST_TO_GO, *self._root.bubblewrap(), *_closed_in(self._root.tried(), data)]
            command += ["--perms", "0700", "--size", str(1 << 20), "--tmpfs", "/tmp"]  # noqa: S108 - its own
            problem = sandbox.why_no_sandbox([*command, "--", *_limited(64), "true"], data.fds)
            data.close()
            if problem:
                raise UserError(problem)

    def build(self, apps: Apps, output: TextIO) -> dict[str, Any]:
        """See the protocol. By an ordinary user where Debian's tools allow it (envs/desktop/rootfs.sh)."""
        return build_rootfs(apps, output)

    def image(self, name: str) -> dict[str, Any]:
        """``{id, tags, labels}`` of the image. Raises ``UserError`` if it is not there or another one."""
        about = self._root.identify()
        return {"id": about["sha256"], "labels": {"arpo.inputs": about.get("inputs_sha256", "")}}

    def describe(self) -> dict[str, Any]:
        """What records say of the engine."""
        version = ".".join(map(str, sandbox.bwrap_version(self._root.bubblewrap())))
        return {"engine": "bwrap", "bubblewrap": version, "root": self._root.way, "sudo": "stand-in"}

    def read(self, image: str, path: str) -> bytes:
        """A file of the image."""
        return sandbox.below(self._root.folder(), path).read_bytes()

    def run(self, spec: ContainerSpec) -> None:
        """Start a desktop. Raises ``DesktopError``."""
        reader, writer = os.pipe()
        data = sandbox.DataFiles()
        number = next(self._number)
        user = sandbox.unprivileged_id(number)
        try:
            if user is not None:  # what the owner alone may enter is to be mounted by that user
                os.chown(spec.control.parent, user, user)
            command = [
                *sandbox.unprivileged(number),
                *FIRST_TO_GO,
                *(outside() if spec.network else []),
                *self._root.bubblewrap(),
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
        try:
            child = sandbox.first_process(reader)
            # With pasta that number is one of its process namespace, whose first process is its child.
            if spec.network:
                child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
            first = os.pidfd_open(child)
        except (OSError, ValueError, KeyError, IndexError) as error:
            process.kill()
            said = process.communicate()[1].decode(errors="replace").strip()[-300:]
            raise DesktopError(f"the sandbox did not start: {said or error!r}") from error
        finally:
            os.close(reader)
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

    def reap(self) -> list[str]:
        """Nothing to do: a desktop ends by itself when the connection to its owner closes."""
        return []


def sandbox_options(root: Path, spec: ContainerSpec, data: sandbox.DataFiles, info_fd: int = -1) -> list[str]:
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
    if spec.network:
        args += ["--share-net", "--perms", "0644"]
        args += ["--ro-bind-data", data.add(f"nameserver {RESOLVER}\n".encode()), "/etc/resolv.conf"]
    if spec.sudo:
        args += ["--perms", "0755", "--ro-bind-data", data.add(SUDO), "/usr/bin/sudo"]
    args += ["--remount-ro", "/dev", "--remount-ro", "/run", "--remount-ro", "/sys"]
    for key, value in ENVIRONMENT.items():
        args += ["--setenv", key, value]
    args += ["--chdir", ENVIRONMENT["HOME"], "--", *_limited(spec.processes)]
    return [*args, "/usr/bin/python3", "-m", "guest"]


def _closed_in(root: Path, data: sandbox.DataFiles) -> list[str]:
    """bubblewrap's options for a root file system and for all that keeps a desktop in."""
    # --unshare-user by name: else --disable-userns is refused. No --die-with-parent: it follows the thread
    # that started the sandbox; the guest ends when the connection to its owner closes.
    args = ["--seccomp", data.add(desktop_filter()), "--unshare-user", "--unshare-all"]
    args += ["--disable-userns", "--as-pid-1", "--new-session", "--hostname", "desktop"]
    args += ["--uid", str(sandbox.USER_ID), "--gid", str(sandbox.USER_ID), "--clearenv", "--cap-drop", "ALL"]
    return [*args, "--ro-bind", str(root), "/", "--proc", "/proc", "--dev", "/dev"]


def _limited(processes: int) -> list[str]:
    """Command prefix: inside the namespace, where the limit counts this desktop's processes alone."""
    return ["prlimit", f"--nproc={processes}", "--core=0", "--"]


def outside() -> list[str]:
    """``PASTA`` with the addresses that this machine has now."""
    here = {one.address for found in psutil.net_if_addrs().values() for one in found if one.family == AF_INET}
    return [*PASTA, " ".join(sorted(here - {"127.0.0.1"} | {LINK_LOCAL}))]


def why_no_network() -> str:
    """What keeps a desktop from having a network on this machine, with the fix; empty if nothing."""
    if shutil.which("pasta") is None:
        return "pasta is missing: apt-get install passt"
    done = subprocess.run(
        [*sandbox.unprivileged(0), *outside(), "true"], capture_output=True, text=True, check=False, cwd="/"
    )
    if done.returncode == 0:
        return ""
    tun = "" if os.access("/dev/net/tun", os.R_OK | os.W_OK) else ", which every user must be able to open"
    said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
    return f"pasta does not work: {said[:160]}" + ("; it needs /dev/net/tun" + tun if "tun" in said else "")
