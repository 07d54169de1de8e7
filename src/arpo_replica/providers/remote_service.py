"""Lends this machine's desktops over HTTP: ``arpo serve-desktops``.

Every client has to show the token. A desktop is leased to one client, started for it and closed after it;
a lease ends when the client gives it back or has not been heard of for ``lease_s`` seconds, whatever call is
running then. Actions are applied at most once: an id that was seen is not applied again, and nothing here
repeats a call. Set-up and evaluators run here, beside the desktops.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web
from pydantic import ValidationError

from arpo_replica.actions.types import from_json
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.desktop.interface import Desktop, DesktopProvider
from arpo_replica.providers.remote_protocol import (
    LEASE_S,
    MAX_BODY,
    VERSION,
    ActRequest,
    Body,
    EvaluateRequest,
    Heartbeat,
    LeaseRequest,
    Nothing,
    ResetRequest,
    TaskName,
)
from arpo_replica.tasks.model import Task, load_task

logger = logging.getLogger(__name__)
Some = TypeVar("Some", bound=Body)
CLOSE_S = 30.0
"""Longest time that closing a desktop may take before its place is given away all the same."""


@dataclass
class Lease:
    """One desktop in one client's hands."""

    id: str
    name: str
    desktop: Desktop
    heard: float
    """``time.monotonic()`` of the client's last sign of life."""
    seen: set[str] = field(default_factory=set)
    """Ids of actions, noted before they are applied."""
    order: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One call at a time."""
    running: asyncio.Task[Any] | None = None


class Refused(Exception):
    """A call that is answered with a status other than 200."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class DesktopService:
    """The pool behind the HTTP calls of ``remote_protocol``."""

    def __init__(
        self,
        provider: DesktopProvider,
        config: DesktopConfig,
        *,
        token: str,
        roots: Sequence[Path],
        lease_s: float = LEASE_S,
    ) -> None:
        """``roots``: folders of task files; ``config.count`` desktops are lent at most."""
        self.provider = provider
        self.config = config
        self.roots = list(roots)
        self.lease_s = lease_s
        self._token = hashlib.sha256(token.encode()).digest()
        self._free = asyncio.Semaphore(config.count)
        self._taken = 0
        self._started = 0
        self._stopping = False
        self._facts: dict[str, Any] | None = None
        self.leases: dict[str, Lease] = {}
        self._closing: set[asyncio.Task[None]] = set()

    # --- life of the service ------------------------------------------------------------------------

    def application(self) -> web.Application:
        """The HTTP application; leaving it closes every desktop."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY)
        app.router.add_get("/v1/status", self._status)
        app.router.add_post("/v1/lease", self._lease)
        app.router.add_post("/v1/heartbeat", self._heartbeat)
        for name, call in {
            "reset": self._reset,
            "screenshot": self._screenshot,
            "act": self._act,
            "evaluate": self._evaluate,
            "close": self._close,
        }.items():
            app.router.add_post(f"/v1/desktops/{{lease}}/{name}", call)
        app.on_shutdown.append(self._stop)
        app.cleanup_ctx.append(self._life)
        return app

    async def _life(self, app: web.Application) -> Any:
        reaper = asyncio.create_task(self._reap())
        yield
        reaper.cancel()
        while self._closing:
            await asyncio.wait(self._closing)

    async def _stop(self, app: web.Application) -> None:
        """End all leases, which ends the calls that are running."""
        self._stopping = True
        for lease in list(self.leases.values()):
            self._end(lease, "the service stops")

    async def _reap(self) -> None:
        """End the leases of clients that are gone."""
        while True:
            await asyncio.sleep(min(1.0, self.lease_s / 4))
            late = time.monotonic() - self.lease_s
            for lease in [lease for lease in self.leases.values() if lease.heard < late]:
                self._end(lease, f"nothing heard of its client for {self.lease_s:g} s")

    def _end(self, lease: Lease, why: str) -> None:
        """Take a lease away; its place is free when its desktop is closed."""
        if self.leases.pop(lease.id, None) is None:
            return
        logger.info("lease of %s ends: %s", lease.name, why)
        task = asyncio.create_task(self._close_desktop(lease))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close_desktop(self, lease: Lease) -> None:
        if lease.running is not None:
            lease.running.cancel()
        try:
            async with asyncio.timeout(CLOSE_S):
                await lease.desktop.close()
        except Exception as error:
            logger.warning("closing the desktop of %s: %r", lease.name, error)
        finally:
            self._give_back()

    def _give_back(self) -> None:
        self._taken -= 1
        self._free.release()

    # --- calls --------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Token first; then every failure becomes a JSON answer, never a page or a traceback."""
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
        # Digests have one length, so the comparison tells nothing about the token's.
        digest = hashlib.sha256(shown.encode("utf-8", "surrogateescape")).digest()
        if not hmac.compare_digest(digest, self._token):
            return _refusal(401, "wrong or missing token")
        try:
            return await handler(request)
        except Exception as error:
            return _refusal(*_status_of(error))

    async def _status(self, request: web.Request) -> web.Response:
        if self._facts is None:
            self._facts = await asyncio.to_thread(self.provider.describe)
        return web.json_response(
            {
                "version": VERSION,
                "provider": self.config.provider,
                "facts": self._facts,
                "count": self.config.count,
                "leased": self._taken,
                "screen": list(self.config.screen),
                "pace": self.config.model_dump(include={"wait_seconds", "pause_seconds"}),
                "lease_s": self.lease_s,
            }
        )

    async def _lease(self, request: web.Request) -> web.Response:
        asked = await _read(request, LeaseRequest)
        if asked.screen != tuple(self.config.screen):
            raise Refused(409, f"the desktops here have the screen {list(self.config.screen)}")
        try:
            async with asyncio.timeout(asked.wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise Refused(503, f"all {self.config.count} desktops are taken") from None
        self._taken += 1
        if self._stopping or _is_gone(request):
            self._give_back()
            raise Refused(503, "the service stops or the client is gone")
        self._started += 1
        try:
            desktop = await self.provider.start(f"lent-{self._started}")
        except BaseException:
            self._give_back()
            raise
        lease = Lease(secrets.token_urlsafe(16), asked.name, desktop, time.monotonic())
        self.leases[lease.id] = lease
        if self._stopping or _is_gone(request):
            self._end(lease, "the service stops or its client is gone")
        return web.json_response({"lease": lease.id, "lease_s": self.lease_s})

    async def _heartbeat(self, request: web.Request) -> web.Response:
        asked = await _read(request, Heartbeat)
        alive = [name for name in asked.leases if name in self.leases]
        for name in alive:
            self.leases[name].heard = time.monotonic()
        return web.json_response({"alive": alive})

    async def _reset(self, request: web.Request) -> web.Response:
        lease, asked = self._find(request), await _read(request, ResetRequest)
        task = await asyncio.to_thread(self._task, asked.task)
        await self._run(lease, lambda: lease.desktop.reset(task))
        return web.json_response({})

    async def _screenshot(self, request: web.Request) -> web.Response:
        lease, _ = self._find(request), await _read(request, Nothing)
        png = await self._run(lease, lease.desktop.screenshot)
        return web.Response(body=png, content_type="image/png")

    async def _act(self, request: web.Request) -> web.Response:
        lease, asked = self._find(request), await _read(request, ActRequest)
        action = _action(asked.action)

        async def once() -> str:
            if asked.id in lease.seen:
                return "duplicate"
            lease.seen.add(asked.id)
            await lease.desktop.act(action, asked.id)
            return "applied"

        return web.json_response({"status": await self._run(lease, once)})

    async def _evaluate(self, request: web.Request) -> web.Response:
        lease, asked = self._find(request), await _read(request, EvaluateRequest)
        task = await asyncio.to_thread(self._task, asked.task)
        last = None if asked.last_action is None else _action(asked.last_action)
        score = await self._run(lease, lambda: lease.desktop.evaluate(task, last))
        return web.json_response({"score": score})

    async def _close(self, request: web.Request) -> web.Response:
        lease, _ = self._find(request), await _read(request, Nothing)
        self._end(lease, "given back")
        return web.json_response({})

    def _find(self, request: web.Request) -> Lease:
        lease = self.leases.get(request.match_info["lease"])
        if lease is None:
            raise Refused(404, "no such lease; it ended because nothing was heard of its client")
        lease.heard = time.monotonic()
        return lease

    async def _run(self, lease: Lease, work: Callable[[], Awaitable[Any]]) -> Any:
        """One call of the desktop. It ends with the lease, not with the connection."""
        async with lease.order:
            if lease.id not in self.leases:
                raise Refused(404, "the lease has ended")
            lease.running = asyncio.ensure_future(_await(work))
            try:
                return await asyncio.shield(lease.running)
            except asyncio.CancelledError:
                if not lease.running.cancelled():
                    raise
                raise Refused(404, "the lease ended during the call") from None
            finally:
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await asyncio.wait([lease.running])
                lease.running = None

    def _task(self, name: TaskName) -> Task:
        """The task file of that name and content, from this machine's folders."""
        found = None
        for root in self.roots:
            path = root / name.domain / f"{name.id}.json"
            if path.is_file():
                found = load_task(path)
                if found.sha256 == name.sha256:
                    return found
        what = "is another version" if found else "is missing"
        raise Refused(
            409,
            f"the file of task {name.domain}/{name.id} {what} on the desktops' machine; give both machines "
            "the same task files",
        )


async def _await(work: Callable[[], Awaitable[Any]]) -> Any:
    return await work()


async def _read(request: web.Request, kind: type[Some]) -> Some:
    try:
        return kind.model_validate(json.loads(await request.read()))
    except web.HTTPException:
        raise
    except (ValidationError, ValueError, RecursionError) as error:
        first = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else "no JSON"
        raise Refused(400, f"no such body: {first}") from None


def _action(data: dict[str, Any]) -> Any:
    try:
        return from_json(data)
    except (ValueError, TypeError):
        raise Refused(400, "no such action") from None


def _status_of(error: Exception) -> tuple[int, str]:
    """Status and text of the answer to a call that failed."""
    if isinstance(error, web.HTTPException):
        return error.status, error.reason
    for kind, status in ((UserError, 409), (DesktopError, 500)):
        if isinstance(error, kind):
            return status, str(error)
    if isinstance(error, Refused):
        return error.status, str(error)
    logger.error("a call failed in an unforeseen way", exc_info=error)
    return 500, f"{type(error).__name__}: {error}"


def _is_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _refusal(status: int, text: str) -> web.Response:
    return web.json_response({"error": text[:1000]}, status=status)
