"""A small client of Chrome's DevTools protocol (https://chromedevtools.github.io/devtools-protocol).

One WebSocket to the browser carries all pages ("flat" sessions), over TCP or a Unix socket. Set-up
steps, evaluators and the scripted expert use it; a policy's own actions never do.
"""

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from arpo_replica.base.errors import DesktopError

ConnectorFactory = Callable[[], aiohttp.BaseConnector]


def unix(path: str) -> ConnectorFactory:
    """Connector factory for a browser that is reached through the Unix socket ``path``."""
    return lambda: aiohttp.UnixConnector(path=path)


@dataclass(frozen=True, slots=True)
class Page:
    """One tab."""

    id: str
    url: str
    title: str


class DevTools:
    """The DevTools connection of one browser. Every method raises ``DesktopError`` when it fails.

    Connects on first use and again after ``disconnect``; call ``disconnect`` at the end.
    """

    context: str | None = None
    """Browser context of the episode, where the browser is part of the desktop and runs all the time."""

    def __init__(
        self,
        connector: ConnectorFactory = aiohttp.TCPConnector,
        base_url: str = "http://localhost:9222",
        timeout_s: float = 10.0,
    ) -> None:
        """``base_url``'s host must be ``localhost`` or an IP address: Chrome refuses other names.

        ``timeout_s`` bounds each call that does not name its own.
        """
        self._connector = connector
        self._base = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._ids = itertools.count(1)
        self._pending: dict[int, tuple[asyncio.Future[dict[str, Any]], str | None]] = {}
        self._sessions: dict[str, str] = {}
        self._loaded: dict[str, set[str]] = {}
        self._load_waiters: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._http: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._reader: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    # -- connection -------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Open the connection if it is not open."""
        async with self._connecting:
            if self._socket is not None and not self._socket.closed:
                return
            await self._drop("reconnecting")
            self._http = aiohttp.ClientSession(connector=self._connector())
            try:
                async with asyncio.timeout(self._timeout_s):
                    async with self._http.get(f"{self._base}/json/version") as answer:
                        version = await answer.json(content_type=None)
                    path = "/" + version["webSocketDebuggerUrl"].split("//", 1)[1].split("/", 1)[1]
                    self._socket = await self._http.ws_connect(self._base + path, max_msg_size=0)
            except (aiohttp.ClientError, OSError, TimeoutError, KeyError, ValueError) as error:
                await self._drop("no connection")
                raise DesktopError(f"no DevTools connection at {self._base}: {error!r}") from error
            self._reader = asyncio.create_task(self._read(self._socket))

    async def disconnect(self) -> None:
        """Close the connection; the browser goes on. Never raises."""
        async with self._connecting:
            await self._drop("disconnected")

    async def _drop(self, reason: str) -> None:
        reader, self._reader = self._reader, None
        socket, self._socket = self._socket, None
        http, self._http = self._http, None
        self._sessions.clear()
        self._loaded.clear()
        if reader is not None:
            reader.cancel()
        self._fail_all(reason)
        try:
            if socket is not None:
                await socket.close()
            if http is not None:
                await http.close()
        except (aiohttp.ClientError, OSError):
            return  # it was broken already; nothing is left to close

    def _fail_all(self, reason: str) -> None:
        for future, _ in self._pending.values():
            _fail(future, DesktopError(f"DevTools connection lost: {reason}"))
        self._pending.clear()
        for waiter in self._load_waiters.values():
            _fail(waiter, DesktopError(f"DevTools connection lost: {reason}"))
        self._load_waiters.clear()

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                self._handle(json.loads(message.data))
        if self._socket is socket:
            self._fail_all("the browser closed it")

    def _handle(self, message: dict[str, Any]) -> None:
        if "id" in message:
            future, _ = self._pending.pop(message["id"], (None, None))
            if future is not None and not future.done():
                future.set_result(message)
            return
        params = message.get("params", {})
        method = message.get("method")
        if method == "Target.detachedFromTarget":
            self._forget_session(params["sessionId"])
        elif method == "Page.lifecycleEvent" and params["name"] == "load":
            key = (message["sessionId"], params["loaderId"])
            waiter = self._load_waiters.pop(key, None)
            if waiter is None:
                self._loaded.setdefault(key[0], set()).add(key[1])
            elif not waiter.done():
                waiter.set_result(None)

    def _forget_session(self, session: str) -> None:
        for target in [t for t, s in self._sessions.items() if s == session]:
            del self._sessions[target]
        self._loaded.pop(session, None)
        gone = DesktopError("the page was closed or crashed")
        for number in [n for n, (_, owner) in self._pending.items() if owner == session]:
            _fail(self._pending.pop(number)[0], gone)
        for key in [k for k in self._load_waiters if k[0] == session]:
            _fail(self._load_waiters.pop(key), gone)

    # -- raw calls --------------------------------------------------------------------------------

    async def call(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        page: str | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """One protocol call to the browser, or to the page with that id; returns its ``result``."""
        await self.connect()
        session = None if page is None else await self._session(page)
        return await self._send(method, params or {}, session, timeout_s)

    async def _send(
        self, method: str, params: dict[str, Any], session: str | None, timeout_s: float | None
    ) -> dict[str, Any]:
        socket = self._socket
        if socket is None:
            raise DesktopError("DevTools connection lost")
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._pending[number] = (future, session)
        limit = self._timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit):
                await socket.send_str(json.dumps(message))
                answer = await future
        except TimeoutError as error:
            raise DesktopError(f"{method} did not answer within {limit:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise DesktopError(f"{method} could not be sent: {error!r}") from error
        finally:
            self._pending.pop(number, None)
        if "error" in answer:
            raise DesktopError(f"{method} failed: {answer['error'].get('message', answer['error'])}")
        result: dict[str, Any] = answer["result"]
        return result

    async def _session(self, page: str) -> str:
        session = self._sessions.get(page)
        if session is None:
            params = {"targetId": page, "flatten": True}
            session = (await self._send("Target.attachToTarget", params, None, None))["sessionId"]
            self._sessions[page] = session
            await asyncio.gather(
                self._send("Page.enable", {}, session, None),
                self._send("Page.setLifecycleEventsEnabled", {"enabled": True}, session, None),
            )
        return session

    # -- pages ------------------------------------------------------------------------------------

    async def pages(self) -> list[Page]:
        """The open tabs, the newest first (Chrome's order)."""
        infos = (await self.call("Target.getTargets"))["targetInfos"]
        return [
            Page(info["targetId"], info["url"], info["title"])
            for info in infos
            if info["type"] == "page" and not info["url"].startswith("devtools://")
        ]

    async def first_page(self) -> str:
        """Id of the newest tab."""
        pages = await self.pages()
        if not pages:
            raise DesktopError("the browser has no open tab")
        return pages[0].id

    async def open(self, url: str, timeout_s: float | None = None) -> str:
        """Open a new tab in front, wait until it has loaded; returns its id."""
        page: str = (await self.call("Target.createTarget", {"url": "about:blank"}))["targetId"]
        await self.navigate(url, page, timeout_s)
        await self.call("Target.activateTarget", {"targetId": page})
        return page

    async def navigate(self, url: str, page: str | None = None, timeout_s: float | None = None) -> None:
        """Load ``url`` in a tab (the newest if none is named) and wait for its ``load`` event."""
        page = page or await self.first_page()
        limit = self._timeout_s if timeout_s is None else timeout_s
        session = await self._session(page)
        self._loaded.pop(session, None)
        answer = await self._send("Page.navigate", {"url": url}, session, limit)
        if answer.get("errorText"):
            raise DesktopError(f"{url} did not load: {answer['errorText']}")
        loader = answer.get("loaderId")
        if loader is None or loader in self._loaded.get(session, ()):
            return  # the same document, or loaded before the answer was read
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._load_waiters[session, loader] = waiter
        try:
            async with asyncio.timeout(limit):
                await waiter
        except TimeoutError as error:
            raise DesktopError(f"{url} did not load within {limit:g} s") from error
        finally:
            self._load_waiters.pop((session, loader), None)

    async def evaluate(
        self,
        expression: str,
        page: str | None = None,
        await_promise: bool = True,
        timeout_s: float | None = None,
    ) -> Any:
        """Value of a JavaScript expression in a tab (the newest if none is named), as JSON.

        A JavaScript exception is a ``DesktopError`` too.
        """
        page = page or await self.first_page()
        limit = self._timeout_s if timeout_s is None else timeout_s
        params = {
            "expression": expression,
            "awaitPromise": await_promise,
            "returnByValue": True,
            "timeout": limit * 1000,
        }
        answer = await self.call("Runtime.evaluate", params, page, limit)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            text = details.get("exception", {}).get("description") or details.get("text")
            raise DesktopError(f"script failed in the page: {str(text)[:300]}")
        return answer["result"].get("value")


def _fail(future: asyncio.Future[Any], error: DesktopError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # marks it as seen: a waiter that timed out may never look
