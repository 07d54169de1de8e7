"""What the desktop image is made of (``envs/desktop``, the guest's code), and the record of a build.

Each engine makes the image in its own way (``Engine.build``).
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from arpo_replica.base.environments import find
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import write_atomically
from arpo_replica.config.desktop import Apps, ContainerConfig
from arpo_replica.providers.engine import make_engine

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
VERSIONS = "/opt/desktop/versions.json"


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
        code, guest = find(GUEST), ("*.py", "settings/*")
        inside = [path for pattern in guest for path in sorted(code.glob(pattern))]
        return found | {f"guest/{path.relative_to(code).as_posix()}": path for path in inside}

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


def build_desktop_image(record: Path, own: ContainerConfig, log: Path) -> dict[str, Any]:
    """Build the image for the engine that runs here, unless it is there, and write its record.

    ``log``: what the build says. Raises ``UserError`` that names it when the build fails.
    """
    engine = make_engine(own)
    engine.check()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        began = time.monotonic()
        facts = engine.build(own.apps, output)
        facts |= {"build_s": round(time.monotonic() - began, 1), "apps": own.apps, **engine.describe()}
    facts["id"] = engine.image(facts["tag"])["id"]
    facts["packages"] = json.loads(engine.read(facts["tag"], VERSIONS))
    write_atomically(record, (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode())
    return facts


def gather(inputs: ImageInputs, context: Path, output: TextIO) -> None:
    """Put what a build reads into the folder ``context``. Raises ``UserError``."""
    for name, path in inputs.files().items():
        place = context / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--require-hashes"]
    # Debian's pip would else want the package "wheel" in this environment.
    run([*pip, "--use-pep517", "-r", str(context / "wheels.txt"), "-w", str(context / "wheels")], output)


def run(command: list[str], output: TextIO | None) -> str:
    """Run to the end; what it prints, if not sent to ``output``. Raises ``UserError``."""
    result = subprocess.run(
        command,
        stdout=output or subprocess.PIPE,
        stderr=output or subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "DOCKER_BUILDKIT": "0"},  # Debian has no other builder than the classic one
    )
    if result.returncode != 0:
        text = Path(output.name).read_text(errors="replace") if output else result.stderr or ""
        said = (text.strip().splitlines() or ["it said nothing"])[-1][-600:].rstrip(".")
        log = f"; all of it in {output.name}" if output else ""
        raise UserError(f"'{' '.join(command[:2])}' ended with status {result.returncode}: {said}{log}.")
    return (result.stdout or "").strip()
