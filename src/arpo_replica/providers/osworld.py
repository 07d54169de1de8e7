"""Provider ``osworld``: desktops of desktop-env's own, unmodified providers (Docker, VMware).

desktop-env starts, reverts, sets up and evaluates them in a worker (``suites.osworld``); we see and act
through the guest's HTTP API, each action at most once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

import aiohttp

from arpo_replica.actions.pyautogui_source import source_of
from arpo_replica.actions.types import Action, Fail
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.desktop.address import DesktopAddress
from arpo_replica.desktop.client import KEY_S, GuestClient
from arpo_replica.providers import osworld_host
from arpo_replica.providers.container import opens_window
from arpo_replica.suites.evaluate import seconds_to_settle, uses_osworld
from arpo_replica.suites.osworld.client import OSWorldWorker
from arpo_replica.tasks.model import Task

logger = logging.getLogger(__name__)

LOOK_S = 0.1
CALM_S = 1.0
SET_UP_S = 8.0
WINDOW_S = 30.0
"""Longest wait for a task's first window; OSWorld's runner sleeps 60 s whatever the task."""
CLOSE_S = 30.0


class OSWorldDesktop:
    """One desktop; see ``arpo_replica.desktop.interface.Desktop``."""

    def __init__(
        self, name: str, config: DesktopConfig, keeper: OSWorldWorker, worker: OSWorldWorker
    ) -> None:
        """``keeper`` runs desktop-env's provider, ``worker`` its set-up steps and evaluators."""
        self.name = name
        self.screen: tuple[int, int] = config.screen
        self.keeper = keeper
        self.worker = worker
        self.mark = osworld_host.new_mark() if config.osworld.hypervisor == "docker" else ""
        """What its containers carry (``osworld.upstream.MARK``). Made of /proc, which a Mac does not have."""
        self._config = config
        self._guest: GuestClient | None = None
        self._address: DesktopAddress | None = None
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
                vm=str(osworld_host.machine_file(own)),
                snapshot=own.snapshot,
                mark=self.mark,
                screen=list(self.screen),
                password=own.password,
            )
        )
        self._started = True

    async def _move(self, address: DesktopAddress) -> None:
        """The desktop listens there now: a reset gives it other ports."""
        if self._guest is not None:
            await self._guest.close()
        self._address = address
        self._guest = GuestClient(
            aiohttp.TCPConnector,
            self.screen,
            self._config.act_timeout_s,
            f"http://{address.host}:{address.server}",
        )

    @property
    def guest(self) -> GuestClient:
        """Client of its guest server. Raises ``DesktopError`` if it is closed."""
        if self._guest is None:
            raise DesktopError(f"desktop {self.name} is closed")
        return self._guest

    @property
    def address(self) -> DesktopAddress:
        """Where it listens. Raises ``DesktopError`` if it is closed."""
        if self._address is None:
            raise DesktopError(f"desktop {self.name} is closed")
        return self._address

    async def reset(self, task: Task) -> None:
        """See the interface. Always the hard way: ``DesktopEnv.reset`` reverts the machine."""
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
        """See the interface."""
        seen, self._seen = self._seen, None
        return await self.guest.screenshot() if seen is None else seen

    async def act(self, action: Action, action_id: str) -> None:
        """See the interface. The command goes out once: without an answer the desktop counts as broken."""
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
        """See the interface."""
        failed, password = isinstance(last_action, Fail), self._config.osworld.password
        if not failed:
            await asyncio.sleep(seconds_to_settle(task, self._acted))
        return await self.worker.evaluate(task, self.address, self.screen, failed, password)

    async def close(self) -> None:
        """See the interface."""
        guest, self._guest = self._guest, None
        self._address = None
        if guest is not None:
            await guest.close()
        if self._config.osworld.hypervisor == "vmware":
            await self._stop_machine()
        await self.worker.close()
        await self.keeper.close()
        if self._config.osworld.hypervisor == "docker":
            # Not by desktop-env: it waits 10 s for the container to stop and forgets those that do not.
            try:
                await asyncio.to_thread(osworld_host.remove_containers, self.mark)
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
            await asyncio.to_thread(osworld_host.stop_machine, self._config.osworld)


class OSWorldProvider:
    """Makes desktops; see ``arpo_replica.desktop.interface.DesktopProvider``."""

    def __init__(self, config: DesktopConfig) -> None:
        self._config = config
        self._reaped: asyncio.Task[list[str]] | None = None

    def check(self) -> None:
        """Raises ``UserError`` for what is missing or is not what the config pins."""
        osworld_host.check(self._config.osworld, self._config.count)

    async def start(self, name: str) -> OSWorldDesktop:
        """See the interface. Several may start at once: desktop-env's lock on ports lets them in one by one.
        The first one removes what killed processes have left."""
        if self._config.osworld.hypervisor == "docker":
            if self._reaped is None:
                self._reaped = asyncio.create_task(asyncio.to_thread(osworld_host.reap))
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
        return desktop

    def describe(self) -> dict[str, Any]:
        """See the interface."""
        return {
            "provider": self._config.provider,
            "screen": list(self._config.screen),
            **osworld_host.describe(self._config.osworld),
        }


async def _close_all(starting: list[asyncio.Task[OSWorldWorker]]) -> None:
    """Close the workers that have started in spite of it all."""
    for one in await asyncio.gather(*starting, return_exceptions=True):
        if isinstance(one, OSWorldWorker):
            await one.close()
