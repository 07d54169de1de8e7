"""The static site inside the desktop, and the relay to the browser's DevTools port."""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
import socket
import time
import zipfile
from typing import Any

from aiohttp import web

CHUNK = 1 << 16


class StaticSite:
    """Read-only files from zip archives. Nothing else: no listing, no upload, no script."""

    def __init__(self, assets: dict[str, str]) -> None:
        """``assets``: first part of the path -> zip file."""
        self._archives = {name: zipfile.ZipFile(place) for name, place in assets.items()}

    def routes(self) -> list[web.RouteDef]:
        """Endpoint table."""
        return [web.get("/{asset}/{path:.*}", self.file)]

    def read(self, asset: str, path: str) -> bytes:
        """One file. Raises KeyError if there is none."""
        return self._archives[asset].read(path)  # KeyError is zipfile's own, too

    async def file(self, request: web.Request) -> web.Response:
        """GET one file; its type comes from its name."""
        path = request.match_info["path"]
        try:
            body = self.read(request.match_info["asset"], path)
        except KeyError:
            raise web.HTTPNotFound from None
        kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
        headers = {"Content-Type": kind, "Cache-Control": "max-age=86400"}
        return web.Response(body=body, headers=headers)


class Relay:
    """Carries each connection of a listening socket to a TCP port on 127.0.0.1."""

    def __init__(self, port: int, patience_s: float) -> None:
        """``patience_s``: how long to wait for someone to listen on the port."""
        self._port = port
        self._patience_s = patience_s
        self._servers: list[asyncio.base_events.Server] = []

    async def listen(self, **where: Any) -> None:
        """Listen on a Unix socket (``sock=``) or on ``host=``, ``port=``."""
        if "sock" in where and where["sock"].family == socket.AF_UNIX:
            server = await asyncio.start_unix_server(self._connection, sock=where["sock"])
        else:
            server = await asyncio.start_server(self._connection, **where)
        self._servers.append(server)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port)
                break
            except OSError:
                if time.monotonic() > deadline:
                    writer.close()  # no browser: the client sees a closed connection
                    return
                await asyncio.sleep(0.02)
        await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):  # one side closed: so does the other
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    writer.close()
