"""What kind of desktop a result comes from, in words that stand beside every number.

A score from a container is no OSWorld score, whoever started the container: start state, window geometry
and program versions differ from OSWorld's virtual machine. So the provider's name is not enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arpo_replica.config.osworld import OSWorldConfig

MARKS = {
    "process": "process desktop, not OSWorld",
    "container": "OSWorld-compatible, container desktop",
    "osworld_container": "OSWorld-compatible, container desktop",
    "osworld_unpinned": "OSWorld's virtual machine, its identity not verified",
    "osworld": "OSWorld's virtual machine",
}
"""Kind of desktop, as episode records name it -> its mark."""


def kind_of_osworld(config: OSWorldConfig) -> str:
    """Which kind the desktops of provider ``osworld`` are.

    Without a virtual machine the image under OSWorld's name holds the desktop itself, as ours does: then it
    is a container. With one, only hashes that are checked at the start make it OSWorld's.
    """
    if config.vm is None and config.hypervisor == "docker":
        return "osworld_container"
    pinned = config.vm_sha256 is not None and (
        config.hypervisor != "docker" or config.image_digest is not None
    )
    return "osworld" if pinned else "osworld_unpinned"


def desktop_mark(kind: str) -> str:
    """The mark of a kind of desktop; an unknown kind is said to be unknown."""
    return MARKS.get(kind, f"desktop of unknown kind “{kind}”")
