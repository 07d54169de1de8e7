"""Lends this machine's desktops over HTTP: to other machines (``arpo serve-desktops``), or on a Unix socket
to other processes (the keeper of a training). All calls are POSTs with JSON bodies but ``GET /v1/status``.

=================================  ==========================  ==========================================
call                               body                        answer
=================================  ==========================  ==========================================
GET /v1/status                                                 facts, count, leased, screen, lease_s, time,
                                                               draining
/v1/lease                          name, screen                lease, lease_s; 503: all are taken, 410: the
                                                               service is about to end
/v1/heartbeat                      leases                      alive: those of them that still exist; draining
/v1/desktops/{lease}/reset         task                        ran_on, as ``Desktop`` has it
/v1/desktops/{lease}/screenshot    {}                          PNG
/v1/desktops/{lease}/act           action, id                  PNG of the screen at rest
/v1/desktops/{lease}/evaluate      task, last_action           score
/v1/desktops/{lease}/close         {}                          {}
=================================  ==========================  ==========================================

A task is named by domain, id and sha256 of its file and read from the service's own folders, so a client
cannot make the service open other files. Failures: 400 no such body, 401 wrong token, 404 no such lease,
409 the two sides differ (screen, task file), 413 body too long, 500 the desktop failed; all with ``error``.

Every client that comes over a network has to show the token. A desktop is leased to one client, started for
it (or beforehand) and closed after it; a lease ends when the client gives it back or has not been heard of
for ``lease_s`` seconds, whatever call is running then. A call is sent once and never again; actions are
applied at most once: an id that was seen is not applied again. Set-up and evaluators run here, beside the
desktops.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from arpo_replica.actions.types import from_json
from arpo_replica.base.errors import DesktopError, NoDesktopFree, UserError
from arpo_replica.base.slurm import ask
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.config.models import StudyConfig
from arpo_replica.desktop.interface import Desktop, DesktopProvider, Score
from arpo_replica.providers.pool import make_provider
from arpo_replica.providers.pool_folder import Announcement, make_secret
from arpo_replica.tasks.model import Task, load_task
from arpo_replica.tasks.splits import read_split

logger = logging.getLogger(__name__)

VERSION = 5
MAX_BODY = 64 * 1024
"""Longest body of a call, in bytes; the longest text of an action has 4,096 characters."""
MAX_ANSWER = 64 * 1024 * 1024
"""Longest answer that a client reads, in bytes."""
LEASE_S = 30.0
"""A client not heard of for so long has lost its desktops."""
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$"
"""A domain or an id: one name of a file, no path."""
CLOSE_S = 30.0
"""Longest time that closing a desktop may take before its place is given away all the same."""
LONG_TOKEN = 32
"""Characters that a token needs where other machines can reach the service."""


class Body(BaseModel):
    """Any body; unknown fields are refused. By itself: one without any field."""

    model_config = ConfigDict(extra="forbid")


class TaskName(Body):
    """Which task, and which version of its file."""

    domain: str = Field(pattern=NAME)
    id: str = Field(pattern=NAME)
    sha256: str = Field(max_length=64)

    @classmethod
    def of(cls, task: Task) -> TaskName:
        """The name of a task."""
        return cls(domain=task.domain, id=task.id, sha256=task.sha256)


class LeaseRequest(Body):
    """Ask for a desktop."""

    name: str = Field(max_length=100)
    screen: tuple[int, int]


class Heartbeat(Body):
    """The client of these leases is alive."""

    leases: list[str] = Field(max_length=1_000)


class ResetRequest(Body):
    """Make the desktop ready for a task."""

    task: TaskName


class ActRequest(Body):
    """One action, in ``Action.to_json``'s form, and its id."""

    action: dict[str, Any]
    id: str = Field(min_length=1, max_length=100)


class EvaluateRequest(Body):
    """Score the state as it is."""

    task: TaskName
    last_action: dict[str, Any] | None


Some = TypeVar("Some", bound=Body)


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


class DesktopService:
    """The desktops behind the HTTP calls."""

    def __init__(
        self,
        provider: DesktopProvider,
        config: DesktopConfig,
        *,
        token: str | None,
        roots: Sequence[Path],
        lease_s: float = LEASE_S,
        stock: int = 0,
    ) -> None:
        """``token``: None where the kernel decides who gets in, by the mode of a Unix socket. ``roots``:
        folders of task files. ``config.count`` desktops are lent at most, ``stock`` of them started
        beforehand, own ones one after the other: many browsers at once would take all cores from their
        user."""
        self.provider = provider
        self.config = config
        self.roots = list(roots)
        self.lease_s = lease_s
        self._token = None if token is None else hashlib.sha256(token.encode()).digest()
        self._taken = 0
        self._used = time.monotonic()
        self.draining = False
        """No desktop is lent any more; those that are lent may be used to the end of their leases."""
        self._started = 0
        self._stock_size = stock
        self._stock: list[asyncio.Task[Desktop]] = []
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
        turn = asyncio.Semaphore(32 if self.config.provider == "remote" else 1)

        async def start_in_turn() -> Desktop:
            async with turn:
                return await self._start()

        self._stock = [asyncio.create_task(start_in_turn()) for _ in range(self._stock_size)]
        reaper = asyncio.create_task(self._reap())
        yield
        reaper.cancel()
        for waiting in self._stock:  # those that nobody asked for
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await (await waiting).close()
        while self._closing:
            await asyncio.wait(self._closing)

    async def _stop(self, app: web.Application) -> None:
        """End all leases, which ends the calls that are running."""
        self._stopping = True
        for lease in list(self.leases.values()):
            self._end(lease, "the service stops")

    async def _start(self) -> Desktop:
        self._started += 1
        return await self.provider.start(f"lent-{self._started}")

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
        self._used = time.monotonic()

    @property
    def idle_s(self) -> float:
        """For so long no desktop has been lent."""
        return 0.0 if self._taken else time.monotonic() - self._used

    # --- calls --------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Token first; then every failure becomes a JSON answer, never a page or a traceback."""
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
        # Digests have one length, so the comparison tells nothing about the token's.
        digest = hashlib.sha256(shown.encode("utf-8", "surrogateescape")).digest()
        if self._token is not None and not hmac.compare_digest(digest, self._token):
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
                "time": time.time(),
                "draining": self.draining,
            }
        )

    async def _lease(self, request: web.Request) -> web.Response:
        asked = await _read(request, LeaseRequest)
        if asked.screen != tuple(self.config.screen):
            raise web.HTTPConflict(reason=f"the desktops here have the screen {list(self.config.screen)}")
        if self.draining or self._stopping:
            raise web.HTTPGone(reason="it is about to end")
        if self._taken >= self.config.count:
            raise web.HTTPServiceUnavailable(reason=f"all {self.config.count} desktops are taken")
        self._taken += 1
        try:
            desktop = await (self._stock.pop(0) if self._stock else self._start())
        except BaseException:
            self._give_back()
            raise
        lease = Lease(secrets.token_urlsafe(16), asked.name, desktop, time.monotonic())
        self.leases[lease.id] = lease
        if self._stopping or request.transport is None or request.transport.is_closing():
            self._end(lease, "the service stops or its client is gone")
        return web.json_response({"lease": lease.id, "lease_s": self.lease_s})

    async def _heartbeat(self, request: web.Request) -> web.Response:
        asked = await _read(request, Heartbeat)
        alive = [name for name in asked.leases if name in self.leases]
        for name in alive:
            self.leases[name].heard = time.monotonic()
        return web.json_response({"alive": alive, "draining": self.draining})

    async def _reset(self, request: web.Request) -> web.Response:
        lease, asked = self._find(request), await _read(request, ResetRequest)
        task = await asyncio.to_thread(self._task, asked.task)
        await self._run(lease, lambda: lease.desktop.reset(task))
        return web.json_response({"ran_on": lease.desktop.ran_on})

    async def _screenshot(self, request: web.Request) -> web.Response:
        lease, _ = self._find(request), await _read(request, Body)
        return _image(await self._run(lease, lease.desktop.screenshot))

    async def _act(self, request: web.Request) -> web.Response:
        lease, asked = self._find(request), await _read(request, ActRequest)
        action = _action(asked.action)

        async def once() -> bytes:
            if asked.id not in lease.seen:
                lease.seen.add(asked.id)
                await lease.desktop.act(action, asked.id)
            return await lease.desktop.screenshot()

        return _image(await self._run(lease, once))

    async def _evaluate(self, request: web.Request) -> web.Response:
        lease, asked = self._find(request), await _read(request, EvaluateRequest)
        task = await asyncio.to_thread(self._task, asked.task)
        last = None if asked.last_action is None else _action(asked.last_action)
        score = await self._run(lease, lambda: lease.desktop.evaluate(task, last))
        words = {"expected": score.expected, "found": score.found} if isinstance(score, Score) else {}
        return web.json_response({"score": score, **words})

    async def _close(self, request: web.Request) -> web.Response:
        lease, _ = self._find(request), await _read(request, Body)
        self._end(lease, "given back")
        return web.json_response({})

    def _find(self, request: web.Request) -> Lease:
        lease = self.leases.get(request.match_info["lease"])
        if lease is None:
            raise web.HTTPNotFound(reason="no such lease; it ended because nothing was heard of its client")
        lease.heard = time.monotonic()
        return lease

    async def _run(self, lease: Lease, work: Callable[[], Awaitable[Any]]) -> Any:
        """One call of the desktop. It ends with the lease, not with the connection."""
        async with lease.order:
            if lease.id not in self.leases:
                raise web.HTTPNotFound(reason="the lease has ended")
            lease.running = asyncio.ensure_future(work())
            try:
                return await asyncio.shield(lease.running)
            except asyncio.CancelledError:
                if not lease.running.cancelled():
                    raise
                raise web.HTTPNotFound(reason="the lease ended during the call") from None
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
        raise web.HTTPConflict(
            reason=f"the file of task {name.domain}/{name.id} {what} on the desktops' machine; give both "
            "machines the same task files"
        )


async def _read(request: web.Request, kind: type[Some]) -> Some:
    try:
        return kind.model_validate(json.loads(await request.read()))
    except (ValueError, RecursionError) as error:
        first = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else "no JSON"
        raise web.HTTPBadRequest(reason=f"no such body: {first}") from None


def _action(data: dict[str, Any]) -> Any:
    try:
        return from_json(data)
    except (ValueError, TypeError):
        raise web.HTTPBadRequest(reason="no such action") from None


def _status_of(error: Exception) -> tuple[int, str]:
    """Status and text of the answer to a call that failed."""
    if isinstance(error, web.HTTPException):
        return error.status, error.reason
    for kind, status in ((UserError, 409), (NoDesktopFree, 503), (DesktopError, 500)):
        if isinstance(error, kind):
            return status, str(error)
    logger.error("a call failed in an unforeseen way", exc_info=error)
    return 500, f"{type(error).__name__}: {error}"


def _image(png: bytes) -> web.Response:
    return web.Response(body=png, content_type="image/png")


def _refusal(status: int, text: str) -> web.Response:
    return web.json_response({"error": text[:1000]}, status=status)


def read_token(variable: str, *, loopback: bool) -> str:
    """The token in the environment variable. Raises ``UserError``; the message never holds the token."""
    token = os.environ.get(variable, "").strip()
    make = f"export {variable}=$(python3 -c 'import secrets; print(secrets.token_urlsafe(32))')"
    if not token:
        raise UserError(f"The service needs a token in {variable}: {make}")
    if not token.isascii() or not token.isprintable():
        raise UserError(f"The token in {variable} has characters that no HTTP header can hold: {make}")
    if not loopback and len(token) < LONG_TOKEN:
        raise UserError(
            f"The token in {variable} has {len(token)} characters; beyond loopback it needs {LONG_TOKEN}: "
            f"{make}"
        )
    return token


def check_host(host: str, *, allow_network: bool) -> bool:
    """True for a loopback address. Raises ``UserError`` for another one that was not allowed."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise UserError(f"--host is '{host}'; give an IP address of this machine.") from None
    if not address.is_loopback and not allow_network:
        raise UserError(
            f"--host {host} lets other machines in, unencrypted; use an SSH tunnel to 127.0.0.1, or add "
            "--allow-network on a network that you trust."
        )
    return address.is_loopback


def task_folders(config: StudyConfig) -> list[Path]:
    """Folders of task files that a config names: its own, and those of splits with one of their own."""
    folders = [config.tasks.root]
    for path in config.tasks.splits.values():
        if path.is_file() and (own := read_split(path).task_root) is not None:
            folders.append(path.parent / own)
    return folders


def serve_desktops(
    config: StudyConfig,
    *,
    host: str | None = None,
    port: int | None = None,
    allow_network: bool = False,
    lease_s: float = LEASE_S,
    roots: Sequence[Path] = (),
    announce: Path | None = None,
    idle_minutes: float = 0.0,
    drain_s: float = 0.0,
) -> None:
    """Lend the config's desktops until SIGTERM or SIGINT; then close them all.

    ``roots``: folders of task files besides ``tasks.root``. ``announce``: folder in which to say where this
    pool listens; other machines are then let in, with the folder's token. ``idle_minutes``: end when no
    desktop was lent for so long; 0: never. ``drain_s``: after SIGTERM nothing is lent any more, and what is
    lent may be used for so long. Raises ``UserError`` before anything starts.
    """
    if config.desktop.provider == "remote":
        raise UserError("desktop.provider is 'remote'; the service needs desktops of its own machine.")
    if not 1 <= lease_s <= 3600:
        raise UserError(f"--lease-seconds is {lease_s:g}; give 1 to 3600.")
    if port is not None and not 0 <= port <= 65_535:
        raise UserError(f"--port is {port}; give 1 to 65535, or 0 for any free one.")
    for folder in roots:
        if not folder.is_dir():
            raise UserError(f"--tasks names {folder}, which is no folder; correct it.")
    if announce is None:
        host, shown, port = host or "127.0.0.1", host or "127.0.0.1", 8700 if port is None else port
        loopback = check_host(host, allow_network=allow_network)
        token = read_token(config.desktop.remote.token_variable, loopback=loopback)
    else:
        shown = host or own_name()
        host, port, token = host or listening_address(shown), port or 0, make_secret(announce)
    provider = make_provider(config.desktop)
    provider.check()
    for handler in logging.getLogger("arpo_replica").handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    service = DesktopService(
        provider, config.desktop, token=token, roots=[*task_folders(config), *roots], lease_s=lease_s
    )

    async def run() -> None:
        runner = web.AppRunner(service.application(), access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            try:
                await site.start()
            except OSError as error:
                raise UserError(
                    f"Port {port} of {host} cannot be used ({error.strerror}); name another one with --port."
                ) from error
            bound = runner.addresses[0][1]
            url = f"http://{f'[{shown}]' if ':' in shown else shown}:{bound}"
            logger.info(
                f"lending {config.desktop.count} {config.desktop.provider} desktops at {url}; a client not "
                f"heard of for {lease_s:g} s loses its own"
            )
            stop, now, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, stop.set)
            loop.add_signal_handler(signal.SIGINT, now.set)
            facts = {"url": url, "count": config.desktop.count, "study": config.name}
            with (
                contextlib.nullcontext()
                if announce is None
                else Announcement(announce, facts) as announcement
            ):
                await _wait(stop, lambda: now.is_set() or 0 < 60 * idle_minutes < service.idle_s)
                service.draining, until = True, time.monotonic() + drain_s
                if announcement is not None:
                    announcement.write(draining=True)
                await _wait(now, lambda: not service.leases or time.monotonic() > until)
        finally:
            await runner.cleanup()

    asyncio.run(run())


async def _wait(stop: asyncio.Event, condition: Callable[[], bool]) -> None:
    """Return at ``stop``, or within a second when the condition holds."""
    while not condition() and not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1)


def own_name() -> str:
    """How other machines call this one: as Slurm does, on a node of Slurm's."""
    node = os.environ.get("SLURMD_NODENAME")
    if node is not None:
        with contextlib.suppress(UserError):
            words = ask("scontrol", "show", "node", node, "--oneliner").split()
            return next((word[9:] for word in words if word.startswith("NodeAddr=")), node)
    return node or socket.gethostname()


def listening_address(name: str) -> str:
    """Where to listen to be reached by a name: at that address, or at all where it is a host's name (which on
    its own machine may stand for loopback)."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return "0.0.0.0"  # noqa: S104  # pools are for other machines, and ask for a token
