"""What kind of desktop a result is marked with: a container is never called OSWorld's machine."""

import pytest

from arpo_replica.config.desktop import MARKS, DesktopConfig, desktop_mark

DIGEST, SHA = "sha256:" + "a" * 64, "b" * 64
CONTAINER = "OSWorld-compatible, container desktop"


@pytest.mark.parametrize(
    ("desktop", "kind", "mark"),
    [
        ({"provider": "process"}, "process", "process desktop, not OSWorld"),
        ({"provider": "container"}, "container", CONTAINER),
        ({"provider": "osworld"}, "osworld_container", CONTAINER),
        ({"provider": "osworld", "osworld": {"image_digest": DIGEST}}, "osworld_container", CONTAINER),
        ({"provider": "osworld", "osworld": {"vm": "a.qcow2"}}, "osworld_unpinned", None),
        ({"provider": "osworld", "osworld": {"vm": "a.qcow2", "vm_sha256": SHA}}, "osworld_unpinned", None),
        (
            {"provider": "osworld", "osworld": {"vm": "a.qcow2", "vm_sha256": SHA, "image_digest": DIGEST}},
            "osworld",
            "OSWorld's virtual machine",
        ),
        (
            {"provider": "osworld", "osworld": {"hypervisor": "vmware", "vm": "a.vmx", "vm_sha256": SHA}},
            "osworld",
            "OSWorld's virtual machine",
        ),
        ({"provider": "remote", "remote": {"lends": "container"}}, "container", CONTAINER),
        ({"provider": "remote", "remote": {"lends": "osworld"}}, "osworld_unpinned", None),
    ],
)
def test_kind_and_mark(desktop, kind, mark):
    config = DesktopConfig(**desktop)
    assert config.kind == kind
    assert desktop_mark(config.kind) == (mark or MARKS[kind])


def test_every_kind_of_container_says_so_and_an_unknown_kind_is_unknown():
    assert all("container" in MARKS[kind] for kind in MARKS if "container" in kind)
    assert "unknown" in desktop_mark("something")
