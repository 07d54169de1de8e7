"""The Docker daemon and its images, for the providers ``container`` and ``osworld``."""

from __future__ import annotations

from typing import Any

from arpo_replica.config.desktop import BUILT_IMAGE
from arpo_replica.config.models import StudyConfig
from arpo_replica.doctor.machine import Machine
from arpo_replica.doctor.registry import Finding, check, fail, ok, warn

GIB = 2**30


def is_container(config: StudyConfig) -> bool:
    """True for desktops in containers of our image."""
    return config.desktop.provider == "container"


def needs_docker(config: StudyConfig) -> bool:
    """True for desktops that a Docker daemon runs."""
    desktop = config.desktop
    vmware = desktop.provider == "osworld" and desktop.osworld.hypervisor == "vmware"
    bubblewrap = desktop.provider == "container" and desktop.container.engine == "bwrap"
    return desktop.provider in ("container", "osworld") and not vmware and not bubblewrap


def _info(machine: Machine) -> dict[str, Any]:
    return dict(machine.docker().info or {})


@check("a Docker daemon that answers", needs_docker)
def docker_daemon(config: StudyConfig, machine: Machine) -> Finding:
    """Not installed, not started and not permitted look alike in most messages."""
    docker = machine.docker()
    place = machine.env.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if docker.info is not None:
        return ok(f"Docker {docker.info.get('ServerVersion', '?')} at {place}")
    problem = docker.problem
    if is_container(config) and config.desktop.container.engine == "auto":
        return ok(f"none answers at {place}: bubblewrap runs the desktops")
    if "package 'docker'" in problem:
        return fail(problem, "python3 envs/prepare.py controller")
    if "Permission denied" in problem or "PermissionError" in problem:
        return fail(f"{place} refuses this user", "usermod -aG docker $USER and log in again (equals root)")
    if machine.which("dockerd") is None and not machine.env.get("DOCKER_HOST"):
        return fail(
            f"no Docker here ({problem})",
            "apt-get install docker.io, or desktop.container.engine: bwrap, which needs none",
        )
    return fail(
        f"no daemon answers at {place} ({problem})",
        "systemctl start docker, or envs/desktop/dockerd.sh start FOLDER and export DOCKER_HOST as it says",
    )


@check("the daemon's storage", needs_docker)
def docker_storage(config: StudyConfig, machine: Machine) -> Finding:
    """Without copy-on-write each desktop copies gigabytes; a full disk fails in odd places."""
    info = _info(machine)
    if not info:
        return warn("unknown, no daemon answers", "see docker_daemon")
    driver, root = str(info.get("Driver", "?")), str(info.get("DockerRootDir", ""))
    if driver == "vfs":
        return fail(
            "driver vfs copies the whole image for each desktop", "start it with --storage-driver overlay2"
        )
    free = machine.free(root) if root else None
    if free is not None and free[0] < 8 * GIB:
        return warn(
            f"{driver}, {free[0] / GIB:.1f} GiB free at {root}", "docker system prune, or a larger disk"
        )
    return ok(driver if free is None else f"{driver}, {free[0] / GIB:.0f} GiB free")


@check("limits on containers work", needs_docker)
def docker_limits(config: StudyConfig, machine: Machine) -> Finding:
    """Without them one runaway browser takes the machine down."""
    info = _info(machine)
    if not info:
        return warn("unknown, no daemon answers", "see docker_daemon")
    names = {"MemoryLimit": "memory", "CpuCfsQuota": "CPU", "PidsLimit": "processes"}
    missing = [word for key, word in names.items() if not info.get(key)]
    if missing:
        return warn(f"the kernel cannot limit {', '.join(missing)}", "enable the cgroup controllers of these")
    return ok(f"memory, CPU, processes (cgroup {info.get('CgroupVersion', '1')})")


@check("our desktop image", lambda config: is_container(config) and needs_docker(config))
def desktop_image(config: StudyConfig, machine: Machine) -> Finding:
    """Built here; nothing is published."""
    name = config.desktop.container.image
    image = machine.docker_image(name)
    if image is None:
        if name == BUILT_IMAGE:
            return warn(
                f"the daemon has no {name} yet", "snakemake build_desktop_image; a study builds it too"
            )
        return fail(f"the daemon has no {name}", "build or load it, or drop desktop.container.image")
    size = int(image.get("Size") or 0) / GIB
    return ok(f"{name}, {str(image.get('Id', ''))[7:19]}, {size:.1f} GiB")


@check("no desktops of a killed study", needs_docker)
def leftovers(config: StudyConfig, machine: Machine) -> Finding:
    """They hold memory and ports. Ours are labelled and reaped at the next start; no others are touched."""
    from arpo_replica.providers.docker_engine import OWNER, abandoned

    left = [labels for labels in machine.docker_containers(OWNER) if abandoned(labels.get(OWNER, ""))]
    if left:
        return warn(f"{len(left)} containers whose study has ended", "the next study removes them")
    return ok("none")
