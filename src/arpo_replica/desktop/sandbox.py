"""The sandbox around one desktop: bubblewrap's command line, and the plain fallback without namespaces.

bubblewrap gives each desktop its own network (loopback only), processes, mounts and memory file systems;
when its first process ends, the kernel ends all others and forgets the files.
"""

import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from guest.config import GuestConfig
from guest.files import StaticFile

CHROMIUM = Path("/usr/lib/chromium/chromium")
PYTHON = "/usr/bin/python3"
HOST = Path("/")
"""The system of this machine."""
USER_ID = 1000
"""The desktop's user as seen inside: OSWorld's ``user``."""
ETC = (
    "alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "fonts", "localtime", "X11", "xdg",
    "gtk-3.0", "mime.types", "ssl/certs", "nsswitch.conf", "dbus-1", "dconf", "timezone",
)  # fmt: skip
DYNAMIC_IDS = range(61184, 65520)
"""User ids that systemd reserves for services without an account (systemd.io/UIDS-GIDS)."""
ACCOUNTS = {
    "/etc/passwd": f"root:x:0:0::/root:/bin/sh\nuser:x:{USER_ID}:{USER_ID}:User:/home/user:/bin/bash\n",
    "/etc/group": f"root:x:0:\nuser:x:{USER_ID}:\n",
    "/etc/hosts": "127.0.0.1 localhost desktop\n::1 localhost\n",
    "/etc/hostname": "desktop\n",
    "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
}


def unprivileged_id(number: int) -> int | None:
    """User id of the desktop with that number; None if we are not root and so cannot choose.

    Each desktop gets another id, so that limits per user are limits per desktop.
    """
    if os.geteuid() != 0:
        return None
    return DYNAMIC_IDS[(os.getpid() * 61 + number) % len(DYNAMIC_IDS)]


def unprivileged(number: int) -> list[str]:
    """Command prefix that drops root for good; empty if we are not root."""
    user = unprivileged_id(number)
    if user is None:
        return []
    return [
        "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups",
        "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs",
    ]  # fmt: skip


class DataFiles:
    """Contents handed to a child by file descriptor: nothing on disk, no path that it must be let into."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def add(self, data: bytes) -> str:
        """A descriptor's number, as bubblewrap's --ro-bind-data takes it."""
        fd = os.memfd_create("desktop")
        self.fds.append(fd)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        return str(fd)

    def close(self) -> None:
        """Close our copies."""
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


def pack_folder(folder: Path, prefix: str = "") -> bytes:
    """A folder as an uncompressed zip archive, the same bytes each time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.parent.name != "__pycache__":
                name = prefix + path.relative_to(folder).as_posix()
                archive.writestr(zipfile.ZipInfo(name), path.read_bytes())
    return buffer.getvalue()


def pack_guest() -> bytes:
    """The guest's code as a zip archive that Python imports as the package ``guest``."""
    spec = importlib.util.find_spec("guest")
    assert spec is not None and spec.submodule_search_locations
    return pack_folder(Path(next(iter(spec.submodule_search_locations))), "guest/")


def guest_command(config: GuestConfig) -> list[str]:
    """Start of the guest; its code is found by PYTHONPATH."""
    return [PYTHON, "-m", "guest", json.dumps(asdict(config))]


def system_files(etc: Iterable[str], root: Path = HOST) -> list[str]:
    """bubblewrap's arguments for the programs of the system below ``root`` and its files of /etc with these
    names, read-only."""
    args = ["--ro-bind", str(root / "usr"), "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = root / name
        if path.is_symlink():
            args += ["--symlink", str(path.readlink()), f"/{name}"]
        elif path.exists():
            args += ["--ro-bind", str(path), f"/{name}"]
    for name in etc:
        args += ["--ro-bind-try", str(root / "etc" / name), f"/etc/{name}"]
    return args


def bubblewrap(
    config: GuestConfig,
    *,
    program: Iterable[str],
    root: Path,
    disk_mb: int,
    files: dict[str, StaticFile],
    archives: dict[str, bytes],
    data: DataFiles,
    info_fd: int,
) -> list[str]:
    """bubblewrap's command line for the guest.

    ``program``: how bubblewrap is called. ``root``: the system whose programs the desktop has. ``disk_mb``
    is split between home (half), /tmp and /dev/shm (a quarter each). ``archives``: path
    inside -> content. ``info_fd``: where bubblewrap writes the id of the first process.
    """
    quarter = str(max(disk_mb // 4, 1) << 20)
    half = str(max(disk_mb // 2, 1) << 20)
    args = [*program, "--info-fd", str(info_fd), "--unshare-all", "--die-with-parent", "--new-session"]
    args += ["--hostname", "desktop"]
    args += ["--uid", str(USER_ID), "--gid", str(USER_ID), "--clearenv"]
    args += system_files(ETC, root)
    args += ["--ro-bind-try", str(root / "var/cache/fontconfig"), "/var/cache/fontconfig"]
    args += ["--ro-bind-try", "/sys/devices/system/cpu", "/sys/devices/system/cpu"]
    args += ["--proc", "/proc", "--dev", "/dev", "--dir", "/run"]
    for place, size in ((config.home, half), (config.tmp, quarter), ("/dev/shm", quarter)):  # noqa: S108
        args += ["--perms", "0700" if place == config.home else "1777", "--size", size, "--tmpfs", place]
    args += _chromium(Path(config.chromium), root)
    for place, text in ACCOUNTS.items():
        args += ["--perms", "0644", "--ro-bind-data", data.add(text.encode()), place]
    for place, file in files.items():
        args += ["--perms", f"{file.mode:04o}", "--ro-bind-data", data.add(file.text.encode()), place]
    for place, content in archives.items():
        args += ["--perms", "0644", "--ro-bind-data", data.add(content), place]
    args += ["--remount-ro", "/dev", "--remount-ro", "/"]
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": config.home,
        "LANG": "C.UTF-8",
        "PYTHONPATH": GUEST_ARCHIVE,
    }
    for key, value in environment.items():
        args += ["--setenv", key, value]
    return [*args, "--chdir", config.home, "--", *guest_command(config)]


GUEST_ARCHIVE = "/opt/desktop/guest.zip"


def _chromium(program: Path, root: Path) -> list[str]:
    """Debian's Chromium at another place, so that its processes are called what tasks expect: ``chrome``."""
    args = ["--ro-bind", str(below(root, CHROMIUM)), str(program)]
    for entry in sorted(below(root, CHROMIUM.parent).iterdir()):
        if entry.name not in (CHROMIUM.name, program.name):  # our image has renamed it already
            args += ["--symlink", str(CHROMIUM.parent / entry.name), str(program.parent / entry.name)]
    return args


def below(root: Path, path: Path | str) -> Path:
    """Where an absolute path of the system below ``root`` is."""
    return root / str(path).lstrip("/")


def bwrap_version(bubblewrap: Iterable[str] = ("bwrap",)) -> tuple[int, ...]:
    """Of a bubblewrap; (0,) if there is none."""
    try:
        done = subprocess.run([*bubblewrap, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return (0,)
    return tuple(int(part) for part in re.findall(r"\d+", done.stdout)) or (0,)


def first_process(info_fd: int) -> int:
    """Id of the first process, which a sandbox's bubblewrap writes to ``--info-fd``; our end of it. Blocks.

    Raises ValueError or KeyError if it ends without a word.
    """
    text = b""
    while b"}" not in text and (piece := os.read(info_fd, 4096)):
        text += piece
    return int(json.loads(text)["child-pid"])


def why_no_sandbox(command: list[str], fds: Iterable[int] = ()) -> str:
    """What keeps bubblewrap from making a desktop on this machine, with the fix, in one sentence; empty if
    nothing.

    ``command``: the launcher's own, with a program that ends at once. ``fds``: files that it reads.
    """
    command = [*unprivileged(0), *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, pass_fds=list(fds), cwd="/")
    if done.returncode == 0:
        return ""
    said = (done.stderr.strip().splitlines() or ["no word"])[-1]
    return f"bubblewrap cannot make a desktop here ({said[:160]}): {_fix(said, _sysctl)}."


def _fix(said: str, sysctl: Callable[[str], str]) -> str:
    """The cause's remedy, by what bubblewrap said and the kernel's settings."""
    if "find source path" in said:
        return "let other users enter that folder and those above it (chmod o+x), or name another one"
    if "mount proc" in said:
        return (
            "give this container its whole /proc (podman: --security-opt unmask=ALL, Kubernetes: procMount)"
        )
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


class PlainFolder:
    """The fallback's stand-in for the sandbox's file systems: one folder on disk, removed at the end."""

    def __init__(self, owner: int | None) -> None:
        """``owner``: user id that gets the folder; None: the present user."""
        self.path = Path(tempfile.mkdtemp(prefix="arpo-"))
        self._owner = owner

    def write(self, name: str, data: bytes, mode: int = 0o644) -> Path:
        """Write a file."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(mode)
        return path

    def private(self, name: str) -> Path:
        """Make a folder."""
        path = self.path / name
        path.mkdir(parents=True)
        return path

    def give_away(self) -> None:
        """Make the desktop's user the owner: so the guest can remove all of it if we are killed."""
        if self._owner is not None:
            for path in (self.path, *self.path.rglob("*")):
                os.chown(path, self._owner, self._owner)

    def remove(self) -> None:
        """Remove everything. Never raises."""
        shutil.rmtree(self.path, ignore_errors=True)
