"""TCP ports on loopback for a desktop that is reached through Unix sockets.

OSWorld's client and evaluators speak TCP; our desktops have no network. A relay is open only while they are
at work, and the kernel chooses its ports: nobody else can be given one in between. On a shared node every
user reaches loopback, so a connection is carried only if our own user made the socket at its other end.
"""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from arpo_replica.base.errors import DesktopError
from arpo_replica.desktop.interface import DesktopAddress
from arpo_replica.desktop.sandbox import unprivileged_id

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
            if _is_ours(writer.get_extra_info("peername"), writer.get_extra_info("sockname")):
                await _carry(path, reader, writer)
        except asyncio.CancelledError:
            return  # the relay closes
        finally:
            connections.discard(task)
            writer.close()

    return await asyncio.start_server(accept, HOST, 0)


def _is_ours(client: tuple[str, int], port: tuple[str, int]) -> bool:
    """True if the socket that connected from address ``client`` to our ``port`` is this user's, or that of
    the user as whom the evaluators run.

    The kernel's table of connections names the maker of each: OSWorld's code need not pass on any secret.
    """
    maker = owner_of(Path("/proc/self/net/tcp").read_text(), client, port)
    return maker is not None and maker in (os.geteuid(), unprivileged_id(0))


def owner_of(table: str, near: tuple[str, int], far: tuple[str, int]) -> int | None:
    """User id of the socket at ``near`` that is connected to ``far``, by the text of /proc/net/tcp.

    None if there is none, or if nobody holds it any more (inode 0): the id then is root's, whoever made it.
    """
    for line in table.splitlines()[1:]:
        fields = line.split()
        if fields[1:3] == [_in_table(near), _in_table(far)] and fields[9] != "0":
            return int(fields[7])
    return None


def _in_table(address: tuple[str, int]) -> str:
    """An IPv4 address as the table has it: the bytes of the host in the machine's order, in hexadecimal."""
    host = int.from_bytes(socket.inet_aton(address[0]), sys.byteorder)
    return f"{host:08X}:{address[1]:04X}"


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
