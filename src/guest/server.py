"""The desktop's HTTP server: actions and screenshots (ours), and OSWorld's API (``osworld_api.py``)."""

from __future__ import annotations

import asyncio
import json
import time
import traceback
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from .session import Session, log

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

REMEMBERED_IDS = 10_000
MAX_BODY = 1 << 30
REST_LIMIT_S = 1.0
CALM_S = 0.4
PROBE_S = 0.05


class ActionLog:
    """The ids of the actions taken: each is applied at most once."""

    def __init__(self, size: int = REMEMBERED_IDS) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._size = size

    def claim(self, action_id: str) -> bool:
        """True the first time; from then on the id is taken, whatever becomes of the action."""
        if action_id in self._ids:
            return False
        self._ids[action_id] = None
        if len(self._ids) > self._size:
            self._ids.popitem(last=False)
        return True


class Server:
    """Handlers of our own endpoints."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._log = ActionLog()
        self._one_at_a_time = asyncio.Lock()

    def routes(self) -> list[web.RouteDef]:
        """Endpoint table."""
        return [
            web.get("/health", self.health),
            web.get("/screenshot", self.screenshot),
            web.post("/act", self.act),
            web.post("/rest", self.rest),
            web.post("/calm", self.calm),
            web.post("/reset", self.reset),
        ]

    async def health(self, request: web.Request) -> web.Response:
        """Facts about the desktop; answering at all means that it is up."""
        return web.json_response(
            {"screen": list(self.session.config.screen), "browser": self.session.browser_alive}
        )

    async def screenshot(self, request: web.Request) -> web.Response:
        """OSWorld's: the screen with the mouse pointer, PNG."""
        return web.Response(body=self.session.framebuffer.png(), content_type="image/png")

    async def act(self, request: web.Request) -> web.Response:
        """``{"id": str, "action": {...}, "screenshot": bool}``: apply the action unless the id is known.

        Answers when the screen is at rest; the facts are in the header ``X-Desktop-Act``, the body is
        the screenshot if asked for.
        """
        body = await _json(request)
        action_id, action = body.get("id"), body.get("action")
        if not isinstance(action_id, str) or not action_id or not isinstance(action, dict):
            raise web.HTTPBadRequest(text="/act wants an id and an action")
        facts: dict[str, Any] = {"status": "duplicate", "ignored": []}
        async with self._one_at_a_time:
            if self._log.claim(action_id):
                try:
                    facts["ignored"] = await self.session.input.perform(action)
                except (ValueError, KeyError, TypeError) as error:
                    raise web.HTTPBadRequest(text=f"no action: {error!r}") from error
                facts["status"] = "applied"
                config, since = self.session.config, self.session.input.last_sent
                await asyncio.sleep(max(0.0, since + config.pause_s - time.monotonic()))
                await self.session.changes.settle(since, config.settle_ms / 1000)
        headers = {"X-Desktop-Act": json.dumps(facts)}
        if body.get("screenshot"):
            png = self.session.framebuffer.png()
            return web.Response(body=png, content_type="image/png", headers=headers)
        return web.Response(headers=headers)

    async def rest(self, request: web.Request) -> web.Response:
        """Answer when the screen has come to rest, after at most ``REST_LIMIT_S``."""
        now = time.monotonic()
        await self.session.changes.settle(now, REST_LIMIT_S)
        return web.json_response({"waited_s": time.monotonic() - now})

    async def calm(self, request: web.Request) -> web.Response:
        """``{"windows": int, "windows_s": float, "calm_s": float}``: answer when so many windows are there
        and for ``CALM_S`` nobody has been at work; 500 without the windows, 200 without the calm."""
        body = await _json(request)
        began = time.monotonic()
        while len(self.session.windows.ordinary()) < int(body.get("windows", 0)):
            if time.monotonic() - began > float(body.get("windows_s", 0)):
                raise web.HTTPInternalServerError(text="no window has opened")
            await asyncio.sleep(PROBE_S)
        began = last = time.monotonic()
        while (now := time.monotonic()) - began < float(body.get("calm_s", 0)) and now - last < CALM_S:
            await asyncio.sleep(PROBE_S)
            if self.session.busy() or self.session.changes.last_change > last:
                last = time.monotonic()
        return web.json_response({"calm": now - last >= CALM_S})

    async def reset(self, request: web.Request) -> web.Response:
        """``{"relaunch": bool, "windows": int}``: see ``Session.reset``."""
        body = await _json(request)
        async with self._one_at_a_time:
            browser = await self.session.reset(bool(body.get("relaunch")), int(body.get("windows", 0)))
        return web.json_response({"browser": browser})


@web.middleware
async def tell_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A handler's error reaches the client as text, not as "got itself in trouble"."""
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except Exception as error:
        log(traceback.format_exc())
        return web.json_response({"status": "error", "message": repr(error)}, status=500)


async def _json(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"no JSON: {error}") from error
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="a JSON object is wanted")
    return body
