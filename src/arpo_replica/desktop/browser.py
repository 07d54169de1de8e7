"""DevTools of a desktop whose browser outlives the episode.

Episodes run in a browser context (Chrome's "incognito profile"), which carries cookies, storage, cache,
zoom, permissions, history and windows. Between episodes its one tab is cleaned; if anything else has
changed (another tab or window, another size or zoom, a dialog, a page that does not answer) the context
is disposed of, and if even that leaves a tab behind, the browser is relaunched.
"""

import asyncio
import time
from typing import Any

from arpo_replica.base.errors import DesktopError
from arpo_replica.base.tables import table_of
from arpo_replica.desktop.devtools import ConnectorFactory, DevTools, Page

SCRIPTS = table_of(__file__)
_NOT_YET_S = 0.005
FIRST_TAB_S = 5.0
CLEAN_S = 3.0
"""A tab that takes longer to clean is disposed of."""
EPISODES_PER_CONTEXT = 50
"""Then the context is disposed of in any case: whatever might pile up in it does not for long."""


class EpisodeDevTools(DevTools):
    """``DevTools`` that sees and opens the tabs of the present episode only.

    Without a context (``begin`` not called) it is a plain ``DevTools``.
    """

    def __init__(
        self,
        connector: ConnectorFactory,
        base_url: str,
        timeout_s: float,
        screen: tuple[int, int],
        origins: tuple[str, ...],
    ) -> None:
        """``screen``: width and height in pixels, which every window fills. ``origins``: those that the
        browser's policy lets it visit."""
        super().__init__(connector, base_url, timeout_s)
        self._screen = screen
        self._origins = origins
        self._episodes = 0
        self.context: str | None = None

    async def begin(self) -> None:
        """Make a new context."""
        self.context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        self._episodes = 0

    async def clean(self) -> bool:
        """Make the context's one tab as good as new, blank. False if that cannot be: dispose of it then."""
        self._episodes += 1
        if self.context is None or self._episodes >= EPISODES_PER_CONTEXT:
            return False
        try:
            async with asyncio.timeout(CLEAN_S):
                return await self._clean()
        except (DesktopError, TimeoutError):
            return False

    async def _clean(self) -> bool:
        everywhere, pages = await super().pages(), await self.pages()
        if len(everywhere) != 1 or len(pages) != 1:
            return False
        page = pages[0].id
        width, height = self._screen
        if await self.evaluate(SCRIPTS["LEAVE"], page) != [width, height, height, 1, 1, True]:
            return False
        await self.navigate("about:blank", page)
        context = {"browserContextId": self.context}
        clear = [
            self.call("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "all"}, page)
            for origin in self._origins
        ]
        await asyncio.gather(
            *clear,
            self.call("Storage.clearCookies", context),
            self.call("Browser.resetPermissions", context),
            self.call("Page.resetNavigationHistory", page=page),
            self.evaluate("name = ''", page),
        )
        return True

    async def end(self) -> bool:
        """Dispose of the context. False if the browser then still has tabs open.

        (The browser's own profile was used: it has to be relaunched.)
        """
        context, self.context = self.context, None
        if context is not None:
            await self.call("Target.disposeBrowserContext", {"browserContextId": context})
        return not await super().pages()

    async def pages(self) -> list[Page]:
        """The episode's open tabs, the newest first."""
        if self.context is None:
            # An ordinary browser always has a tab: one that has just been launched will soon.
            for _ in range(int(FIRST_TAB_S / _NOT_YET_S)):
                if pages := await super().pages():
                    return pages
                await asyncio.sleep(_NOT_YET_S)
            return []
        infos = (await self.call("Target.getTargets"))["targetInfos"]
        return [
            Page(info["targetId"], info["url"], info["title"])
            for info in infos
            if info["type"] == "page" and info.get("browserContextId") == self.context
        ]

    @property
    def in_use(self) -> bool:
        """True if there is a connection to the browser."""
        return self._socket is not None and not self._socket.closed

    async def ready(self) -> None:
        """The end of a set-up: return when the newest tab has been drawn as it is now.

        In a context of ours the tab then has no history: nothing leads back to the blank page.
        """
        pages = await self.pages()
        if not pages:
            return
        if self.context is not None:
            await self.call("Page.resetNavigationHistory", page=pages[0].id)
        await self.evaluate(SCRIPTS["PAINTED"], pages[0].id)

    async def open(self, url: str, timeout_s: float | None = None) -> str:
        """Open a tab (the first one in a window that fills the screen), wait until it has loaded."""
        if self.context is None:
            return await super().open(url, timeout_s)
        params: dict[str, Any] = {"url": url, "browserContextId": self.context}
        if not await self.pages():
            params |= {"newWindow": True, "windowState": "fullscreen"}
        page: str = (await self.call("Target.createTarget", params))["targetId"]
        limit = self._timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise DesktopError(f"{url} did not load within {limit:g} s")
            try:
                shown = await self.evaluate(SCRIPTS["READY"] % self._screen[0], page, timeout_s=left)
            except DesktopError:
                # The script ran in the empty page that is there before the first one and went with it.
                if not any(known.id == page for known in await self.pages()):
                    raise
                shown = "about:blank"
            if shown.startswith("chrome-error:"):
                raise DesktopError(f"{url} did not load")
            if shown != "about:blank" or url == "about:blank":
                return page
            await asyncio.sleep(_NOT_YET_S)
