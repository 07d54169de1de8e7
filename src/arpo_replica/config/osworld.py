"""Keys of ``desktop.osworld``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from arpo_replica.config.section import Section

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class OSWorldConfig(Section):
    """Desktops by `desktop-env`'s own providers (`provider: osworld`). A virtual machine boots for minutes:
    set `desktop.start_timeout_s` to 330 then."""

    hypervisor: Literal["docker", "vmware"] = "docker"
    """`docker`: the image `happysixd/osworld-docker`, as desktop-env's DockerProvider starts it. `vmware`: a
    virtual machine by `vmrun` (VMware Workstation, or Fusion on a Mac)."""
    image_digest: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$")
    """Digest (or id) that the local image `happysixd/osworld-docker:latest` must have; none: any, noted in
    the results."""
    vm: Path | None = None
    """The virtual machine: `Ubuntu.qcow2` for `docker`, the `.vmx` file for `vmware`. With `docker` none is
    for images that hold their desktop themselves, as ours does under that name."""
    vm_sha256: Sha256 | None = None
    """sha256 that the file `vm` must have; it is read once, then again only when size or time changed."""
    snapshot: str = "init_state"
    """VMware's snapshot that a reset goes back to."""
    password: str = "password"  # noqa: S105  # that of OSWorld's public image
    """Password of the desktop's user, for the templates of task files."""
    settle_ms: Annotated[int, Field(ge=0)] = 2000
    """Longest wait after an action for the screen to come to rest; OSWorld always waits 2 s."""
