"""The Docker daemon, as far as desktops need it. Every call blocks: use them in threads."""

import contextlib
import functools
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any, TextIO

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import LogConfig, Mount

from arpo_replica.base.environments import find
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.config.desktop import BUILT_IMAGE, Apps
from arpo_replica.providers.desktop_image import FOLDER, ImageInputs, gather, run
from arpo_replica.providers.engine import ContainerSpec

LABEL = "arpo.desktop"
"""Every container of ours has it; its value is the name of the desktop."""
OWNER = "arpo.owner"
"""The process that a container belongs to, see ``owner``."""
NETWORK = "arpo-outside"
"""The one network by which tasks that declare it get out. Desktops on it cannot see each other."""
NAME = BUILT_IMAGE.partition(":")[0]
BASE_IMAGE = "arpo-base:bookworm"
"""Made by ``base_image.sh`` where ``debian:bookworm-slim`` cannot be had."""
PUBLIC_BASE = "debian:bookworm-slim"
CALL_S = 60
SUDO_CAPABILITIES = ("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID")


def owner(pid: int | None = None) -> str:
    """Names a process for good: machine start, process namespace, process id, its start.

    Of the present process unless ``pid`` is given. Raises OSError if there is no such process.
    """
    number = os.getpid() if pid is None else pid
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = Path("/proc/self/ns/pid").readlink().name.strip("pid:[]")
    started = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{boot}/{namespace}/{number}/{started}"


def abandoned(label: str) -> bool:
    """True if the process that an ``OWNER`` label names ran here and has ended.

    False where that cannot be known: another machine's, another process namespace's, no label of ours.
    """
    parts = label.split("/")
    if len(parts) != 4 or parts[:2] != owner().split("/")[:2] or not parts[2].isdigit():
        return False
    try:
        return owner(int(parts[2])) != label
    except OSError:
        return True


def answers() -> bool:
    """True if a daemon does."""
    try:
        DockerEngine().check()
    except UserError:
        return False
    return True


class DockerEngine:
    """A connection to the daemon that ``DOCKER_HOST`` names (or the system's)."""

    def no_image(self, name: str) -> UserError:
        """What to do if the daemon has no image of that name."""
        return UserError(
            f"The Docker daemon has no image {name}; build it (snakemake build_desktop_image) or correct "
            "desktop.container.image."
        )

    @functools.cached_property
    def _client(self) -> Any:
        place = os.environ.get("DOCKER_HOST", "/var/run/docker.sock")
        try:
            client = docker.from_env(timeout=CALL_S)
            parts = client.version().get("Components") or []
        except (DockerException, requests.RequestException) as error:
            raise UserError(
                f"No Docker daemon answers at {place} ({str(error)[:120]}); start one by "
                "envs/desktop/dockerd.sh and set DOCKER_HOST, or set desktop.provider: process."
            ) from error
        if any("Podman" in part["Name"] for part in parts):
            raise UserError(
                f"Podman answers at {place}, which refuses what desktops need of Docker's interface (memory "
                "file systems of their user): set desktop.container.engine: bwrap, which needs no daemon."
            )
        return client

    def check(self) -> None:
        """Raises ``UserError`` if no daemon answers."""
        self._client.ping()

    def build(self, apps: Apps, output: TextIO) -> dict[str, Any]:
        """See the protocol. By the ``docker`` command with the classic builder, as Debian has no other."""
        folder = find(FOLDER)
        inputs = ImageInputs(folder, apps, _base_image(folder, output))
        digest = inputs.digest()
        tag = f"{NAME}:{digest[:12]}"
        if not _has(tag):
            with tempfile.TemporaryDirectory(prefix="arpo-image-") as context:
                gather(inputs, Path(context), output)
                # --network host: what works under a daemon whose bridge leads nowhere.
                command = ["docker", "build", "--network", "host", "--tag", tag]
                command += ["--label", f"arpo.inputs={digest}"]
                for name, value in {"BASE_IMAGE": inputs.base, "APPS": inputs.apps}.items():
                    command += ["--build-arg", f"{name}={value}"]
                run([*command, context], output)
        run(["docker", "tag", tag, BUILT_IMAGE], None)
        size = int(run(["docker", "image", "inspect", "--format", "{{.Size}}", tag], None))
        return {"tag": tag, "inputs_sha256": digest, "base": inputs.base, "size_bytes": size}

    def image(self, name: str) -> dict[str, Any]:
        """``{id, labels, digests}`` of an image; the last are those by which a registry knows it.

        Raises ``UserError`` if the daemon has none of that name.
        """
        try:
            image = self._client.images.get(name)
        except ImageNotFound:
            raise self.no_image(name) from None
        digests = [known.partition("@")[2] for known in image.attrs.get("RepoDigests") or []]
        return {"id": image.id, "labels": image.labels, "digests": digests}

    def version(self) -> str:
        """Version of the daemon."""
        return str(self._client.version()["Version"])

    def describe(self) -> dict[str, Any]:
        """What records say of the engine."""
        driver = self._client.info()["Driver"]
        return {"engine": "docker", "docker": self.version(), "root": driver, "sudo": "root's own"}

    def read(self, image: str, path: str) -> bytes:
        """A file of an image."""
        container = self._client.containers.create(image, labels={LABEL: "", OWNER: owner()})
        try:
            pieces, _ = container.get_archive(path)
            with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
                file = archive.extractfile(Path(path).name)
                return b"" if file is None else file.read()
        finally:
            self.remove(container.id)

    def run(self, spec: ContainerSpec) -> None:
        """Start a container. Raises ``DesktopError``, or ``UserError`` if there is no such image."""
        mounts = [Mount("/run/arpo", str(spec.control), "bind", read_only=True)]
        mounts += [Mount(place, str(file), "bind", read_only=True) for file, place in spec.files.items()]
        memory = spec.memory_mb << 20
        try:
            if spec.network:
                self._make_network()
            self._client.containers.create(
                spec.image,
                name=spec.name,
                hostname="desktop",
                labels={LABEL: spec.label, OWNER: owner()},
                network=NETWORK if spec.network else None,
                network_mode=None if spec.network else "none",
                mounts=mounts,
                tmpfs=spec.tmpfs,
                shm_size=spec.shared_mb << 20,
                mem_limit=memory,
                memswap_limit=memory,
                nano_cpus=int(spec.cpus * 1e9),
                pids_limit=spec.processes,
                # If the machine runs out of memory, desktops go before the job that uses them.
                oom_score_adj=800,
                cap_drop=["ALL"],
                cap_add=list(SUDO_CAPABILITIES) if spec.sudo else [],
                security_opt=[] if spec.sudo else ["no-new-privileges"],
                read_only=not spec.sudo,
                auto_remove=True,
                log_config=LogConfig(type="none"),
            ).start()
        except ImageNotFound:
            raise self.no_image(spec.image) from None
        except (DockerException, requests.RequestException) as error:
            raise DesktopError(f"the container did not start: {str(error)[:300]}") from error

    def _make_network(self) -> None:
        if self._client.networks.list(names=[NETWORK]):
            return
        options = {"com.docker.network.bridge.enable_icc": "false"}
        with contextlib.suppress(APIError):  # another process makes it at this very moment
            self._client.networks.create(NETWORK, options=options, check_duplicate=True, labels={LABEL: ""})

    def running(self, name: str) -> bool:
        """True if the container runs. Raises ``DesktopError`` if the daemon does not say."""
        try:
            return bool(self._client.containers.get(name).status in ("created", "running"))
        except NotFound:
            return False
        except (DockerException, requests.RequestException) as error:
            raise DesktopError(f"the Docker daemon does not answer: {str(error)[:200]}") from error

    def remove(self, name: str) -> None:
        """Kill and remove a container; none of that name is fine. Raises ``DesktopError``."""
        try:
            self._client.api.remove_container(name, force=True, v=True)
        except NotFound:
            return
        except APIError as error:
            if error.status_code != 409:  # its own removal is on the way already
                raise DesktopError(f"container {name} cannot be removed: {error}") from error
            with contextlib.suppress(DockerException, requests.RequestException):
                self._client.api.wait(name, timeout=CALL_S, condition="removed")
        except (DockerException, requests.RequestException) as error:
            raise DesktopError(f"container {name} cannot be removed: {str(error)[:200]}") from error

    def reap(self) -> list[str]:
        """Remove what processes that have been killed left behind; no other container is touched."""
        removed = []
        for container in self._client.containers.list(
            all=True, filters={"label": OWNER}, ignore_removed=True
        ):
            if abandoned(container.labels.get(OWNER, "")):
                self.remove(container.name)
                removed.append(container.name)
        return removed


def _has(image: str) -> bool:
    command = ["docker", "image", "inspect", image]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _base_image(folder: Path, output: TextIO) -> str:
    """Debian's if the daemon has or gets it, else one made by debootstrap (as root)."""
    for known in (BASE_IMAGE, PUBLIC_BASE):
        if _has(known):
            return known
    if (
        subprocess.run(["docker", "pull", PUBLIC_BASE], stdout=output, stderr=output, check=False).returncode
        == 0
    ):
        return PUBLIC_BASE
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise UserError(
            f"The image {PUBLIC_BASE} cannot be pulled; make a base image as root "
            "(apt-get install debootstrap, then envs/desktop/base_image.sh)."
        )
    run([str(folder / "base_image.sh"), BASE_IMAGE], output)
    return BASE_IMAGE
