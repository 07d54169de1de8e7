"""Provider ``remote``: desktops that another process lends (``remote_service``), here or on another machine.

Nothing is ever sent twice. A desktop whose service does not answer, or that was taken away because this
process was not heard of in time, raises ``DesktopError``: the episode is an ``env_error``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import requests

from arpo_replica.actions.types import Action
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.desktop.client import typing_s
from arpo_replica.desktop.interface import FRESH_S, Score
from arpo_replica.providers.remote_service import MAX_ANSWER, VERSION, WAIT_S, TaskName
from arpo_replica.tasks.model import Task

logger = logging.getLogger(__name__)
LONG_S = 1_800.0
"""Longest time of a reset or an evaluation; the episode's own limit is usually shorter."""
SLACK_S = 10.0
"""What the network may add to a limit of the desktop's."""


@dataclass(frozen=True)
class Service:
    """Where a service of desktops listens."""

    name: str
    """What error sentences call it: its URL, for one on a network."""
    start_s: float
    """Longest time that the start of a desktop may take once there is room for it."""
    token: str = ""
    socket: Path | None = None
    """Of a service on this machine. It needs no token: the socket's mode says who gets in."""

    def session(self) -> aiohttp.ClientSession:
        """A client of it, to be closed."""
        connector = None if self.socket is None else aiohttp.UnixConnector(str(self.socket))
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return aiohttp.ClientSession(connector=connector, headers=headers)

    @property
    def base(self) -> str:
        """What a call's path is put behind."""
        return self.name if self.socket is None else "http://localhost"


class RemoteDesktop:
    """One leased desktop; see ``arpo_replica.desktop.interface.Desktop``."""

    def __init__(self, name: str, config: DesktopConfig, service: Service) -> None:
        self.name = name
        self.screen: tuple[int, int] = config.screen
        self._config = config
        self._service = service
        self._http: aiohttp.ClientSession | None = None
        self._beat: asyncio.Task[None] | None = None
        self._lease = ""
        self._lost = ""
        self._seen: tuple[float, bytes] | None = None
        """When the last action's screenshot came, and the screenshot."""

    async def start(self) -> None:
        """Wait for a free desktop and lease it. Raises ``DesktopError`` after twice the start's limit."""
        self._http = self._service.session()
        deadline = time.monotonic() + 2 * self._config.start_timeout_s
        try:
            while True:
                left = deadline - time.monotonic()
                body = {"name": self.name, "screen": self.screen, "wait_s": max(0.0, min(WAIT_S, left))}
                try:
                    answer = json.loads(await self._post("/v1/lease", WAIT_S + self._service.start_s, body))
                    break
                except _AllTaken as error:
                    if time.monotonic() > deadline:
                        raise DesktopError(f"{self._service.name}: {error}") from None
            self._lease = str(answer["lease"])
            self._beat = asyncio.create_task(self._heartbeats(float(answer["lease_s"])))
        except BaseException as error:
            await self._disconnect()
            if isinstance(error, KeyError | ValueError | TypeError):
                raise DesktopError(
                    f"{self._service.name} answered a call for a desktop with nonsense"
                ) from error
            raise

    async def _heartbeats(self, lease_s: float) -> None:
        """Say that this process lives; notice when the desktop was taken away."""
        while not self._lost:
            await asyncio.sleep(lease_s / 4)
            with contextlib.suppress(DesktopError, ValueError, KeyError, TypeError):
                answer = await self._post("/v1/heartbeat", lease_s / 2, {"leases": [self._lease]})
                if self._lease not in json.loads(answer)["alive"]:
                    self._lost = "its lease has ended"

    async def reset(self, task: Task) -> None:
        """Also raises ``UserError`` if the service has another version of the task's file."""
        self._seen = None
        await self._call("reset", LONG_S, task=TaskName.of(task).model_dump())

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
            raise DesktopError(f"{self._service.name} gave no score: {data[:80]!r}") from error

    async def close(self) -> None:
        """The service closes the desktop, now or when the lease runs out."""
        self._seen = None
        try:
            if self._lease and not self._lost:
                await self._call("close", SLACK_S)
        except (DesktopError, UserError) as error:
            logger.info("desktop %s was not given back: %s", self.name, error)
        finally:
            self._lost = self._lost or "it is closed"
            await self._disconnect()

    async def _disconnect(self) -> None:
        beat, self._beat = self._beat, None
        if beat is not None:
            beat.cancel()
            await asyncio.wait([beat])
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def _call(self, name: str, timeout_s: float, **body: Any) -> bytes:
        if self._lost or not self._lease:
            raise DesktopError(f"desktop {self.name} is gone: {self._lost or 'it was never started'}")
        return await self._post(f"/v1/desktops/{self._lease}/{name}", timeout_s, body)

    async def _post(self, path: str, timeout_s: float, body: dict[str, Any]) -> bytes:
        """Send one call, once. aiohttp never repeats a POST by itself."""
        if self._http is None:
            raise DesktopError(f"desktop {self.name} is closed")
        service, what = self._service, path.rsplit("/", 1)[-1]
        try:
            async with self._http.post(
                service.base + path,
                json=body,
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=SLACK_S),
                allow_redirects=False,
            ) as answer:
                data = await _read(answer)
        except TimeoutError as error:
            raise DesktopError(f"{service.name} did not answer {what} within {timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise DesktopError(f"{service.name} did not answer {what}: {_brief(error)}") from error
        if answer.status == 200:
            return data
        text = f"{service.name} refused {what} with {answer.status}: {_error(data)}"
        if answer.status == 404:
            self._lost = "its lease has ended"
        if answer.status == 503:
            raise _AllTaken(text)
        if answer.status in (401, 409):
            raise UserError(f"{text}.")
        raise DesktopError(text)


class _AllTaken(DesktopError):
    """The service has no free desktop at the moment."""


class RemoteProvider:
    """Leases desktops; see ``arpo_replica.desktop.interface.DesktopProvider``."""

    def __init__(self, config: DesktopConfig, service: Service | None = None) -> None:
        """``service``: another one than the config's."""
        self._config = config
        self._given = service
        self._status: dict[str, Any] | None = None

    def _service(self) -> Service:
        """Raises ``UserError`` without a token."""
        if self._given is not None:
            return self._given
        remote, start_s = self._config.remote, self._config.start_timeout_s + SLACK_S
        token = os.environ.get(remote.token_variable, "").strip()
        if not token or not token.isascii() or not token.isprintable():
            raise UserError(
                f"desktop.provider is 'remote', which needs the service's token in {remote.token_variable}; "
                "set it."
            )
        return Service(remote.url.rstrip("/"), start_s, token)

    def check(self) -> None:
        """Raises ``UserError``: no token, no service, or one whose desktops are not those of the config."""
        config, url = self._config, self._config.remote.url
        status = self._status = self._ask()
        if status.get("version") != VERSION:
            raise UserError(f"The service at {url} is of another version; update both machines.")
        if status["provider"] != config.remote.lends:
            raise UserError(
                f"desktop.remote.lends is '{config.remote.lends}', but {url} lends '{status['provider']}' "
                "desktops; correct the key: results are marked with it."
            )
        if list(config.screen) != status["screen"]:
            raise UserError(
                f"desktop.screen is {list(config.screen)}, but the desktops at {url} have {status['screen']};"
                " make both the same."
            )
        for key, there in status["pace"].items():
            if getattr(config, key) != there:
                raise UserError(
                    f"desktop.{key} is {getattr(config, key):g}, but the desktops at {url} were started with "
                    f"{there:g}; make both the same."
                )
        if config.count > status["count"]:
            raise UserError(
                f"desktop.count is {config.count}, but {url} lends only {status['count']} desktops; lower it."
            )

    def _ask(self) -> dict[str, Any]:
        service = self._service()
        url = f"{service.name}/v1/status"
        fix = "start it there (arpo serve-desktops) or correct desktop.remote.url"
        with requests.Session() as http:
            http.trust_env = False  # no proxy, no redirect: the token goes to the service alone
            http.headers["Authorization"] = f"Bearer {service.token}"
            try:
                answer = http.get(url, timeout=20, allow_redirects=False, stream=True)
                if answer.status_code == 401:
                    raise UserError(
                        f"The desktop service at {self._config.remote.url} refuses the token; set "
                        f"{self._config.remote.token_variable} to the same value on both machines."
                    )
                if answer.status_code != 200:
                    raise UserError(
                        f"The desktop service {url} answers with status {answer.status_code}; {fix}."
                    )
                status = json.loads(answer.raw.read(MAX_ANSWER, decode_content=True))
                known = {"provider", "facts", "count", "screen", "lease_s"}
                if not isinstance(status, dict) or not known <= set(status):
                    raise ValueError("no status of a desktop service")
            except (requests.RequestException, OSError, ValueError) as error:
                raise UserError(
                    f"The desktop service {url} does not answer ({_brief(error)}); {fix}."
                ) from None
        return status

    async def start(self, name: str) -> RemoteDesktop:
        desktop = RemoteDesktop(name, self._config, self._service())
        await desktop.start()
        return desktop

    def describe(self) -> dict[str, Any]:
        """What the other machine says about its desktops, and that they are remote."""
        if self._status is None:
            self._status = self._ask()
        return {**self._status["facts"], "lent_by": "remote", "lease_s": self._status["lease_s"]}


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


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
