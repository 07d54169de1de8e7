"""What can be seen: the X server's framebuffer, mapped into this process, and when it is at rest.

Xvfb keeps the screen in a memory-mapped XWD file (option -fbdir) and draws the mouse pointer into it:
reading it costs no request to the server and no process.
"""

from __future__ import annotations

import asyncio
import io
import mmap
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from Xlib.display import Display
from Xlib.ext import damage

QUIET_S = 0.010
"""After a change, this long without another one means rest (one frame of the browser is drawn at once)."""
FIRST_S = 0.025
"""No change by then and nobody at work: there will be none. A frame is 17 ms."""
POLL_S = 0.003


class Framebuffer:
    """Xvfb's screen as a file."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = struct.unpack(">25I", self._map[:100])
        self.size = (header[4], header[5])
        self._stride = header[12]
        self._offset = header[0] + 12 * header[19]
        if (header[11], header[7]) != (32, 0):
            raise RuntimeError(f"unexpected framebuffer: {header[11]} bits per pixel, byte order {header[7]}")

    def image(self) -> Image.Image:
        """The screen as it is now, with the pointer."""
        pixels = self._map[self._offset : self._offset + self._stride * self.size[1]]
        return Image.frombuffer("RGB", self.size, pixels, "raw", "BGRX", self._stride, 1)

    def png(self) -> bytes:
        """The screen as PNG; level 1 takes a quarter of the time of the usual level 6."""
        file = io.BytesIO()
        self.image().save(file, "PNG", compress_level=1)
        return file.getvalue()


class ChangeWatcher:
    """Knows when the screen last changed, from the X server's DAMAGE events."""

    def __init__(self, display: Display, busy: Callable[[], bool]) -> None:
        """``busy()``: True while a program of the desktop is at work."""
        self._display = display
        self._busy = busy
        self._changed = asyncio.Event()
        self.last_change = 0.0
        display.damage_query_version()
        root = display.screen().root
        self._damage = root.damage_create(damage.DamageReportNonEmpty)
        display.flush()

    def on_event(self, event: Any) -> None:
        """To be called with each event of the display."""
        if event.type == self._display.extension_event.DamageNotify:
            self._display.damage_subtract(self._damage)
            self._display.flush()
            self.last_change = time.monotonic()
            self._changed.set()

    async def settle(self, since: float, limit_s: float) -> None:
        """Return when the screen is at rest, at the latest ``limit_s`` after ``since`` (monotonic)."""
        deadline = since + limit_s
        while True:
            now = time.monotonic()
            calm = self.last_change + QUIET_S if self.last_change > since else since + FIRST_S
            if now >= deadline or (now >= calm and not self._busy()):
                return
            pause = min(max(calm - now, POLL_S), deadline - now)
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), pause)
            except TimeoutError:
                continue
