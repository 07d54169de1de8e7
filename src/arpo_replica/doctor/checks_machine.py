"""The machine itself, whatever the config."""

from __future__ import annotations

import os

from arpo_replica.doctor.machine import Machine
from arpo_replica.doctor.registry import Finding, check_machine, fail, ok, warn

SOCKET_PATH = 107
"""Longest path of a Unix socket, in bytes (sun_path of Linux, less the final zero)."""
OUR_TAIL = 60
"""What the longest of our socket paths adds to the scratch folder."""
GIB = 2**30


@check_machine("Linux on x86-64")
def system(machine: Machine) -> Finding:
    """Desktops need Linux; the locked packages and images are for x86-64."""
    name, architecture, _ = machine.system()
    found = f"{name} {architecture}"
    if name != "Linux":
        return fail(
            found,
            "run the study on Linux; a Mac or Windows machine can lend VMware desktops (docs/remote.md)",
        )
    if architecture not in ("x86_64", "AMD64"):
        return warn(found, "no locked environment was tried on it; an x86-64 machine is the tried way")
    return ok(found)


@check_machine("Python 3.11 or 3.12")
def python_version(machine: Machine) -> Finding:
    """What the locks were made for."""
    version = machine.system()[2]
    if version.split(".")[:2] in (["3", "11"], ["3", "12"]):
        return ok(version)
    return fail(version, "make setup PYTHON=python3.11 (Debian: apt-get install python3.11-venv)")


@check_machine("a usable scratch folder")
def temp_folder(machine: Machine) -> Finding:
    """Ray and vLLM put Unix sockets there, whose paths have a limit."""
    folder = machine.temp_folder()
    if not machine.may(folder, os.W_OK | os.X_OK):
        return fail(f"{folder} cannot be written", "export TMPDIR=/tmp")
    if len(os.fsencode(folder)) + OUR_TAIL > SOCKET_PATH:
        return fail(f"{folder} is too long for Unix sockets", "export TMPDIR=/tmp (a short path)")
    free = machine.free(folder)
    if free is not None and free[0] < GIB:
        return warn(f"{folder}: {free[0] / GIB:.1f} GiB free", "make room, or name another disk by TMPDIR")
    return ok(folder if free is None else f"{folder}: {free[0] / GIB:.0f} GiB free")


@check_machine("proxies leave localhost alone")
def proxies(machine: Machine) -> Finding:
    """desktop-env and playwright follow the proxy variables: the browser's port then answers 400."""
    names = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
    used = next((name for name in names if machine.env.get(name)), None)
    if used is None:
        return ok("no proxy set")
    spared = machine.env.get("no_proxy") or machine.env.get("NO_PROXY") or ""
    parts = {part.strip() for part in spared.split(",")}
    if "*" in parts or {"127.0.0.1", "localhost"} <= parts:
        return ok(f"{used} is set, localhost is left out")
    return fail(f"{used} is set, also for localhost", "export no_proxy=localhost,127.0.0.1")


@check_machine("git")
def git(machine: Machine) -> Finding:
    """Provenance names the commit; task files come from a repository."""
    answer = machine.run("git", "-C", str(machine.root), "rev-parse", "--short", "HEAD")
    if machine.which("git") is None:
        return warn("no git: results will not name their commit", "apt-get install git")
    if answer.status != 0:
        return warn(
            f"no checkout ({answer.words})", "clone the repository, so that results name their commit"
        )
    return ok(f"commit {answer.out.strip()}")
