"""Provider ``osworld``: desktops of desktop-env's own, unmodified providers (Docker, VMware).

desktop-env starts, reverts, sets up and evaluates them in a worker (``suites.osworld``); we see and act
through the guest's HTTP API, each action at most once. What this machine must have (image, virtual machine,
hypervisor) and how leftovers are removed stands below the provider.
"""

import asyncio
import contextlib
import logging
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import requests
from docker.errors import DockerException

from arpo_replica.actions.pyautogui_source import source_of
from arpo_replica.actions.types import Action, Fail
from arpo_replica.base.environments import python_of
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.base.files import remembered_sha256
from arpo_replica.config.desktop import DesktopConfig, OSWorldConfig
from arpo_replica.desktop.client import KEY_S, GuestClient
from arpo_replica.desktop.interface import DesktopAddress
from arpo_replica.providers.container import opens_window
from arpo_replica.providers.docker_engine import DockerEngine, abandoned, owner
from arpo_replica.suites.evaluate import seconds_to_settle, uses_osworld
from arpo_replica.suites.osworld.client import OSWorldWorker, default_cache
from arpo_replica.suites.osworld.inventory import read_version
from arpo_replica.tasks.model import Task

logger = logging.getLogger(__name__)

LOOK_S = 0.1
CALM_S = 1.0
SET_UP_S = 8.0
WINDOW_S = 30.0
"""Longest wait for a task's first window; OSWorld's runner sleeps 60 s whatever the task."""
CLOSE_S = 30.0
IMAGE = "happysixd/osworld-docker:latest"
"""What desktop-env's DockerProvider runs; the name is fixed there."""
VARIABLE = "ARPO_DESKTOP"
"""As ``osworld.upstream.MARK``."""
STOP_S = 30
"""Longest time that stopping VMware's machine may take."""


class OSWorldDesktop:
    """One desktop; see ``arpo_replica.desktop.interface.Desktop``."""

    def __init__(
        self, name: str, config: DesktopConfig, keeper: OSWorldWorker, worker: OSWorldWorker
    ) -> None:
        """``keeper`` runs desktop-env's provider, ``worker`` its set-up steps and evaluators."""
        self.name = name
        self.screen: tuple[int, int] = config.screen
        self.ran_on = {"engine": config.osworld.hypervisor}
        self.keeper = keeper
        self.worker = worker
        self.mark = f"{owner()}#{secrets.token_hex(8)}" if config.osworld.hypervisor == "docker" else ""
        """What its containers carry (``desktop_env.MARK``): desktop-env gives them neither name nor label.
        Made of /proc, which a Mac does not have."""
        self._config = config
        self._there: tuple[GuestClient, DesktopAddress] | None = None
        self._seen: bytes | None = None
        self._done: set[str] = set()
        self._acted: float | None = None
        self._fresh = True
        self._started = False

    async def start(self) -> None:
        """Start the virtual machine or container. Raises ``DesktopError``."""
        own = self._config.osworld
        await self._move(
            await self.keeper.start_desktop(
                float(self._config.start_timeout_s),
                hypervisor=own.hypervisor,
                vm=str(machine_file(own)),
                snapshot=own.snapshot,
                mark=self.mark,
                screen=list(self.screen),
                password=own.password,
            )
        )
        self._started = True

    async def _move(self, address: DesktopAddress) -> None:
        """The desktop listens there now: a reset gives it other ports."""
        if self._there is not None:
            await self.guest.close()
        url = f"http://{address.host}:{address.server}"
        guest = GuestClient(aiohttp.TCPConnector, self.screen, self._config.act_timeout_s, url)
        self._there = guest, address

    def _reached(self) -> tuple[GuestClient, DesktopAddress]:
        if self._there is None:
            raise DesktopError(f"desktop {self.name} is closed")
        return self._there

    @property
    def guest(self) -> GuestClient:
        """Client of its guest server. Raises ``DesktopError`` if it is closed."""
        return self._reached()[0]

    @property
    def address(self) -> DesktopAddress:
        """Where it listens. Raises ``DesktopError`` if it is closed."""
        return self._reached()[1]

    async def reset(self, task: Task) -> None:
        """Always the hard way: ``DesktopEnv.reset`` reverts the machine."""
        if not uses_osworld(task):
            raise UserError(
                f"Task {task.domain}/{task.id} is no task of OSWorld: desktop.provider 'osworld' cannot "
                "run it; use 'container' or 'process'."
            )
        self._seen = None
        self._done.clear()
        self._acted = None
        fresh, self._fresh = self._fresh, False
        await self._move(await self.keeper.reset_desktop(fresh, float(self._config.start_timeout_s)))
        await self._check_screen()
        password = self._config.osworld.password
        clean = await self.guest.screenshot()
        for warning in await self.worker.set_up(task, self.address, self.screen, password):
            logger.info("desktop %s, task %s: %s", self.name, task.id, warning)
        self._seen = await self._set_up(clean, opens_window(task))

    async def _check_screen(self) -> None:
        """The guest decides on its screen, not ``desktop.screen``: coordinates would be wrong."""
        size = await self.guest.screen_size()
        if size != self.screen:
            raise UserError(
                f"The desktop's screen is {size[0]} x {size[1]}; "
                f"set desktop.screen to [{size[0]}, {size[1]}]."
            )

    async def screenshot(self) -> bytes:
        seen, self._seen = self._seen, None
        return await self.guest.screenshot() if seen is None else seen

    async def act(self, action: Action, action_id: str) -> None:
        """The command goes out once: without an answer the desktop counts as broken."""
        if action_id in self._done:
            return
        self._done.add(action_id)
        self._seen = None
        before = await self.guest.screenshot()
        source = source_of(action)
        if source is None:
            await asyncio.sleep(self._config.wait_seconds)
        else:
            limit = self._config.act_timeout_s + KEY_S * len(source)
            answer = await self.guest.execute_source(source, limit)
            if answer.get("returncode") != 0:
                raise DesktopError(f"{action.kind} failed in the desktop: {str(answer.get('error'))[-300:]}")
            await asyncio.sleep(self._config.pause_seconds)
        self._seen = await self._at_rest(before)
        self._acted = time.monotonic()

    async def _set_up(self, clean: bytes, opens: bool) -> bytes:
        """The screen when the task's programs have opened, in place of the 60 s that OSWorld's runner sleeps.

        Its guest says nothing of windows, so the screen has to tell: it is no longer the ``clean`` one and
        has not changed for ``CALM_S``. If the task ``opens`` no window there may be nothing to wait for. A
        video, or a clock with seconds, never rests: at most ``SET_UP_S`` from the first change on.
        """
        began = changed = time.monotonic()
        last = await self.guest.screenshot()
        opened = began if last != clean else None
        patience = WINDOW_S if opens else self._config.osworld.settle_ms / 1000
        while True:
            now = time.monotonic()
            if opened is None and now - began > patience:
                return last
            if opened is not None and (now - changed > CALM_S or now - opened > SET_UP_S):
                return last
            await asyncio.sleep(LOOK_S)
            seen = await self.guest.screenshot()
            if seen != last:
                last, changed = seen, time.monotonic()
                opened = opened or changed

    async def _at_rest(self, before: bytes) -> bytes:
        """The screen when it has changed and stays as it is, or as it is when the time is up."""
        longest = self._config.osworld.settle_ms / 1000 - self._config.pause_seconds
        deadline = time.monotonic() + longest
        last = await self.guest.screenshot()
        while time.monotonic() < deadline:
            await asyncio.sleep(LOOK_S)
            now = await self.guest.screenshot()
            if now == last and now != before:
                break
            last = now
        return last

    async def evaluate(self, task: Task, last_action: Action | None) -> float:
        failed, password = isinstance(last_action, Fail), self._config.osworld.password
        if not failed:
            await asyncio.sleep(seconds_to_settle(task, self._acted))
        return await self.worker.evaluate(task, self.address, self.screen, failed, password)

    async def close(self) -> None:
        there, self._there = self._there, None
        if there is not None:
            await there[0].close()
        if self._config.osworld.hypervisor == "vmware":
            await self._stop_machine()
        await self.worker.close()
        await self.keeper.close()
        if self._config.osworld.hypervisor == "docker":
            # Not by desktop-env: it waits 10 s for the container to stop and forgets those that do not.
            try:
                await asyncio.to_thread(remove_containers, self.mark)
            except (DesktopError, UserError) as error:
                logger.warning("closing desktop %s: %s", self.name, error)

    async def _stop_machine(self) -> None:
        """Stop the virtual machine as desktop-env does, or by ourselves if its start or its worker failed."""
        stopped = False
        if self._started:
            with contextlib.suppress(DesktopError):
                await self.keeper.stop_desktop(CLOSE_S)
                stopped = True
        if not stopped:
            await asyncio.to_thread(stop_machine, self._config.osworld)


class OSWorldProvider:
    """Makes desktops; see ``arpo_replica.desktop.interface.DesktopProvider``."""

    def __init__(self, config: DesktopConfig) -> None:
        self._config = config
        self._reaped: asyncio.Task[list[str]] | None = None

    def check(self) -> None:
        """Raises ``UserError`` for the first thing that is missing or is not what the config pins."""
        own = self._config.osworld
        python_of("evaluator")
        if own.hypervisor == "vmware":
            _check_vmware(own, self._config.count)
        else:
            _check_image(own)
        if own.vm is not None:
            _check_machine(own.vm, own.vm_sha256)

    async def start(self, name: str) -> OSWorldDesktop:
        """Several may start at once: desktop-env's lock on ports lets them in one by one.
        The first one removes what killed processes have left."""
        if self._config.osworld.hypervisor == "docker":
            if self._reaped is None:
                self._reaped = asyncio.create_task(asyncio.to_thread(reap))
            for leftover in await asyncio.shield(self._reaped):
                logger.info("removed the container %s of a process that was killed", leftover[:12])
        starting = [
            asyncio.create_task(OSWorldWorker.start(f"{name}'s provider", confine=False)),
            asyncio.create_task(OSWorldWorker.start(name)),
        ]
        try:
            keeper, worker = await asyncio.gather(*starting)
        except BaseException:
            await asyncio.shield(_close_all(starting))
            raise
        desktop = OSWorldDesktop(name, self._config, keeper, worker)
        try:
            await desktop.start()
        except BaseException:
            await asyncio.shield(desktop.close())
            raise
        about = await asyncio.to_thread(self.describe)
        desktop.ran_on["image"] = about["vm_sha256"] or about.get("image", "").rpartition(":")[2]
        return desktop

    def describe(self) -> dict[str, Any]:
        own = self._config.osworld
        facts: dict[str, Any] = {
            "provider": self._config.provider,
            "screen": list(self._config.screen),
            "hypervisor": own.hypervisor,
            "desktop_env": read_version(),
            "vm": None if own.vm is None else own.vm.name,
            "vm_sha256": own.vm_sha256,
        }
        if own.hypervisor == "docker":
            engine = OSWorldEngine()
            image = engine.image(IMAGE)
            facts |= {"image": image["id"], "image_digests": image["digests"]}
            facts["docker"] = engine.version()
            if own.vm is None or "arpo.inputs" in image["labels"]:
                facts["mark"] = "OSWorld-compatible, container desktop"
        return facts


async def _close_all(starting: list[asyncio.Task[OSWorldWorker]]) -> None:
    """Close the workers that have started in spite of it all."""
    for one in await asyncio.gather(*starting, return_exceptions=True):
        if isinstance(one, OSWorldWorker):
            await one.close()


# -- what this machine must have, and its clean-up -------------------------------------------------


class OSWorldEngine(DockerEngine):
    """The Docker daemon, as far as desktop-env's containers need it."""

    def no_image(self, name: str) -> UserError:
        return UserError(
            f"The Docker daemon has no image {name}; pull it, or give our image that name: "
            f"docker tag arpo-desktop:latest {name}."
        )

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


def _check_vmware(config: OSWorldConfig, count: int) -> None:
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
    image = OSWorldEngine().image(IMAGE)
    digests = [image["id"], *image["digests"]]
    wanted = config.image_digest
    if wanted is not None and wanted not in digests:
        raise UserError(
            f"The local image {IMAGE} has the digest {digests[-1]}, but desktop.osworld.image_digest is "
            f"{wanted}; pull that one or correct the key."
        )


def _check_machine(vm: Path, sha256: str | None) -> None:
    if not vm.is_file():
        raise UserError(f"desktop.osworld.vm names {vm}, which does not exist; correct the path.")
    if sha256 is not None and (found := remembered_sha256(vm)) != sha256:
        raise UserError(
            f"{vm} has the sha256 {found}, but desktop.osworld.vm_sha256 is {sha256}; "
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
