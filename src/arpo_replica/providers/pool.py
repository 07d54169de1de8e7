"""From a config to running desktops: the provider that it names, and the one pool over it."""

import asyncio
import contextlib
import importlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from arpo_replica.base.errors import DesktopError, NoDesktopFree, PolicyError, UserError
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.desktop.interface import Desktop, DesktopProvider

logger = logging.getLogger(__name__)

PROVIDERS = {
    "container": "arpo_replica.providers.container:ContainerProvider",
    "process": "arpo_replica.providers.process:ProcessProvider",
    "osworld": "arpo_replica.providers.osworld:OSWorldProvider",
    "remote": "arpo_replica.providers.remote:RemoteProvider",
}
"""Name in the config -> ``module:class``, imported only when used, called with the config's section."""
CLOSE_TIMEOUT_S = 30.0
"""Longest time that closing a desktop may take before it is left to itself."""


def load_named(name: str, *arguments: Any) -> Any:
    """What ``module:function`` makes of ``arguments``."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)(*arguments)


def make_provider(desktop: DesktopConfig) -> DesktopProvider:
    """The provider that the config names, not yet checked."""
    provider: DesktopProvider = load_named(PROVIDERS[desktop.provider], desktop)
    return provider


class StartError(DesktopError):
    """The desktop did not even start."""


class DesktopPool:
    """At most ``size`` desktops, started when first needed and used again after good episodes.

    Belongs to one event loop. There is no barrier: whoever waits gets the next free desktop.
    """

    def __init__(self, provider: DesktopProvider, size: int, start_timeout_s: float | None = None) -> None:
        """``start_timeout_s``: longest time that starting one may take; None: the provider's own."""
        self.provider = provider
        self.start_timeout_s = start_timeout_s
        self.slots = asyncio.Semaphore(size)
        self.free: list[Desktop] = []
        self.attempts = 0
        self.started = 0
        """Desktops that have started so far."""
        self.running = 0
        self.failures = 0
        """Failed starts in a row."""
        self.broken = 0
        """Closed after an error and not replaced yet."""
        self.replaced = 0

    @asynccontextmanager
    async def desktop(self) -> AsyncIterator[Desktop]:
        """A desktop for one attempt. It is closed, not reused, if the attempt ends in an error, unless that
        is the policy's.

        Raises ``StartError``, or ``UserError`` for what the user has to correct.
        """
        async with self.slots:
            desktop = await self._take()
            healthy = False
            try:
                yield desktop
                healthy = True
            except PolicyError:
                healthy = True
                raise
            finally:
                if healthy:
                    self.free.append(desktop)
                else:
                    self.broken += 1
                    await asyncio.shield(self._close(desktop))

    async def _take(self) -> Desktop:
        """A free desktop, or a new one. Waits for as long as others have them all.

        After a broken one comes a fresh one: who asks next is usually the attempt that it broke. Where none
        is to be had, e.g. because a machine with desktops was lost, one that another attempt leaves will do.
        """
        while self.broken or not self.free:
            with contextlib.suppress(NoDesktopFree):
                return await self._start()
        return self.free.pop()

    async def _start(self) -> Desktop:
        self.attempts += 1
        replaces = self.broken > 0
        self.broken -= replaces
        try:
            async with asyncio.timeout(self.start_timeout_s):
                desktop = await self.provider.start(f"desktop-{self.attempts}")
        except (UserError, NoDesktopFree):
            raise
        except Exception as error:
            self.failures += 1
            raise StartError(f"the desktop did not start: {one_line(error)}") from error
        self.started += 1
        self.replaced += replaces
        self.running += 1
        self.failures = 0
        return desktop

    async def _close(self, desktop: Desktop) -> None:
        self.running -= 1
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await desktop.close()
        except Exception as error:
            logger.info(f"a desktop could not be closed: {one_line(error)}")

    async def close(self) -> None:
        """Close the desktops that are not in use."""
        free, self.free = self.free, []
        await asyncio.gather(*(self._close(desktop) for desktop in free))


def one_line(error: BaseException) -> str:
    """``DesktopError: what it says``, in one line of at most 500 characters."""
    text = str(error) if isinstance(error, StartError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:500]
