"""What runs container desktops: the calls that every engine answers, and the choice of one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

from arpo_replica.config.desktop import BUILT_IMAGE, Apps, ContainerConfig


@dataclass(frozen=True)
class ContainerSpec:
    """What a container of a desktop is given."""

    name: str
    image: str
    label: str
    control: Path
    """Folder on this machine that is mounted, read-only, where the guest looks for its owner's socket."""
    files: dict[Path, str] = field(default_factory=dict)
    """File on this machine -> where it is mounted, read-only."""
    tmpfs: dict[str, str] = field(default_factory=dict)
    """Folder inside -> mount options."""
    shared_mb: int = 128
    memory_mb: int = 1024
    cpus: float = 1.0
    processes: int = 1024
    network: bool = False
    sudo: bool = False


class Engine(Protocol):
    """Every call blocks: use them in threads."""

    def check(self) -> None:
        """Raises ``UserError`` naming what keeps desktops from running here."""

    def build(self, apps: Apps, output: TextIO) -> dict[str, Any]:
        """Make our own image, unless it is there: ``{tag, inputs_sha256, base, size_bytes}``.

        ``output`` takes what the programs say. Raises ``UserError``.
        """

    def image(self, name: str) -> dict[str, Any]:
        """``{id, labels}`` of an image. Raises ``UserError`` if there is none of that name."""

    def read(self, image: str, path: str) -> bytes:
        """A file of an image."""

    def describe(self) -> dict[str, Any]:
        """What records say: ``engine``, how its desktops' ``root`` is mounted, whose ``sudo`` they have, its
        version."""

    def run(self, spec: ContainerSpec) -> None:
        """Start a container. Raises ``DesktopError``, or ``UserError`` if there is no such image."""

    def running(self, name: str) -> bool:
        """True if the container runs. Raises ``DesktopError`` if that cannot be known."""

    def remove(self, name: str) -> None:
        """Kill a container and forget it; none of that name is fine. Raises ``DesktopError``."""

    def reap(self) -> list[str]:
        """Remove what processes that have been killed left behind; the names."""


def chosen_engine(own: ContainerConfig) -> Literal["docker", "bwrap"]:
    """``desktop.container.engine``; ``auto``: the Docker daemon if one answers here, else bubblewrap."""
    if own.engine == "auto":
        from arpo_replica.providers.docker_engine import answers

        return "docker" if answers() else "bwrap"
    return own.engine


def make_engine(own: ContainerConfig) -> Engine:
    """What runs container desktops here. Imported only now: other studies need no package docker."""
    if chosen_engine(own) == "docker":
        from arpo_replica.providers.docker_engine import DockerEngine

        return DockerEngine()
    from arpo_replica.providers.bwrap_engine import BwrapEngine
    from arpo_replica.providers.root_files import RootFileSystem, rootfs_path

    image = rootfs_path(own.apps) if own.image == BUILT_IMAGE else Path(own.image)
    return BwrapEngine(RootFileSystem(image, own, "desktop.container"))
