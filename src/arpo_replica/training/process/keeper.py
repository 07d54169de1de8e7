"""Desktops in a process of their own: they start while the trainer still imports.

    python -m arpo_replica.training.process.keeper job.json         holds them (started by ``launch``)
    KeeperProvider(socket, screen)                          a provider for the agent loop

A connection to the keeper's socket is one desktop, from a stock that is started beforehand, one at a time
(the trainer's imports use one core; eight browsers at once would take both). Closing the connection closes
the desktop. A message is a line of JSON, which says how many bytes follow it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arpo_replica.actions.types import Action, from_json
from arpo_replica.base.errors import DesktopError
from arpo_replica.desktop.interface import Desktop, DesktopProvider
from arpo_replica.tasks.model import Task
from arpo_replica.training.desktops import load_provider
from arpo_replica.training.job import Job

LINE_LIMIT = 16 * 1024 * 1024
"""Longest line of JSON; a task file is the longest thing in one."""


class Keeper:
    """Serves desktops; ``stock`` of them are started beforehand."""

    def __init__(self, provider: DesktopProvider, stock: int) -> None:
        self.provider = provider
        self.started = 0
        self.stock: list[asyncio.Task[Desktop]] = []
        turn = asyncio.Lock()

        async def start_in_turn() -> Desktop:
            async with turn:
                return await self._start()

        for _ in range(stock):
            self.stock.append(asyncio.create_task(start_in_turn()))

    async def _start(self) -> Desktop:
        self.started += 1
        return await self.provider.start(f"train-{self.started}")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its first request to its end."""
        desktop: Desktop | None = None
        try:
            async for request in requests(reader):
                try:
                    if desktop is None:
                        desktop = await (self.stock.pop(0) if self.stock else self._start())
                    answer, payload = await apply(desktop, request)
                except DesktopError as error:
                    answer, payload = {"error": str(error)}, b""
                await send(writer, answer, payload)
        except ConnectionError:
            pass  # the other side is gone: so is its desktop
        finally:
            if desktop is not None:
                await desktop.close()
            writer.close()

    async def close(self) -> None:
        """Close the desktops that nobody asked for."""
        for waiting in self.stock:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, DesktopError):
                await (await waiting).close()


async def apply(desktop: Desktop, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Carry a request out; the answer and its bytes."""
    match request["call"]:
        case "start":
            return {}, b""
        case "reset":
            await desktop.reset(Task(**request["task"]))
        case "screenshot":
            return {}, await desktop.screenshot()
        case "act":
            await desktop.act(from_json(request["action"]), request["id"])
        case "evaluate":
            last = None if request["action"] is None else from_json(request["action"])
            return {"score": await desktop.evaluate(Task(**request["task"]), last)}, b""
        case unknown:
            raise DesktopError(f"the keeper has no call '{unknown}'")
    return {}, b""


async def requests(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The requests of a connection until its end."""
    while line := await reader.readline():
        yield json.loads(line)


async def send(writer: asyncio.StreamWriter, message: dict[str, Any], payload: bytes = b"") -> None:
    """Write one message."""
    writer.write(json.dumps({**message, "bytes": len(payload)}).encode() + b"\n" + payload)
    await writer.drain()


class KeptDesktop:
    """A desktop of the keeper; see ``arpo_replica.desktop.interface.Desktop``."""

    def __init__(
        self, screen: tuple[int, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.screen = screen
        self._reader, self._writer = reader, writer

    async def call(self, call: str, **values: Any) -> tuple[dict[str, Any], bytes]:
        """Ask and wait. Raises ``DesktopError``, also if the keeper is gone.

        A call that is cancelled leaves its answer behind, so its connection is of no further use.
        """
        done = False
        try:
            await send(self._writer, {"call": call, **values})
            answer = json.loads(await self._reader.readuntil())
            payload = await self._reader.readexactly(answer["bytes"])
            done = True
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise DesktopError(f"the keeper of the desktops is gone: {error!r}") from error
        finally:
            if not done:
                self._writer.close()
        if "error" in answer:
            raise DesktopError(answer["error"])
        return answer, payload

    async def reset(self, task: Task) -> None:
        """See the interface."""
        await self.call("reset", task=asdict(task))

    async def screenshot(self) -> bytes:
        """See the interface."""
        return (await self.call("screenshot"))[1]

    async def act(self, action: Action, action_id: str) -> None:
        """See the interface."""
        await self.call("act", action=action.to_json(), id=action_id)

    async def evaluate(self, task: Task, last_action: Action | None) -> float:
        """See the interface."""
        action = None if last_action is None else last_action.to_json()
        answer, _ = await self.call("evaluate", task=asdict(task), action=action)
        return float(answer["score"])

    async def close(self) -> None:
        """See the interface."""
        with contextlib.suppress(OSError):
            self._writer.close()
            await self._writer.wait_closed()


class KeeperProvider:
    """Desktops of the keeper; see ``arpo_replica.desktop.interface.DesktopProvider``."""

    def __init__(self, path: Path, screen: tuple[int, int]) -> None:
        """``path``: the keeper's socket."""
        self.path, self.screen = path, screen

    def check(self) -> None:
        """Nothing to check: the keeper's own provider was checked before."""

    async def start(self, name: str) -> Desktop:
        """See the interface."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(self.path), limit=LINE_LIMIT)
        except OSError as error:
            raise DesktopError(f"the keeper of the desktops does not answer: {error}") from error
        desktop = KeptDesktop(self.screen, reader, writer)
        try:
            await desktop.call("start")
        except BaseException:
            await desktop.close()
            raise
        return desktop

    def describe(self) -> dict[str, Any]:
        """See the interface."""
        return {"provider": "keeper"}


def socket_path(job: Job) -> Path:
    """Where the keeper of a job listens."""
    return job.scratch / "desktops.sock"


async def keep(job: Job) -> None:
    """Serve until killed."""
    config = job.config.desktop
    stock = min(config.count, job.recipe.tasks_per_step * job.recipe.rollouts_per_task)
    keeper = Keeper(load_provider(job.provider, config), stock)
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o077)  # the socket is ours alone; its folder must be passable for the desktops' user
    listener.bind(str(socket_path(job)))
    os.umask(mask)
    server = await asyncio.start_unix_server(keeper.serve, sock=listener, limit=LINE_LIMIT)
    try:
        await server.serve_forever()
    finally:
        await keeper.close()


def main() -> None:
    """Keep the desktops of the job in the first argument."""
    asyncio.run(keep(Job.model_validate_json(Path(sys.argv[1]).read_bytes())))


if __name__ == "__main__":
    main()
