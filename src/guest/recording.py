"""Films of the screen, as OSWorld's client asks for them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from pathlib import Path

from aiohttp import web

from .server import failure
from .session import Session

START_S = 30.0
FILE = "recording.mp4"


class Recorder:
    """Handlers of /start_recording and /end_recording."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, request: web.Request) -> web.Response:
        """Film the screen with ffmpeg until /end_recording."""
        del request
        if self._process is not None and self._process.returncode is None:
            return web.json_response({"status": "error", "message": "a recording runs already"}, status=400)
        width, height = self.session.config.screen
        command = ["ffmpeg", "-y", "-f", "x11grab", "-draw_mouse", "1", "-s", f"{width}x{height}"]
        command += ["-framerate", "30", "-i", self.session.environment["DISPLAY"]]
        command += ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-flush_packets", "1", str(self._film())]
        self._film().unlink(missing_ok=True)
        try:
            self._process = await self.session.spawn(command)
        except OSError as problem:
            return failure(problem)
        deadline = time.monotonic() + START_S
        while not self._film().exists() or self._film().stat().st_size == 0:
            if self._process.returncode is not None or time.monotonic() > deadline:
                return failure(RuntimeError("ffmpeg does not film"))
            await asyncio.sleep(0.05)
        return web.json_response({"status": "success", "message": "Started recording"})

    async def end(self, request: web.Request) -> web.Response:
        """The film as mp4."""
        del request
        process, self._process = self._process, None
        if process is None:
            return web.json_response({"status": "error", "message": "no recording runs"}, status=400)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        await process.wait()
        try:
            return web.Response(body=self._film().read_bytes(), content_type="video/mp4")
        except OSError as problem:
            return failure(problem)

    def _film(self) -> Path:
        return self.session.private / FILE
