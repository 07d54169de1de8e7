"""Builds the desktop image from ``envs/desktop`` and the guest's code, and says what it holds.

By the ``docker`` command with the classic builder: Debian has no other, and ``--network host`` is what works
under a daemon whose bridge leads nowhere.
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
from typing import Any, Literal

from arpo_replica.base.environments import find
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import write_atomically
from arpo_replica.config.container import BUILT_IMAGE

NAME = BUILT_IMAGE.partition(":")[0]
FOLDER = Path("envs/desktop")
"""Relative to the repository, where Snakemake runs."""
FILES = ("Dockerfile", "apt-image.txt", "apt-image-full.txt", "home", "mimeapps.list")
GUEST = Path("src/guest")
BASE_IMAGE = "arpo-base:bookworm"
"""Made by ``base_image.sh`` where ``debian:bookworm-slim`` cannot be had."""
PUBLIC_BASE = "debian:bookworm-slim"
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


def build_desktop_image(record: Path, folder: Path, apps: Apps, log: Path, base: str = "") -> dict[str, Any]:
    """Build the image unless the daemon has it, tag it ``latest`` too, write its record.

    ``base``: base image; empty: Debian's if the daemon has or gets it, else one made by debootstrap (as
    root). Raises ``UserError`` that names the log when the build fails.
    """
    from arpo_replica.providers.docker_engine import (
        Engine,
    )  # the package docker: studies without containers go without

    engine = Engine()
    engine.check()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        chosen = base or _base_image(folder, output)
        inputs = ImageInputs(folder, apps, chosen)
        digest = inputs.digest()
        tag = f"{NAME}:{digest[:12]}"
        began = time.monotonic()
        if not _has(tag):
            with tempfile.TemporaryDirectory(prefix="arpo-image-") as context:
                _gather(inputs, Path(context), output)
                _build(inputs, Path(context), tag, digest, output)
        took = time.monotonic() - began
    _run(["docker", "tag", tag, BUILT_IMAGE], None)
    facts = {
        "tag": tag,
        "id": engine.image(tag)["id"],
        "inputs_sha256": digest,
        "apps": apps,
        "base": chosen,
        "size_bytes": int(_run(["docker", "image", "inspect", "--format", "{{.Size}}", tag], None)),
        "build_s": round(took, 1),
        "docker": engine.version(),
        "packages": json.loads(engine.read(tag, VERSIONS)),
    }
    write_atomically(record, (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode())
    return facts


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


def _build(inputs: ImageInputs, context: Path, tag: str, digest: str, output: Any) -> None:
    command = ["docker", "build", "--network", "host", "--label", f"arpo.inputs={digest}", "--tag", tag]
    for name, value in {"BASE_IMAGE": inputs.base, "APPS": inputs.apps}.items():
        command += ["--build-arg", f"{name}={value}"]
    _run([*command, str(context)], output)


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
