"""What can be seen: the X server's framebuffer, mapped into this process, and when it is at rest.

Xvfb keeps the screen in a memory-mapped XWD file (option -fbdir) and draws the mouse pointer into it:
reading it costs no request to the server and no process.
"""

from __future__ import annotations

import asyncio
import math
import mmap
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from Xlib.display import Display
from Xlib.ext import damage

from .png import PngEncoder
from .processes import is_asleep, processor_clock

FIRST_S = 0.025
"""No change by then and nobody at work: there will be none. A frame of the browser takes 17 ms."""
QUIET_S = 0.010
"""After a change, at least this long without another one means rest."""
MOST_QUIET_S = 0.040
PROBE_S = 0.005
"""Twice in a row, this far apart, nobody may be at work: one look can miss who is just being woken."""
LATENESS = 3
"""On a busy machine everything takes longer: waits grow by so many times the delay of our own timers."""


class Framebuffer:
    """Xvfb's screen as a file."""

    def __init__(self, path: Path, server: int) -> None:
        """``server``: the process that draws into it."""
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = struct.unpack(">25I", self._map[:100])
        self.size = (header[4], header[5])
        self._stride = header[12]
        self._offset = header[0] + 12 * header[19]
        if (header[11], header[7]) != (32, 0):
            raise RuntimeError(f"unexpected framebuffer: {header[11]} bits per pixel, byte order {header[7]}")
        self._encoder = PngEncoder(self.size, self._stride)
        self._server, self._clock = server, processor_clock(server)
        self._kept: tuple[int, bytes] = (-1, b"")

    def png(self) -> bytes:
        """The screen as it is now, with the pointer, as PNG."""
        # Who has not run has drawn nothing, the pointer included. The clock leaves out the present turn on a
        # processor, so a server that is on one, or waits for one, may have drawn since.
        asleep, worked = is_asleep(self._server), time.clock_gettime_ns(self._clock)
        if not asleep or self._kept[0] != worked:
            self._kept = (worked, self._encoder.encode(self._map, self._offset))
        return self._kept[1]


class ChangeWatcher:
    """Knows when the screen last changed, from the X server's DAMAGE events."""

    def __init__(self, display: Display, busy: Callable[[], bool], at_rest: Callable[[], object]) -> None:
        """``busy()``: True while a program of the desktop is at work; ``at_rest()``: what can be done
        with the screen while a second look has yet to confirm the first."""
        self._display = display
        self._busy = busy
        self._at_rest = at_rest
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
        late, idle = 0.0, 0
        first, seen = 0.0, since
        while (now := time.monotonic()) < deadline:
            if self.last_change > seen:
                first, seen, idle = first or self.last_change - since, self.last_change, 0
            # A program that was slow to change the screen once is slow to do it again.
            quiet = max(QUIET_S, min(first / 2, MOST_QUIET_S)) if first else FIRST_S
            calm = seen + quiet + LATENESS * late
            look = calm - PROBE_S
            if now >= look:
                idle = 0 if self._busy() else idle + 1
                if idle >= 2 and now >= calm:
                    return
                if idle == 1:
                    self._at_rest()
                look = now + PROBE_S
            # The event loop's timers round up to a millisecond; that is no lateness.
            now = time.monotonic()
            pause = math.ceil(1000 * max(0.0, min(look, deadline) - now)) / 1000
            self._changed.clear()
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                late = max(late, time.monotonic() - now - pause)
