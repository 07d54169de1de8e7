"""A guest server of OSWorld's HTTP API without a desktop behind it, for tests of its clients."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

from arpo_replica.desktop.interface import DesktopAddress
from fakes import png

SCREEN = (320, 240)


class FakeGuest:
    """Answers every endpoint. ``answers[path]`` is a function of the body that gives a response (or a
    coroutine of one); ``calls`` are the requests so far: (method, path, JSON body or text)."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host, self.port = host, port
        self.calls: list[tuple[str, str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.uploads: list[bytes] = []
        self.answers: dict[str, Callable[[Any], Any]] = {}
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> FakeGuest:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """The desktop dies."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    @property
    def address(self) -> DesktopAddress:
        """Where it listens; nothing listens at the other ports."""
        return DesktopAddress(self.host, self.port, 1, 1)

    def count(self, path: str) -> int:
        """Requests of that path so far."""
        return sum(called == path for _, called, _ in self.calls)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if request.content_type.startswith("multipart/"):
            body: Any = None
            self.uploads.append(await request.read())
        elif request.content_type == "application/x-www-form-urlencoded":
            body = dict(await request.post())
        else:
            text = await request.text()
            body = json.loads(text) if text.startswith("{") else text
        self.calls.append((request.method, path, body))
        if path in self.answers:
            chosen = self.answers[path](body)
            return await chosen if inspect.isawaitable(chosen) else chosen
        if path == "/screenshot":
            return web.Response(body=png(size=SCREEN), content_type="image/png")
        if path == "/screen_size":
            return web.json_response({"width": SCREEN[0], "height": SCREEN[1]})
        if path == "/file":
            data = self.files.get(body["file_path"])
            return web.Response(status=404) if data is None else web.Response(body=data)
        if path == "/terminal":
            return web.json_response({"output": "", "status": "success"})
        return executed()


def executed(output: str = "", code: int = 0, error: str = "") -> web.Response:
    """The answer of ``/execute``."""
    return web.json_response({"status": "success", "output": output, "error": error, "returncode": code})
