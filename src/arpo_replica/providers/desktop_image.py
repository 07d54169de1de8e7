"""Builds the desktop image from ``envs/desktop`` and the guest's code, and says what it holds; chooses the
engine.

For Docker by the ``docker`` command with the classic builder: Debian has no other, and ``--network host`` is
what works under a daemon whose bridge leads nowhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from arpo_replica.base.environments import find
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import cache_folder, file_sha256, write_atomically
from arpo_replica.base.locks import locked
from arpo_replica.config.desktop import BUILT_IMAGE, ContainerConfig

# The engines are imported where they are used: studies without containers go without the package docker.
if TYPE_CHECKING:
    from arpo_replica.providers.bwrap_engine import BwrapEngine
    from arpo_replica.providers.docker_engine import Engine

NAME = BUILT_IMAGE.partition(":")[0]
FOLDER = Path("envs/desktop")
"""Relative to the repository, where Snakemake runs."""
FILES = (
    "Dockerfile",
    "finish.sh",
    "rootfs.sh",
    "apt-image.txt",
    "apt-image-full.txt",
    "home",
    "mimeapps.list",
)
GUEST = Path("src/guest")
BASE_IMAGE = "arpo-base:bookworm"
"""Made by ``base_image.sh`` where ``debian:bookworm-slim`` cannot be had."""
PUBLIC_BASE = "debian:bookworm-slim"
SUITE = "bookworm"
"""Of the system that ``rootfs.sh`` installs."""
VERSIONS = "/opt/desktop/versions.json"
Apps = Literal["core", "full"]


@dataclass(frozen=True)
class ImageInputs:
    """All that decides what an image is, but for the state of Debian's archive on the day."""

    folder: Path
    """``envs/desktop``."""
    apps: Apps
    base: str

    def files(self) -> dict[str, Path]:
        """Name in the build context -> file."""
        found: dict[str, Path] = {"wheels.txt": self.folder / "wheels.txt"}
        for name in FILES:
            place = self.folder / name
            inside = (
                sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
            )
            found |= {path.relative_to(self.folder).as_posix(): path for path in inside}
        return found | {f"guest/{path.name}": path for path in sorted(find(GUEST).glob("*.py"))}

    def digest(self) -> str:
        """sha256 over names and contents and the build's arguments."""
        digest = hashlib.sha256(json.dumps([self.apps, self.base]).encode())
        for name, path in sorted(self.files().items()):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{name} {content}\n".encode())
        return digest.hexdigest()


def image_files() -> list[str]:
    """What a build of the image reads, for the rule that asks for it."""
    return [str(path) for path in ImageInputs(find(FOLDER), "full", "").files().values()]


def chosen_engine(own: ContainerConfig) -> Literal["docker", "bwrap"]:
    """``desktop.container.engine``; ``auto``: the Docker daemon if one answers here, else bubblewrap."""
    if own.engine == "auto":
        from arpo_replica.providers.docker_engine import answers

        return "docker" if answers() else "bwrap"
    return own.engine


def make_engine(own: ContainerConfig) -> Engine | BwrapEngine:
    """What runs container desktops here."""
    from arpo_replica.providers.bwrap_engine import BwrapEngine
    from arpo_replica.providers.docker_engine import Engine

    if chosen_engine(own) == "docker":
        return Engine()
    image = rootfs_path(own.apps) if own.image == BUILT_IMAGE else Path(own.image)
    return BwrapEngine(image, own.scratch, own.image_sha256)


def rootfs_path(apps: Apps) -> Path:
    """Where the squashfs of these inputs lies, for all studies of this user."""
    return cache_folder() / "desktop" / f"{ImageInputs(find(FOLDER), apps, SUITE).digest()[:16]}.squashfs"


def build_desktop_image(record: Path, own: ContainerConfig, log: Path) -> dict[str, Any]:
    """Build the image for the engine that runs here, unless it is there, and write its record.

    ``log``: what the build says. Raises ``UserError`` that names it when the build fails.
    """
    engine = make_engine(own)
    engine.check()
    log.parent.mkdir(parents=True, exist_ok=True)
    build = _build_docker if "docker" in engine.describe() else _build_rootfs
    with log.open("w") as output:
        began = time.monotonic()
        facts = build(own.apps, output)
        facts |= {"build_s": round(time.monotonic() - began, 1), "apps": own.apps, **engine.describe()}
    facts["id"] = engine.image(facts["tag"])["id"]
    facts["packages"] = json.loads(engine.read(facts["tag"], VERSIONS))
    write_atomically(record, (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode())
    return facts


def _build_docker(apps: Apps, output: Any) -> dict[str, Any]:
    """Debian's base image if the daemon has or gets it, else one made by debootstrap (as root)."""
    folder = find(FOLDER)
    inputs = ImageInputs(folder, apps, _base_image(folder, output))
    digest = inputs.digest()
    tag = f"{NAME}:{digest[:12]}"
    if not _has(tag):
        with tempfile.TemporaryDirectory(prefix="arpo-image-") as context:
            _gather(inputs, Path(context), output)
            command = [
                "docker",
                "build",
                "--network",
                "host",
                "--label",
                f"arpo.inputs={digest}",
                "--tag",
                tag,
            ]
            for name, value in {"BASE_IMAGE": inputs.base, "APPS": inputs.apps}.items():
                command += ["--build-arg", f"{name}={value}"]
            _run([*command, context], output)
    _run(["docker", "tag", tag, BUILT_IMAGE], None)
    size = int(_run(["docker", "image", "inspect", "--format", "{{.Size}}", tag], None))
    return {"tag": tag, "inputs_sha256": digest, "base": inputs.base, "size_bytes": size}


def _build_rootfs(apps: Apps, output: Any) -> dict[str, Any]:
    """One squashfs, by an ordinary user where Debian's tools allow it (envs/desktop/rootfs.sh)."""
    from arpo_replica.providers.bwrap_engine import record_of

    inputs = ImageInputs(find(FOLDER), apps, SUITE)
    digest, path = inputs.digest(), rootfs_path(apps)  # before the build: files may change in its ten minutes
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock"), "builds the desktop image"):
        if not record_of(path).is_file():
            # Not below /tmp: mmdebstrap needs room, and the user it makes files for must reach the context.
            with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as context:
                _gather(inputs, Path(context), output)
                _run(["bash", str(inputs.folder / "rootfs.sh"), context, str(path), apps], output)
            about = {
                "inputs_sha256": digest,
                "sha256": file_sha256(path),
                "size_bytes": path.stat().st_size,
            }
            write_atomically(record_of(path), (json.dumps(about, indent=1) + "\n").encode())
    return {"tag": str(path), "base": SUITE, **json.loads(record_of(path).read_bytes())}


def _has(image: str) -> bool:
    command = ["docker", "image", "inspect", image]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _base_image(folder: Path, output: Any) -> str:
    for known in (BASE_IMAGE, PUBLIC_BASE):
        if _has(known):
            return known
    if (
        subprocess.run(["docker", "pull", PUBLIC_BASE], stdout=output, stderr=output, check=False).returncode
        == 0
    ):
        return PUBLIC_BASE
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise UserError(
            f"The image {PUBLIC_BASE} cannot be pulled; make a base image as root "
            "(apt-get install debootstrap, then envs/desktop/base_image.sh)."
        )
    _run([str(folder / "base_image.sh"), BASE_IMAGE], output)
    return BASE_IMAGE


def _gather(inputs: ImageInputs, context: Path, output: Any) -> None:
    for name, path in inputs.files().items():
        place = context / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--require-hashes"]
    # Debian's pip would else want the package "wheel" in this environment.
    _run([*pip, "--use-pep517", "-r", str(context / "wheels.txt"), "-w", str(context / "wheels")], output)


def _run(command: list[str], output: Any) -> str:
    """Run to the end; what it prints, if not sent to ``output``. Raises ``UserError``."""
    result = subprocess.run(
        command,
        stdout=output or subprocess.PIPE,
        stderr=output or subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "DOCKER_BUILDKIT": "0"},
    )
    if result.returncode != 0:
        said = f"; see {output.name}" if output else f": {(result.stderr or '').strip()[-300:]}"
        raise UserError(f"'{' '.join(command[:3])}' ended with status {result.returncode}{said}.")
    return (result.stdout or "").strip()
