"""Provider ``remote``: desktops that other processes lend (``remote_service``), here or on other machines.

A *pool* is one such process. Desktops are taken from the pool whose share of lent ones is the smallest. A
pool that does not answer, drains, or is not like the others is left out, and asked again later; one that has
come meanwhile is used. Nothing is ever sent twice. A desktop whose pool does not answer, or that was taken
away because this process was not heard of in time, raises ``DesktopError``: its episode is tried again on
another.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import requests

from arpo_replica.actions.types import Action
from arpo_replica.base.errors import DesktopError, NoDesktopFree, UserError, brief
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.desktop.client import typing_s
from arpo_replica.desktop.interface import FRESH_S, Score
from arpo_replica.providers.pool_folder import announced, keep_up, read_secret
from arpo_replica.providers.remote_service import MAX_ANSWER, VERSION, TaskName
from arpo_replica.tasks.model import Task

logger = logging.getLogger(__name__)
LONG_S = 1_800.0
"""Longest time of a reset or an evaluation; the episode's own limit is usually shorter."""
SLACK_S = 10.0
"""What the network may add to a limit of the desktop's."""
WAIT_S = 5.0
"""A call for a desktop waits so long while all are taken, then says so."""
FULL_S = 0.5
"""A pool whose desktops are all taken is asked again after so long."""
REST_S = 20.0
"""A pool that did not answer, or is not to be used, is asked again after so long."""
KEEP_S = 15.0
"""Slurm is asked at most so often whether pools are missing."""
PATIENCE = 4
"""So often in a row Slurm may fail to answer, or to take a job, before the study ends."""
MOVES = 5
"""Desktops that one reset may try."""
LOOK_S = 2.0
"""The folder of pools is read again after so long."""
CLOCK_S = 60.0
"""Tasks ask for the date and the time: clocks may differ by so much."""
IDENTITY = ("image", "vm_sha256", "browser")
"""Facts of a pool, as far as its provider states them, that must be the same in all pools."""


@dataclass(frozen=True)
class Service:
    """Where a pool listens."""

    name: str
    """What error sentences call it: its URL, for one on a network."""
    start_s: float
    """Longest time that the start of a desktop may take once there is room for it."""
    token: str = ""
    socket: Path | None = None
    """Of a pool on this machine. It needs no token: the socket's mode says who gets in."""

    def session(self) -> aiohttp.ClientSession:
        """A client of it, to be closed."""
        connector = (
            aiohttp.TCPConnector(limit=0)
            if self.socket is None
            else aiohttp.UnixConnector(str(self.socket), limit=0)
        )
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return aiohttp.ClientSession(connector=connector, headers=headers)

    @property
    def base(self) -> str:
        """What a call's path is put behind."""
        return self.name if self.socket is None else "http://localhost"


class Pool:
    """One pool as this process sees it: what it said of itself, and the desktops that we have from it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.status: dict[str, Any] | None = None
        """What it lends; None: it is not to be used."""
        self.why: UserError | DesktopError | None = None
        """The reason: the two sides differ, or it does not answer, or not any more."""
        self.asked = float("-inf")
        """``time.monotonic()`` of the last question for its status."""
        self.full_until = self.failed_until = 0.0
        self.draining = False
        self.desktops: dict[str, RemoteDesktop] = {}
        """Lease -> desktop."""
        self._asking = 0
        self._http: aiohttp.ClientSession | None = None
        self._beat: asyncio.Task[None] | None = None

    @property
    def order(self) -> tuple[bool, float]:
        """Pools are asked for a desktop in this order: those that failed lately last, then by load."""
        count = 1 if self.status is None else max(1, int(self.status.get("count", 1)))
        return time.monotonic() < self.failed_until, (len(self.desktops) + self._asking) / count

    def leave_out(self, why: UserError | DesktopError) -> None:
        """Use it no more until it has been asked for its status again."""
        if str(why) != str(self.why):
            logger.warning(f"A pool of desktops is left out: {why}")
        self.status, self.why, self.asked = None, why, time.monotonic()

    async def lease(self, desktop: RemoteDesktop) -> str:
        """A lease for ``desktop``. Raises ``NoDesktopFree``, ``PoolDrains`` or ``DesktopError``, and
        ``UserError`` if the two sides differ."""
        self._asking += 1
        try:
            body = {"name": desktop.name, "screen": desktop.screen}
            answer = json.loads(await self.post("/v1/lease", self.service.start_s, body))
            lease, lease_s = str(answer["lease"]), float(answer["lease_s"])
            self.desktops[lease] = desktop
            if self._beat is None or self._beat.done():
                self._beat = asyncio.create_task(self._heartbeats(lease_s))
            return lease
        except (KeyError, ValueError, TypeError) as error:
            raise DesktopError(f"{self.service.name} answered a call for a desktop with nonsense") from error
        finally:
            self._asking -= 1
            await self.tidy()

    async def _heartbeats(self, lease_s: float) -> None:
        """Say that this process lives; notice which desktops were taken away, and that a pool is gone.

        A machine that lost its power closes no connection. But by its silence all leases have ended, and
        calls that still wait for it are given up.
        """
        heard = time.monotonic()
        while True:
            await asyncio.sleep(lease_s / 4)
            asked = list(self.desktops)
            try:
                answer = json.loads(await self.post("/v1/heartbeat", lease_s / 2, {"leases": asked}))
                alive, self.draining = set(answer["alive"]), bool(answer["draining"])
                heard = time.monotonic()
            except (DesktopError, UserError, ValueError, KeyError, TypeError):
                alive = set(asked if time.monotonic() - heard < lease_s else ())
            for lease in asked:
                if lease not in alive and lease in self.desktops:
                    self.desktops.pop(lease).lose("its lease has ended")

    async def tidy(self) -> None:
        """Without a desktop of it there is no connection to it."""
        if self.desktops or self._asking:
            return
        (beat, self._beat), (http, self._http) = (self._beat, None), (self._http, None)
        if beat is not None and beat is not asyncio.current_task():
            beat.cancel()
            await asyncio.wait([beat])
        if http is not None:
            await http.close()

    async def post(self, path: str, timeout_s: float, body: dict[str, Any]) -> bytes:
        """Send one call, once. aiohttp never repeats a POST by itself."""
        if self._http is None:
            self._http = self.service.session()
        name, what = self.service.name, path.rsplit("/", 1)[-1]
        try:
            async with self._http.post(
                self.service.base + path,
                json=body,
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=SLACK_S),
                allow_redirects=False,
            ) as answer:
                data = await _read(answer)
        except TimeoutError as error:
            raise PoolSilent(f"{name} did not answer {what} within {timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise PoolSilent(f"{name} did not answer {what}: {brief(error)}") from error
        if answer.status == 200:
            return data
        text = f"{name} refused {what} with {answer.status}: {_error(data)}"
        if answer.status in (401, 409):
            raise UserError(f"{text}.")
        raise {404: LeaseEnded, 410: PoolDrains, 503: NoDesktopFree}.get(answer.status, DesktopError)(text)


class PoolSilent(DesktopError):
    """A pool does not answer."""


class PoolDrains(DesktopError):
    """A pool lends nothing any more: it is about to end."""


class LeaseEnded(DesktopError):
    """A pool does not know the lease any more."""


class RemoteDesktop:
    """One leased desktop; see ``arpo_replica.desktop.interface.Desktop``."""

    def __init__(self, name: str, config: DesktopConfig, provider: RemoteProvider) -> None:
        self.name = name
        self.screen: tuple[int, int] = config.screen
        self.ran_on: dict[str, str] = {}
        self._config = config
        self._provider = provider
        self._pool: Pool | None = None
        self._lease = ""
        self._lost = ""
        self._running: asyncio.Task[bytes] | None = None
        self._seen: tuple[float, bytes] | None = None
        """When the last action's screenshot came, and the screenshot."""

    async def start(self) -> None:
        """Lease a desktop. Raises ``NoDesktopFree`` if all are taken, for ``WAIT_S`` seconds."""
        self._pool, self._lease = await self._provider.lease(self)
        self._lost = ""

    def lose(self, why: str) -> None:
        """It was taken away. What is running ends."""
        self._lost = self._lost or why
        if self._running is not None:
            self._running.cancel()

    async def reset(self, task: Task) -> None:
        """Between episodes a desktop can be changed for one of another pool: if its own is about to end, is
        gone, or has another version of the task's file. Raises ``UserError`` if all have another version,
        ``NoDesktopFree`` if all others are taken."""
        self._seen = None
        if self._pool is not None and self._lost:
            await self._change_pool()
        elif self._pool is not None and self._pool.draining:
            with contextlib.suppress(DesktopError, UserError):  # then it stays, for as long as the pool does
                await self._change_pool()
        for moves_left in reversed(range(MOVES)):
            try:
                answer = await self._call("reset", LONG_S, task=TaskName.of(task).model_dump())
                self.ran_on = self._found_on(answer)
                return
            except (PoolSilent, UserError) as why:
                if not moves_left or not self._provider.do_without(self._pool, why):
                    raise
                await self._change_pool()

    def _found_on(self, answer: bytes) -> dict[str, str]:
        """What the pool says of the desktop, and which pool that is, unless it is this machine's own."""
        assert self._pool is not None
        service = self._pool.service
        try:
            said = {str(key): str(value) for key, value in json.loads(answer)["ran_on"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DesktopError(f"{service.name} answered a reset with nonsense: {answer[:80]!r}") from error
        return {"pool": service.name, **said} if service.socket is None else said

    async def _change_pool(self) -> None:
        before = self._pool, self._lease
        await self.start()
        await self._give_back(*before)

    async def screenshot(self) -> bytes:
        seen, self._seen = self._seen, None
        if seen is not None and time.monotonic() - seen[0] < FRESH_S:
            return seen[1]
        return await self._call("screenshot", self._config.act_timeout_s + SLACK_S)

    async def act(self, action: Action, action_id: str) -> None:
        self._seen = None
        limit = self._config.act_limit_s + typing_s(action) + SLACK_S
        png = await self._call("act", limit, action=action.to_json(), id=action_id)
        self._seen = (time.monotonic(), png)

    async def evaluate(self, task: Task, last_action: Action | None) -> float:
        last = None if last_action is None else last_action.to_json()
        data = await self._call("evaluate", LONG_S, task=TaskName.of(task).model_dump(), last_action=last)
        try:
            answer = json.loads(data)
            return Score.of(float(answer["score"]), answer.get("expected", ""), answer.get("found", ""))
        except (ValueError, KeyError, TypeError) as error:
            raise DesktopError(f"desktop {self.name} gave no score: {data[:80]!r}") from error

    async def close(self) -> None:
        """The pool closes the desktop, now or when the lease runs out."""
        self._seen, self._lost = None, self._lost or "it is closed"
        await self._give_back(self._pool, self._lease)
        self._pool = None

    async def _give_back(self, pool: Pool | None, lease: str) -> None:
        if pool is None:
            return
        try:
            if lease in pool.desktops:
                await pool.post(f"/v1/desktops/{lease}/close", SLACK_S, {})
        except (DesktopError, UserError) as error:
            logger.info("desktop %s was not given back: %s", self.name, error)
        finally:
            pool.desktops.pop(lease, None)
            await pool.tidy()

    async def _call(self, name: str, timeout_s: float, **body: Any) -> bytes:
        if self._lost or self._pool is None:
            raise DesktopError(f"desktop {self.name} is gone: {self._lost or 'it was never started'}")
        path = f"/v1/desktops/{self._lease}/{name}"
        call = self._running = asyncio.ensure_future(self._pool.post(path, timeout_s, body))
        try:
            return await call
        except LeaseEnded:
            self._lost = "its lease has ended"
            self._pool.desktops.pop(self._lease, None)
            raise
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise DesktopError(f"{self._pool.service.name} did not answer {name}: {self._lost}") from None
        finally:
            self._running = None


class RemoteProvider:
    """Leases desktops; see ``arpo_replica.desktop.interface.DesktopProvider``."""

    def __init__(self, config: DesktopConfig, service: Service | None = None) -> None:
        """``service``: another one than the config's."""
        self._config = config
        self._pools: dict[str, Pool] = {}
        self._given = None if service is None else Pool(service)
        self._search: asyncio.Task[list[Pool]] | None = None
        self._looking = threading.Lock()
        self._looked = float("-inf")
        self._kept, self._unkept = float("-inf"), 0
        self._first: dict[str, Any] | None = None
        """Status of the first pool that could be used: the desktops of all others must be the same."""

    # --- which pools there are ------------------------------------------------------------------------

    def _look(self, *, anew: bool = False) -> list[Pool]:
        """The pools that can be used now. ``anew``: all are asked what they lend, not only those of which
        this is not known. Raises ``UserError`` without a token, or with a folder that others can read."""
        with self._looking:
            now = time.monotonic()
            if anew or now - self._looked > LOOK_S:
                self._looked = now
                found = list(self._services())
                self._pools = {
                    service.name: self._pools.get(service.name) or Pool(service) for service in found
                }
            pools = list(self._pools.values())
            self._keep_up(sum(pool.status is not None for pool in pools))
            unknown = [pool for pool in pools if anew or (pool.status is None and now - pool.asked > REST_S)]
            if unknown:
                with ThreadPoolExecutor(max_workers=min(16, len(unknown))) as threads:
                    answers = list(threads.map(self._ask, [pool.service for pool in unknown]))
                for pool, answer in zip(unknown, answers, strict=True):
                    self._judge(pool, answer)
            return [pool for pool in pools if pool.status is not None]

    def _keep_up(self, usable: int) -> None:
        """See to it that there are as many pools as there should be, where the workflow starts them."""
        jobs, now, folder = self._config.pool_jobs, time.monotonic(), self._config.remote.folder
        if jobs is None or folder is None or usable >= jobs.nodes or now - self._kept < KEEP_S:
            return
        self._kept = now
        try:
            keep_up(folder)
            self._unkept = 0
        except UserError as error:
            self._unkept += 1
            if self._unkept >= PATIENCE and not usable:
                raise
            logger.warning(f"No pool of desktops could be submitted: {error}")

    def _services(self) -> Iterable[Service]:
        remote, start_s = self._config.remote, self._config.start_timeout_s + SLACK_S
        if remote.folder is not None:
            token = read_secret(remote.folder)
            return [Service(entry["url"], start_s, token) for entry in announced(remote.folder)]
        token = os.environ.get(remote.token_variable, "").strip()
        if not token or not token.isascii() or not token.isprintable():
            raise UserError(
                f"desktop.provider is 'remote', which needs the service's token in {remote.token_variable}; "
                "set it."
            )
        return [Service(url.rstrip("/"), start_s, token) for url in remote.urls]

    def _judge(self, pool: Pool, answer: dict[str, Any] | UserError | DesktopError) -> None:
        if not isinstance(answer, dict):
            pool.leave_out(answer)
        elif answer["draining"]:
            pool.leave_out(DesktopError(f"The pool at {pool.service.name} is about to end."))
        elif (misfit := self._misfit(answer, pool.service.name)) is not None:
            pool.leave_out(UserError(misfit))
        else:
            pool.status, pool.why, pool.draining = answer, None, False
            self._first = self._first or answer

    def _misfit(self, status: dict[str, Any], url: str) -> str | None:
        """Why the desktops of a pool are not those of the config, in one sentence; None if they are."""
        config = self._config
        if status["provider"] != config.remote.lends:
            return (
                f"desktop.remote.lends is '{config.remote.lends}', but {url} lends '{status['provider']}' "
                "desktops; correct the key: results are marked with it."
            )
        if list(config.screen) != status["screen"]:
            return (
                f"desktop.screen is {list(config.screen)}, but the desktops at {url} have {status['screen']};"
                " make both the same."
            )
        for key, there in status["pace"].items():
            if getattr(config, key) != there:
                return (
                    f"desktop.{key} is {getattr(config, key):g}, but the desktops at {url} were started with "
                    f"{there:g}; make both the same."
                )
        ahead = float(status["time"]) - time.time()
        if abs(ahead) > CLOCK_S:
            return (
                f"The clock of {url} is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}, and tasks "
                "ask for the time; set both machines' clocks."
            )
        for key in IDENTITY:
            ours, there = ((self._first or status)["facts"].get(key), status["facts"].get(key))
            if ours != there:
                return (
                    f"The desktops at {url} have another {key} ({there}) than those of the other pools "
                    f"({ours}); give all pools the same."
                )
        return None

    def check(self) -> None:
        """Raises ``UserError``: no token, or no pool whose desktops are those of the config. Pools that the
        workflow starts are there when the first desktop is needed."""
        remote = self._config.remote
        if self._config.pool_jobs is not None:
            if shutil.which("sbatch") is None:
                raise UserError(
                    "desktop.remote.slurm starts pools with Slurm's 'sbatch', which is not on this machine; "
                    "run this on the cluster, or name pools in desktop.remote.pools."
                )
            return
        usable = self._look(anew=True)
        pools = list(self._pools.values())
        if not usable:
            if not pools:
                raise UserError(
                    f"No pool of desktops has announced itself in {remote.folder}; start one "
                    f"(arpo serve-desktops --announce {remote.folder}) or correct desktop.remote.pools."
                )
            raise UserError(" ".join(str(pool.why) for pool in pools))
        lent = sum(int(pool.status["count"]) for pool in usable if pool.status is not None)
        # Of a folder others may come, and one that is left out now may be back.
        if remote.folder is None and len(usable) == len(pools) and self._config.count > lent:
            where = " and ".join(remote.urls)
            raise UserError(
                f"desktop.count is {self._config.count}, but {where} lends only {lent} desktops; lower it."
            )

    def _ask(self, service: Service) -> dict[str, Any] | UserError | DesktopError:
        """What a pool says of itself or why this is not known."""
        url, remote = f"{service.name}/v1/status", self._config.remote
        fix = "start it there (arpo serve-desktops) or correct desktop.remote.pools"
        with requests.Session() as http:
            http.trust_env = False  # no proxy, no redirect: the token goes to the service alone
            http.headers["Authorization"] = f"Bearer {service.token}"
            try:
                answer = http.get(url, timeout=(5, 20), allow_redirects=False, stream=True)
                if answer.status_code == 401:
                    return UserError(
                        f"The desktop service at {service.name} refuses the token; set "
                        f"{remote.token_variable} to the same value on both machines."
                        if remote.folder is None
                        else f"The desktop service at {service.name} refuses the token in {remote.folder}; "
                        "end it, its token was another one."
                    )
                if answer.status_code != 200:
                    return UserError(
                        f"The desktop service {url} answers with status {answer.status_code}; {fix}."
                    )
                status = json.loads(answer.raw.read(MAX_ANSWER, decode_content=True))
                if isinstance(status, dict) and status.get("version", VERSION) != VERSION:
                    return UserError(
                        f"The service at {service.name} is of another version; update both machines."
                    )
                known = {"provider", "facts", "count", "screen", "pace", "lease_s", "time", "draining"}
                if not isinstance(status, dict) or not known <= set(status):
                    raise ValueError("no status of a desktop service")
                return status
            except (requests.RequestException, OSError, ValueError) as error:
                return DesktopError(f"The desktop service {url} does not answer ({brief(error)}); {fix}.")

    # --- desktops -------------------------------------------------------------------------------------

    def do_without(self, pool: Pool | None, why: UserError | DesktopError) -> bool:
        """Leave out a pool; False if there can be no other one.

        One with another version of a task's file, which its status does not tell, is left out for good.
        """
        if pool is None or pool is self._given:
            return False
        pool.leave_out(why)
        if isinstance(why, UserError):
            pool.asked = float("inf")
        return True

    async def _usable(self) -> list[Pool]:
        """The pools that can be used. Others are asked meanwhile: a dead one keeps nobody waiting."""
        if self._given is not None:
            return [self._given]
        if self._search is None or self._search.done():
            self._search = asyncio.create_task(asyncio.to_thread(self._look))
            self._search.add_done_callback(lambda search: search.cancelled() or search.exception())
        usable = [pool for pool in self._pools.values() if pool.status is not None]
        return usable or await asyncio.shield(self._search)

    async def lease(self, desktop: RemoteDesktop) -> tuple[Pool, str]:
        """A pool and a lease of it. Raises ``NoDesktopFree`` if all are taken, ``DesktopError`` if no pool
        can be reached, ``UserError`` if none may be used."""
        until = time.monotonic() + WAIT_S
        while True:
            pools = await self._usable()
            error: Exception | None = None
            for pool in sorted(pools, key=lambda pool: pool.order):
                if pool.full_until > time.monotonic():
                    continue
                try:
                    return pool, await pool.lease(desktop)
                except NoDesktopFree:
                    pool.full_until = time.monotonic() + FULL_S
                except (PoolSilent, PoolDrains, UserError) as why:
                    error = why
                    pool.leave_out(why)
                except DesktopError as failed:
                    error, pool.failed_until = failed, time.monotonic() + REST_S
            if not any(pool.full_until > time.monotonic() for pool in pools):
                error = error or self._none()
                if self._config.pool_jobs is None or isinstance(error, UserError):
                    raise error
            if time.monotonic() > until:
                count = sum(int(pool.status["count"]) for pool in pools if pool.status is not None)
                raise NoDesktopFree(f"all {count} desktops are taken")
            await asyncio.sleep(FULL_S / 2)

    def _none(self) -> Exception:
        """Why there is no pool at all."""
        whys = [pool.why for pool in self._pools.values() if pool.why is not None]
        differ = whys and all(isinstance(why, UserError) for why in whys)
        return (UserError if differ else DesktopError)(
            " ".join(map(str, whys)) or "no pool of desktops has announced itself"
        )

    async def start(self, name: str) -> RemoteDesktop:
        desktop = RemoteDesktop(name, self._config, self)
        await desktop.start()
        return desktop

    def describe(self) -> dict[str, Any]:
        """What the other machine says about its desktops, and that they are remote."""
        if self._first is None:
            self._look()
        if self._first is None:
            raise self._none()
        return {**self._first["facts"], "lent_by": "remote", "lease_s": self._first["lease_s"]}


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    chunks, size = [], 0
    async for chunk in answer.content.iter_chunked(1 << 16):
        size += len(chunk)
        if size > MAX_ANSWER:
            raise ValueError("the answer is too long")
        chunks.append(chunk)
    return b"".join(chunks)


def _error(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"])[:500]
    except (ValueError, KeyError, TypeError):
        return repr(data[:80])
