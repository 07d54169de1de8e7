"""TCP ports on loopback for a desktop that is reached through Unix sockets.

OSWorld's client and evaluators speak TCP; our desktops have no network. A relay is open only while they are
at work, and the kernel chooses its ports: nobody else can be given one in between.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from arpo_replica.base.errors import DesktopError
from arpo_replica.desktop.address import DesktopAddress

HOST = "127.0.0.1"
CHUNK = 1 << 16


@asynccontextmanager
async def relay(server: str, chromium: str, vlc: str) -> AsyncIterator[DesktopAddress]:
    """Open a port for each of the three Unix sockets (their paths). Raises ``DesktopError``."""
    connections = set[asyncio.Task[None]]()
    servers: list[asyncio.base_events.Server] = []
    try:
        try:
            for path in (server, chromium, vlc):
                servers.append(await _listen(path, connections))
        except OSError as error:
            raise DesktopError(f"no port on {HOST} could be opened: {error}") from error
        yield DesktopAddress(HOST, *(one.sockets[0].getsockname()[1] for one in servers))
    finally:
        for one in servers:
            one.close()
        open_ones = list(connections)
        for connection in open_ones:
            connection.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)


async def _listen(path: str, connections: set[asyncio.Task[None]]) -> asyncio.base_events.Server:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await _carry(path, reader, writer)
        except asyncio.CancelledError:
            return  # the relay closes
        finally:
            connections.discard(task)
            writer.close()

    return await asyncio.start_server(accept, HOST, 0)


async def _carry(path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        there_reader, there_writer = await asyncio.open_unix_connection(path)
    except OSError:
        return  # nobody there: the client sees a closed connection
    try:
        await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))
    finally:
        there_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry one direction; its end is passed on, the other direction may go on."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
