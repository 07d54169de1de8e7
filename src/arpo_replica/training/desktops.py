"""The desktops of the agent-loop process: a bounded pool, one desktop per running episode."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from arpo_replica.base.errors import DesktopError, PolicyError
from arpo_replica.desktop.interface import Desktop, DesktopProvider


def load_named(name: str, *arguments: Any) -> Any:
    """What ``module:function`` makes of ``arguments``."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)(*arguments)


def load_provider(name: str, *arguments: Any) -> DesktopProvider:
    """The provider that ``module:function`` makes of ``arguments``."""
    provider: DesktopProvider = load_named(name, *arguments)
    return provider


class DesktopPool:
    """At most ``size`` desktops, started when first needed and used again after good episodes.

    Belongs to one event loop. There is no barrier: whoever waits gets the next free desktop.
    """

    def __init__(self, provider: DesktopProvider, size: int) -> None:
        self.provider = provider
        self.slots = asyncio.Semaphore(size)
        self.free: list[Desktop] = []
        self.started = 0

    @asynccontextmanager
    async def desktop(self) -> AsyncIterator[Desktop]:
        """A desktop for one attempt. It is closed, not reused, if the attempt ends in an error."""
        async with self.slots:
            desktop = self.free.pop() if self.free else await self._start()
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
                    await asyncio.shield(desktop.close())

    async def _start(self) -> Desktop:
        self.started += 1
        try:
            return await self.provider.start(f"train-{self.started}")
        except OSError as error:
            raise DesktopError(f"a desktop did not start: {error}") from error

    async def close(self) -> None:
        """Close the desktops that are not in use."""
        free, self.free = self.free, []
        await asyncio.gather(*(desktop.close() for desktop in free))
