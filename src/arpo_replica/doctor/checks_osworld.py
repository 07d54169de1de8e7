"""Docker, for the providers ``container`` and ``osworld``, and OSWorld's own virtual machine."""

from __future__ import annotations

import os

from arpo_replica.config.models import StudyConfig
from arpo_replica.doctor.examine import Finding, check, fail, ok, warn
from arpo_replica.doctor.machine import Machine

GIB = 2**30
READY_S = 300
SOCKET = "unix:///var/run/docker.sock"
LOCK = "/tmp/docker_port_allocation.lck"  # noqa: S108  # desktop-env's, fixed there


def is_osworld(config: StudyConfig) -> bool:
    """True for desktops of desktop-env."""
    return config.desktop.provider == "osworld"


def needs_docker(config: StudyConfig) -> bool:
    """True for desktops that a Docker daemon runs."""
    desktop = config.desktop
    if desktop.provider == "container":
        return desktop.container.engine != "bwrap"
    return is_osworld(config) and desktop.osworld.hypervisor == "docker"


def is_docker_vm(config: StudyConfig) -> bool:
    """True for OSWorld's virtual machine in a container."""
    return is_osworld(config) and needs_docker(config)


def _without_daemon(config: StudyConfig, machine: Machine, problem: str) -> Finding:
    """What no answer means: not installed, not started and not permitted look alike in most messages."""
    place = machine.env.get("DOCKER_HOST") or SOCKET
    if config.desktop.provider == "container" and config.desktop.container.engine == "auto":
        return ok(f"none answers at {place}: bubblewrap runs the desktops")
    if "package 'docker'" in problem:
        return fail(problem, "python3 envs/prepare.py controller")
    if "Permission denied" in problem or "PermissionError" in problem:
        return fail(f"{place} refuses this user", "usermod -aG docker $USER and log in again (equals root)")
    if machine.which("dockerd") is None and not machine.env.get("DOCKER_HOST"):
        fix = "apt-get install docker.io, or desktop.container.engine: bwrap, which needs none"
        return fail(f"no Docker here ({problem})", fix)
    return fail(
        f"no daemon answers at {place} ({problem})",
        "systemctl start docker, or envs/desktop/dockerd.sh start FOLDER and export DOCKER_HOST as it says",
    )


@check("a Docker daemon that answers, copies on write and can limit", needs_docker)
def docker_daemon(config: StudyConfig, machine: Machine) -> Finding:
    """Without copy-on-write each desktop copies gigabytes; without limits one runaway browser takes the
    machine down; a full disk fails in odd places."""
    docker = machine.docker()
    info = docker.info
    if info is None:
        return _without_daemon(config, machine, docker.problem)
    driver, root = str(info.get("Driver", "?")), str(info.get("DockerRootDir", ""))
    if driver == "vfs":
        fix = "start it with --storage-driver overlay2"
        return fail("its driver vfs copies the whole image for each desktop", fix)
    names = {"MemoryLimit": "memory", "CpuCfsQuota": "CPU", "PidsLimit": "processes"}
    if missing := [word for key, word in names.items() if not info.get(key)]:
        fix = "enable the cgroup controllers of these"
        return warn(f"the kernel cannot limit {', '.join(missing)}", fix)
    free = machine.free(root) if root else None
    room = "" if free is None else f", {free[0] / GIB:.1f} GiB free at {root}"
    words = f"Docker {info.get('ServerVersion', '?')}, {driver}{room}"
    if free is not None and free[0] < 8 * GIB:
        return warn(words, "docker system prune, or a larger disk")
    return ok(words)


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


@check("OSWorld's image and machine, pinned, and time to boot", is_osworld)
def osworld_pins(config: StudyConfig, machine: Machine) -> Finding:
    """The image has no tag and no recipe: which one it was decides results. A download of 10 GB that broke
    off makes a machine that never becomes ready, and desktop-env waits 300 s for a whole one."""
    osworld, vm = config.desktop.osworld, config.desktop.osworld.vm
    size = None if vm is None else machine.size(vm)
    if vm is not None and vm.suffix == ".qcow2" and size is not None and size < 5 * GIB:
        return fail(
            f"{vm} has {size / GIB:.1f} GiB: broken off", "fetch it again; OSWorld's has more than 10"
        )
    if vm is not None and config.desktop.start_timeout_s < READY_S + 30:
        fix = f"set {READY_S + 30}: a virtual machine boots for minutes"
        return warn(f"desktop.start_timeout_s is {config.desktop.start_timeout_s}", fix)
    if osworld.hypervisor == "docker" and osworld.image_digest is None:
        fix = "set desktop.osworld.image_digest: docker image inspect happysixd/osworld-docker:latest"
        return warn("the image is not pinned", fix)
    if vm is not None and osworld.vm_sha256 is None:
        return warn(f"{vm} is not pinned", "set desktop.osworld.vm_sha256: sha256sum FILE")
    return ok("pinned" if vm is not None else "pinned; the image holds the desktop itself")


@check("desktop-env's lock on ports", is_docker_vm)
def port_lock(config: StudyConfig, machine: Machine) -> Finding:
    """It is one file for all users of a machine, and belongs to the first."""
    if machine.exists(LOCK) and not machine.may(LOCK, os.W_OK):
        return fail(f"{LOCK} belongs to another user", f"remove {LOCK} when no other study runs")
    return ok(f"{LOCK} is free")
