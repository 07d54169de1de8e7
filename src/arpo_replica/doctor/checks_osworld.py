"""OSWorld's own virtual machine through desktop-env."""

from __future__ import annotations

import os

from arpo_replica.config.models import StudyConfig
from arpo_replica.doctor.checks_docker import needs_docker
from arpo_replica.doctor.machine import Machine
from arpo_replica.doctor.registry import Finding, check, fail, ok, warn

IMAGE = "happysixd/osworld-docker:latest"
GIB = 2**30
READY_S = 300


def is_osworld(config: StudyConfig) -> bool:
    """True for desktops of desktop-env."""
    return config.desktop.provider == "osworld"


def is_docker_vm(config: StudyConfig) -> bool:
    """True for OSWorld's virtual machine in a container."""
    return is_osworld(config) and needs_docker(config)


@check("hardware virtualisation", is_docker_vm)
def kvm(config: StudyConfig, machine: Machine) -> Finding:
    """Without KVM it boots for an hour: 'VM failed to become ready within timeout period'."""
    genuine = config.desktop.osworld.vm is not None
    if not machine.exists("/dev/kvm"):
        flags = machine.read("/proc/cpuinfo") or ""
        capable = " vmx" in flags or " svm" in flags
        fix = (
            "modprobe kvm_intel or kvm_amd" if capable else "a machine with nested virtualisation switched on"
        )
        words = "no /dev/kvm" + ("" if capable else ", and the processor shows no virtualisation")
        if genuine:
            return fail(words, f"{fix}; or desktop.provider: container, which needs none")
        return ok(f"{words}; not needed, as desktop.osworld.vm names no virtual machine")
    if not machine.may("/dev/kvm", os.R_OK | os.W_OK):
        return fail("/dev/kvm refuses this user", "usermod -aG kvm $USER and log in again")
    if "hypervisor" in (machine.read("/proc/cpuinfo") or "").split():
        return warn(
            "/dev/kvm is there, in a virtual machine: some cannot run a guest",
            "try one desktop first; desktop.provider: container needs none",
        )
    return ok("/dev/kvm")


@check("OSWorld's image", is_docker_vm)
def osworld_image(config: StudyConfig, machine: Machine) -> Finding:
    """The image has no tag and no recipe; which one it was decides results."""
    image = machine.docker_image(IMAGE)
    if image is None:
        return fail(
            f"the daemon has no {IMAGE}",
            f"docker pull {IMAGE}, or give ours that name: docker tag {config.desktop.container.image} "
            f"{IMAGE}",
        )
    digests = [str(image.get("Id", "")), *(str(n).partition("@")[2] for n in image.get("RepoDigests") or [])]
    pinned = config.desktop.osworld.image_digest
    if pinned is None:
        return warn(f"{digests[-1][:19]}, not pinned", f"set desktop.osworld.image_digest: {digests[-1]}")
    if pinned not in digests:
        return fail(f"{digests[-1][:19]}, but {pinned[:19]} is pinned", "pull that one, or correct the key")
    return ok(f"{pinned[:19]}, as pinned")


@check("the virtual machine's file", is_osworld)
def osworld_vm(config: StudyConfig, machine: Machine) -> Finding:
    """A download of 10 GB that broke off makes a machine that never becomes ready."""
    vm = config.desktop.osworld.vm
    if vm is None:
        if config.desktop.osworld.hypervisor == "vmware":
            return fail("desktop.osworld.vm is not set", "name the .vmx file")
        return ok("none: the image holds the desktop itself")
    size = machine.size(vm)
    if size is None:
        return fail(f"{vm} is missing", "fetch it and correct desktop.osworld.vm")
    if vm.suffix == ".qcow2" and size < 5 * GIB:
        return fail(
            f"{vm} has {size / GIB:.1f} GiB: broken off", "fetch it again; OSWorld's has more than 10"
        )
    if config.desktop.osworld.vm_sha256 is None:
        return warn(
            f"{vm}, {size / GIB:.1f} GiB, not pinned", "set desktop.osworld.vm_sha256: sha256sum FILE"
        )
    return ok(f"{vm}, {size / GIB:.1f} GiB, pinned")


@check("VMware", lambda config: is_osworld(config) and config.desktop.osworld.hypervisor == "vmware")
def vmware(config: StudyConfig, machine: Machine) -> Finding:
    """desktop-env calls ``vmrun``."""
    if machine.which("vmrun") is None:
        return fail("no vmrun on PATH", "install VMware Workstation or Fusion and add its folder to PATH")
    if config.desktop.count > 1:
        return fail(f"desktop.count is {config.desktop.count} for one machine", "set desktop.count: 1")
    return ok(str(machine.which("vmrun")))


@check("time to boot", is_osworld)
def start_time(config: StudyConfig, machine: Machine) -> Finding:
    """desktop-env waits 300 s for a virtual machine; less on our side ends good starts."""
    have = config.desktop.start_timeout_s
    if config.desktop.osworld.vm is not None and have < READY_S + 30:
        return warn(
            f"desktop.start_timeout_s is {have}", f"set {READY_S + 30}: a virtual machine boots for minutes"
        )
    return ok(f"desktop.start_timeout_s is {have}")


@check("downloads of task files", lambda config: config.desktop.provider in ("container", "osworld"))
def download_cache(config: StudyConfig, machine: Machine) -> Finding:
    """A download that broke off stays in a cache and is used again; empty files are its sign."""
    from arpo_replica.suites.osworld.downloads import default_cache

    folder = default_cache()
    place = folder if machine.exists(folder) else folder.parent
    files = [path for path in machine.files(folder, "**/*") if path.is_file()]
    empty = [path for path in files if machine.size(path) == 0]
    if empty:
        return warn(f"{len(empty)} empty files in the cache, e.g. {empty[0].name}", f"remove them: {folder}")
    if machine.exists(place) and not machine.may(place, os.W_OK):
        return fail(f"{place} cannot be written", "export ARPO_CACHE=FOLDER")
    return ok(f"{len(files)} files kept")
