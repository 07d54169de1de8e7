"""Desktops of the providers ``process`` and ``remote``, and the provider's own check for all."""

from __future__ import annotations

import os

from arpo_replica.base.errors import UserError
from arpo_replica.config.models import StudyConfig
from arpo_replica.desktop import sandbox
from arpo_replica.doctor.machine import Machine
from arpo_replica.doctor.registry import Finding, check, fail, ok, warn
from arpo_replica.providers.process import MODULES, PROGRAMS


def is_process(config: StudyConfig) -> bool:
    """True for desktops as processes."""
    return config.desktop.provider == "process"


def is_namespaced(config: StudyConfig) -> bool:
    """True for desktops as processes in namespaces."""
    return is_process(config) and config.desktop.isolation == "namespace"


@check("programs of a desktop", is_process)
def desktop_programs(config: StudyConfig, machine: Machine) -> Finding:
    """X server, window manager, browser, Python modules of Debian."""
    wanted = dict(PROGRAMS)
    if config.desktop.isolation == "namespace":
        wanted["bwrap"] = "bubblewrap"
    missing = [package for program, package in wanted.items() if machine.which(program) is None]
    for module, package in MODULES.items():
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
        if "python3" not in missing and machine.run(sandbox.PYTHON, "-c", code).status != 0:
            missing.append(package)
    if missing:
        return fail(f"missing: {', '.join(missing)}", f"apt-get install {' '.join(missing)}")
    return ok(", ".join(wanted.values()))


@check("a browser that starts", is_process)
def chromium(config: StudyConfig, machine: Machine) -> Finding:
    """The real program: Ubuntu's package is a wrapper around a snap, which cannot run in a sandbox."""
    program = str(sandbox.CHROMIUM)
    if machine.which(program) is None:
        return fail(f"{program} is missing", "apt-get install chromium (Debian's; Ubuntu's is a snap)")
    answer = machine.run(program, "--version")
    if answer.status != 0 or "Chromium" not in answer.out:
        return fail(f"it does not start: {answer.words}", "apt-get install --reinstall chromium")
    return ok(answer.out.strip())


@check("user namespaces", is_namespaced)
def user_namespaces(config: StudyConfig, machine: Machine) -> Finding:
    """bubblewrap needs them; containers and Ubuntu's AppArmor often forbid them."""
    test = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc"]
    test += ["--size", "1048576", "--tmpfs", "/tmp", "true"]  # noqa: S108 - as the sandbox does; bubblewrap >= 0.7
    answer = machine.run(*sandbox.unprivileged(0), *test)
    if answer.status == 0:
        return ok("bubblewrap makes them")
    apparmor = (machine.read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") or "").strip() == "1"
    first = "sysctl kernel.apparmor_restrict_unprivileged_userns=0" if apparmor else "allow user namespaces"
    return fail(
        f"bubblewrap makes none: {answer.words}",
        f"{first} (docker run --security-opt seccomp=unconfined), or desktop.isolation: browser",
    )


@check("the desktop service", lambda config: config.desktop.provider == "remote")
def remote_desktops(config: StudyConfig, machine: Machine) -> Finding:
    """It answers, takes the token, and lends what the config says."""
    try:
        facts = machine.check_remote(config.desktop)
    except UserError as error:
        return fail(str(error), "docs/remote.md")
    url = config.desktop.remote.url
    local = url.startswith(("https://", "http://127.", "http://localhost", "http://[::1]"))
    what = facts.get("browser") or facts.get("mark") or "nothing else said"
    words = f"{url} lends {config.desktop.remote.lends} desktops ({what})"
    if not local:
        return warn(f"{words}, unencrypted", "reach it through an SSH tunnel, unless the network is yours")
    return ok(words)


@check("the desktop provider's own check", lambda config: config.desktop.provider != "remote")
def desktop_provider(config: StudyConfig, machine: Machine) -> Finding:
    """What a study checks before it starts: anything the lines above did not name."""
    try:
        machine.check_provider(config.desktop)
    except UserError as error:
        return fail(str(error), "as the sentence says")
    return ok(f"{config.desktop.count} '{config.desktop.provider}' desktops can start")


@check("ports for remote viewers and servers are free to choose")
def ports(config: StudyConfig, machine: Machine) -> Finding:
    """Races for ports: ours are chosen by the kernel; only desktop-env counts up from fixed numbers."""
    text = machine.read("/proc/sys/net/ipv4/ip_local_port_range") or ""
    numbers = [int(part) for part in text.split() if part.isdigit()]
    if len(numbers) == 2 and numbers[1] - numbers[0] < 1_000:
        return warn(
            f"the kernel has only {numbers[1] - numbers[0]} ports", "sysctl net.ipv4.ip_local_port_range"
        )
    if config.desktop.provider != "osworld":
        return ok("chosen by the kernel, bound before they are told")
    lock = "/tmp/docker_port_allocation.lck"  # noqa: S108  # desktop-env's, fixed there
    if machine.exists(lock) and not machine.may(lock, os.W_OK):
        return fail(f"{lock} belongs to another user", f"remove {lock} when no other study runs")
    taken = [str(port) for port in (5000, 8006, 8080, 9222) if not machine.is_port_free(port)]
    if taken:
        return warn(
            f"taken: {', '.join(taken)}; desktop-env takes the next ones", "fine if you know the owner"
        )
    return ok("5000, 8006, 8080, 9222 are free")
