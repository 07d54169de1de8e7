"""What provider ``osworld`` needs of this machine: image, virtual machine, hypervisor; and its clean-up."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import requests
from docker.errors import DockerException, ImageNotFound

from arpo_replica.base.environments import python_of
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.base.files import remembered_sha256
from arpo_replica.config.desktop import OSWorldConfig
from arpo_replica.providers.docker_engine import DockerEngine, abandoned, owner
from arpo_replica.suites.osworld.downloads import default_cache
from arpo_replica.suites.osworld.inventory import read_version

IMAGE = "happysixd/osworld-docker:latest"
"""What desktop-env's DockerProvider runs; the name is fixed there."""
VARIABLE = "ARPO_DESKTOP"
"""As ``osworld.upstream.MARK``."""
STOP_S = 30
"""Longest time that stopping VMware's machine may take."""


def new_mark() -> str:
    """What the containers of one desktop carry: desktop-env gives them neither name nor label."""
    return f"{owner()}#{secrets.token_hex(8)}"


def check(config: OSWorldConfig, count: int = 1) -> None:
    """Raises ``UserError`` for the first thing that is missing or is not what the config pins.

    ``count``: desktops that are to run at once.
    """
    python_of("evaluator")
    if config.hypervisor == "vmware":
        _check_vmware(config, count)
    else:
        _check_image(config)
    _check_machine(config)


class OSWorldEngine(DockerEngine):
    """The Docker daemon, as far as desktop-env's containers need it."""

    def image_facts(self) -> dict[str, Any]:
        """``{digests, labels}`` of the local image; its id is the first digest. Raises ``UserError``."""
        try:
            image = self._client.images.get(IMAGE)
        except ImageNotFound:
            raise UserError(
                f"The Docker daemon has no image {IMAGE}; pull it, or give our image that name: "
                f"docker tag arpo-desktop:latest {IMAGE}."
            ) from None
        digests = [name.partition("@")[2] for name in image.attrs.get("RepoDigests") or []]
        return {"digests": [image.id, *digests], "labels": image.labels}

    def marked(self) -> dict[str, str]:
        """Id -> mark of desktop-env's containers that we started. Raises ``DesktopError``."""
        found = {}
        try:
            for container in self._client.containers.list(
                all=True, filters={"ancestor": IMAGE}, ignore_removed=True
            ):
                variables = dict(line.partition("=")[::2] for line in container.attrs["Config"]["Env"] or [])
                if VARIABLE in variables:
                    found[container.id] = variables[VARIABLE]
        except (DockerException, requests.RequestException) as error:
            raise DesktopError(f"the Docker daemon does not answer: {str(error)[:200]}") from error
        return found


def _check_vmware(config: OSWorldConfig, count: int = 1) -> None:
    if shutil.which("vmrun") is None:
        raise UserError(
            "desktop.osworld.hypervisor is 'vmware', but there is no 'vmrun' on PATH; add VMware's."
        )
    if config.vm is None:
        raise UserError("desktop.osworld.vm must name the virtual machine's .vmx file.")
    if count > 1:
        raise UserError(
            f"desktop.count is {count}, but desktop.osworld.vm names one virtual machine, which each desktop "
            "would revert under the others; set desktop.count to 1."
        )


def stop_machine(config: OSWorldConfig) -> None:
    """Power VMware's virtual machine off, whoever started it; one that does not run is fine. Never raises."""
    host = "fusion" if sys.platform == "darwin" else "ws"
    command = ["vmrun", "-T", host, "stop", str(machine_file(config)), "hard"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=STOP_S, check=False)


def _check_image(config: OSWorldConfig) -> None:
    digests = OSWorldEngine().image_facts()["digests"]
    wanted = config.image_digest
    if wanted is not None and wanted not in digests:
        raise UserError(
            f"The local image {IMAGE} has the digest {digests[-1]}, but desktop.osworld.image_digest is "
            f"{wanted}; pull that one or correct the key."
        )


def _check_machine(config: OSWorldConfig) -> None:
    if config.vm is None:
        return
    if not config.vm.is_file():
        raise UserError(f"desktop.osworld.vm names {config.vm}, which does not exist; correct the path.")
    if config.vm_sha256 is not None and (found := remembered_sha256(config.vm)) != config.vm_sha256:
        raise UserError(
            f"{config.vm} has the sha256 {found}, but desktop.osworld.vm_sha256 is {config.vm_sha256}; "
            "fetch the file again or correct the key."
        )


def machine_file(config: OSWorldConfig) -> Path:
    """The machine's file; an empty one for an image that holds its desktop itself.

    Given none, desktop-env would download 10 GB.
    """
    if config.vm is not None:
        return config.vm.resolve()
    empty = default_cache() / "no-machine.qcow2"
    empty.parent.mkdir(parents=True, exist_ok=True)
    empty.touch()
    return empty


def remove_containers(mark: str) -> None:
    """Kill and remove every container of a desktop. Raises ``DesktopError``."""
    engine = OSWorldEngine()
    for container, found in engine.marked().items():
        if found == mark:
            engine.remove(container)


def reap() -> list[str]:
    """Remove the containers of processes that have been killed; their ids. Raises ``DesktopError``."""
    engine = OSWorldEngine()
    gone = [one for one, mark in engine.marked().items() if abandoned(mark.partition("#")[0])]
    for container in gone:
        engine.remove(container)
    return gone


def describe(config: OSWorldConfig) -> dict[str, Any]:
    """Facts for provenance."""
    facts: dict[str, Any] = {
        "hypervisor": config.hypervisor,
        "desktop_env": read_version(),
        "vm": None if config.vm is None else config.vm.name,
        "vm_sha256": config.vm_sha256,
    }
    if config.hypervisor == "docker":
        engine = OSWorldEngine()
        image = engine.image_facts()
        facts |= {"image": image["digests"][0], "image_digests": image["digests"][1:]}
        facts["docker"] = engine.version()
        if config.vm is None or "arpo.inputs" in image["labels"]:
            facts["mark"] = "OSWorld-compatible, container desktop"
    return facts
