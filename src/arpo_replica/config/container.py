"""Keys of ``desktop.container``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from arpo_replica.config.section import Positive, Section

BUILT_IMAGE = "arpo-desktop:latest"


class ContainerConfig(Section):
    """Desktops in containers of our Debian image (`provider: container`)."""

    engine: Literal["auto", "docker", "bwrap"] = "auto"
    """What runs them: a Docker daemon, or bubblewrap as an ordinary user, without Docker, KVM or root.
    `auto`: the daemon if one answers, else bubblewrap."""
    image: str = BUILT_IMAGE
    """Image of the desktops: of the daemon, or for bubblewrap the path of a squashfs file. The default one
    is built by the workflow (rule `build_desktop_image`)."""
    image_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """What the squashfs file must be, where it was brought from elsewhere."""
    scratch: Path = Path("/tmp")  # noqa: S108
    """bubblewrap: folder of this machine to which the image is unpacked, once per user, where squashfuse
    cannot mount it; about 2 GB."""
    apps: Literal["core", "full"] = "full"
    """What is in the image that is built: `full`, or `core`, without Thunderbird and some tools."""
    cpus: float = Field(default=2.0, gt=0)
    """CPU cores that one desktop may use."""
    processes: Positive = 2048
    """Processes and threads that one desktop may have."""
    spares: Annotated[int, Field(ge=0)] = 1
    """Desktops started ahead, so that a reset need not wait for one; each takes 200 MB."""
    reset: Literal["auto", "hard"] = "auto"
    """`hard`: each episode gets a new container. `auto`: so do OSWorld's tasks; tasks of our own that need
    nothing special get the same one, cleaned."""
    network: Literal["never", "task", "always"] = "task"
    """Who gets a way out to the network: nobody, tasks that declare it (OSWorld's key `proxy`), all."""
    sudo: Literal["never", "task", "always"] = "task"
    """Where `sudo` works: nowhere, for tasks whose files or instruction mention it, everywhere. It takes
    capabilities and a writable system, so it is not for all."""
