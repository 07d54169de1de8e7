"""The desktop's system as one squashfs: where it lies, how it is made, how a machine gets it as a folder."""

import atexit
import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from arpo_replica.base.environments import find
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import cache_folder, file_sha256, remembered_sha256, write_atomically
from arpo_replica.base.locks import locked
from arpo_replica.config.desktop import Apps, RootConfig
from arpo_replica.desktop.sandbox import HOST, bwrap_version
from arpo_replica.providers.call_filter import owners_filter
from arpo_replica.providers.desktop_image import FOLDER, ImageInputs, gather, run

SUITE = "bookworm"
"""Of the system that ``rootfs.sh`` installs."""
OLDEST = (0, 8)
"""Of bubblewrap: the first that can forbid further user namespaces."""
UNPACKED = 3 << 30
"""Bytes that the unpacked image and its making need."""
START_S = 20.0
STOP_S = 10.0


def rootfs_path(apps: Apps) -> Path:
    """Where the squashfs of these inputs lies, for all studies of this user."""
    return cache_folder() / "desktop" / f"{ImageInputs(find(FOLDER), apps, SUITE).digest()[:16]}.squashfs"


def record_of(image: Path) -> Path:
    """The file beside an image that says what it holds and what it was built from."""
    return image.with_suffix(".json")


def build_rootfs(apps: Apps, output: TextIO) -> dict[str, Any]:
    """One squashfs, by an ordinary user where Debian's tools allow it (envs/desktop/rootfs.sh)."""
    inputs = ImageInputs(find(FOLDER), apps, SUITE)
    digest, path = inputs.digest(), rootfs_path(apps)  # before the build: files may change in its ten minutes
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock"), "builds the desktop image"):
        if not (path.is_file() and record_of(path).is_file()):
            # Not below /tmp: mmdebstrap needs room, and the user it makes files for must reach the context.
            with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as context:
                gather(inputs, Path(context), output)
                if platform.machine() == "x86_64":
                    Path(context, "owners.bpf").write_bytes(owners_filter())
                run(["bash", str(inputs.folder / "rootfs.sh"), context, str(path), apps], output)
            about = {"inputs_sha256": digest, "sha256": file_sha256(path), "size_bytes": path.stat().st_size}
            write_atomically(record_of(path), (json.dumps(about, indent=1) + "\n").encode())
    return {"tag": path.name, "base": SUITE, **json.loads(record_of(path).read_bytes())}


class RootFileSystem:
    """The image's files as a folder of this machine, for as long as this process lives.

    squashfuse mounts it where the machine can do that; else it is unpacked, once for all processes of this
    user, to ``scratch``.
    """

    def __init__(self, image: Path, own: RootConfig, section: str) -> None:
        """``image``: the squashfs, or a folder that holds what it would. ``section``: of the config, whose
        keys errors name."""
        self.image = image
        self._own, self._section = own, section
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self.way = ""
        """``squashfuse``, ``unpacked`` or ``folder``, once it is there."""

    def folder(self) -> Path:
        """The root. Blocks: a second by squashfuse, ten to unpack. Raises ``UserError``."""
        with self._lock:
            if self._folder is None:
                if self.image.is_dir():
                    self._folder, self.way = self.image.resolve(), "folder"
                else:
                    self._folder = self._mount() if can_mount() else self._unpack()
            return self._folder

    def tried(self) -> Path:
        """The root for a try whether a sandbox can be made: this machine's own for a file, which would have
        to be mounted first."""
        return self.image.resolve() if self.image.is_dir() else HOST

    def bubblewrap(self) -> list[str]:
        """How to call bubblewrap: the machine's own if it is new enough, else the image's, which runs by the
        image's own libraries."""
        if bwrap_version() >= OLDEST:
            return ["bwrap"]
        libraries = self.folder() / "usr/lib/x86_64-linux-gnu"
        loader = [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries)]
        return [*loader, str(self.folder() / "usr/bin/bwrap")]

    def identify(self) -> dict[str, Any]:
        """What is known of the image: ``sha256``, and ``inputs_sha256`` of one that was built here.

        Raises ``UserError`` if it is not there or another one than the config says."""
        wanted = self._own.image_sha256
        if not self.image.exists():
            raise UserError(
                f"There is no desktop image {self.image}; build it "
                f"(snakemake --forcerun build_desktop_image) or correct {self._section}.image."
            )
        found = "none, as a folder" if self.image.is_dir() else remembered_sha256(self.image)
        if wanted not in (None, found):
            raise UserError(
                f"{self.image} has sha256 {found}, but {self._section}.image_sha256 is {wanted}: "
                "bring that file, or correct the key."
            )
        record = record_of(self.image)
        about = json.loads(record.read_bytes()) if record.is_file() else {}
        return {**about, "sha256": found}

    def _mount(self) -> Path:
        place = Path(tempfile.mkdtemp(prefix="arpo-root-"))
        place.chmod(0o755)
        options = ["-o", "allow_other"] if os.geteuid() == 0 else []
        # It must end when we do, however that comes: the shell waits for its input, which closes with this
        # process. On SIGTERM squashfuse unmounts; a SIGKILL would leave a dead mount.
        script = 'squashfuse -f "$@" & mounted=$!; read -r _; kill $mounted; wait $mounted; rmdir "$0"'
        keeper = subprocess.Popen(
            ["sh", "-c", script, str(place), *options, str(self.image), str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_S
        while not (place / "usr").is_dir():
            if time.monotonic() > deadline or keeper.poll() is not None:
                _stop(keeper)
                return self._unpack()
            time.sleep(0.02)
        atexit.register(_stop, keeper)
        self.way = "squashfuse"
        return place

    def check(self) -> None:
        """Raises ``UserError`` if this machine can neither mount the image nor has the means to unpack it."""
        if self.image.is_dir() or can_mount() or self._tree().is_dir():
            return
        if shutil.which("unsquashfs") is None:
            raise UserError(
                f"{self.image} can be neither mounted (squashfuse, /dev/fuse) nor unpacked: "
                "apt-get install squashfuse squashfs-tools."
            )
        scratch = self._own.scratch
        place = next(path for path in (scratch, *scratch.parents) if path.is_dir())
        if (free := shutil.disk_usage(place).free) < UNPACKED:
            raise UserError(
                f"{scratch} ({self._section}.scratch) has {free >> 20} MiB free, but the unpacked "
                f"desktop image needs {UNPACKED >> 20}: name a folder of this machine with more room."
            )

    def _tree(self) -> Path:
        """Where the image is, once it is unpacked."""
        name = f"{self.image.resolve()} {self.image.stat().st_mtime_ns}" if self.image.is_file() else ""
        shelf = self._own.scratch / f"arpo-desktop-{os.geteuid()}"
        return shelf / hashlib.sha256(name.encode()).hexdigest()[:16]

    def _unpack(self) -> Path:
        self.check()
        done = self._tree()
        shelf = done.parent
        shelf.mkdir(mode=0o711, parents=True, exist_ok=True)
        if shelf.stat().st_uid != os.geteuid():
            raise UserError(
                f"{shelf} belongs to another user; set {self._section}.scratch to a folder of yours."
            )
        with locked(done.with_suffix(".lock"), "unpacks the desktop image"):
            if not done.is_dir():
                part = done.with_suffix(".part")
                shutil.rmtree(part, ignore_errors=True)
                command = ["unsquashfs", "-no-xattrs", "-no-progress", "-quiet"]
                command += ["-d", str(part), str(self.image)]
                result = subprocess.run(command, capture_output=True, text=True, check=False)
                if result.returncode != 0:
                    shutil.rmtree(part, ignore_errors=True)
                    words = (result.stderr.strip().splitlines() or ["unsquashfs failed"])[-1][:200]
                    raise UserError(
                        f"{self.image} cannot be unpacked to {shelf} ({self._section}.scratch): {words}."
                    )
                part.rename(done)
        self.way = "unpacked"
        return done


def can_mount() -> bool:
    """True where squashfuse can mount for this user."""
    return shutil.which("squashfuse") is not None and os.access("/dev/fuse", os.R_OK | os.W_OK)


def _stop(keeper: subprocess.Popen[bytes]) -> None:
    assert keeper.stdin is not None
    keeper.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        keeper.wait(STOP_S)
