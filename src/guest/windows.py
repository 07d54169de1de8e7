"""Windows by the EWMH conventions (specifications.freedesktop.org/wm-spec), and the selections."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from Xlib import X, Xatom, Xutil
from Xlib.display import Display
from Xlib.error import XError
from Xlib.protocol import event as xevent
from Xlib.protocol import request
from Xlib.xobject.drawable import Window

SELECTIONS = ("PRIMARY", "SECONDARY", "CLIPBOARD")


@dataclass(frozen=True)
class WindowInfo:
    """One window of the window manager's list."""

    id: int
    title: str
    wm_class: tuple[str, ...]


class Windows:
    """The windows of the desktop."""

    def __init__(self, display: Display, events: Display, fill: tuple[int, int] | None) -> None:
        """``display`` is asked, ``events`` tells: an answer awaited on the latter would hide its events.

        ``fill``: every new window that is full-screen gets this size, whatever least size it asks for.
        """
        self._display = display
        self._root = display.screen().root
        self._fill = fill
        self._seen: set[int] = set()
        self._atoms: dict[str, int] = {}
        self._events = events
        events.screen().root.change_attributes(event_mask=X.PropertyChangeMask)
        events.flush()

    def _atom(self, name: str) -> int:
        if name not in self._atoms:
            self._atoms[name] = self._display.intern_atom(name)
        return self._atoms[name]

    def _property(self, window: Window, name: str) -> Any:
        try:
            value = window.get_full_property(self._atom(name), X.AnyPropertyType)
        except XError:
            return None  # the window is gone
        return None if value is None else value.value

    def manager_ready(self) -> bool:
        """True once a window manager has introduced itself."""
        return self._property(self._root, "_NET_SUPPORTING_WM_CHECK") is not None

    def _ids(self) -> list[int]:
        return list(self._property(self._root, "_NET_CLIENT_LIST") or [])

    def on_event(self, event: Any) -> None:
        """To be called with each event of the display."""
        if self._fill is None or event.type != X.PropertyNotify:
            return
        if event.atom == Xatom.WM_NORMAL_HINTS:
            self._fit(event.window.id, self._fill)
        elif event.atom == self._atom("_NET_CLIENT_LIST"):
            ids = set(self._ids())
            for number in ids - self._seen:
                window = self._events.create_resource_object("window", number)
                window.change_attributes(event_mask=X.PropertyChangeMask, onerror=_gone)
                self._events.flush()
                self._fit(number, self._fill)
            self._seen = ids

    def _fit(self, window_id: int, size: tuple[int, int]) -> None:
        # Chromium asks for at least 500 pixels and openbox obeys, full screen or not: drop the request.
        window = self._display.create_resource_object("window", window_id)
        try:
            hints = window.get_wm_normal_hints()
            if hints is None or not hints.flags & Xutil.PMinSize or hints.min_width <= size[0]:
                return
            hints.flags &= ~Xutil.PMinSize
            window.set_wm_normal_hints(hints, onerror=_gone)
            window.configure(width=size[0], height=size[1], onerror=_gone)
            self._display.flush()
        except XError:
            return  # the window is gone

    def all(self) -> list[WindowInfo]:
        """The managed windows, oldest first."""
        found = []
        for number in self._ids():
            window = self._display.create_resource_object("window", number)
            title = self._property(window, "_NET_WM_NAME") or self._property(window, "WM_NAME") or b""
            try:
                wm_class = window.get_wm_class() or ()
            except XError:
                continue
            text = title.decode("utf-8", "replace") if isinstance(title, bytes) else str(title)
            found.append(WindowInfo(number, text, tuple(wm_class)))
        return found

    def docks(self) -> list[int]:
        """Bars and docks."""
        return [number for number in self._ids() if "DOCK" in self._kinds(number)]

    def ordinary(self) -> list[int]:
        """The windows that programs have opened: no panel, no desktop background."""
        return [number for number in self._ids() if not self._kinds(number) & {"DOCK", "DESKTOP", "SPLASH"}]

    def _kinds(self, number: int) -> set[str]:
        window = self._display.create_resource_object("window", number)
        found = self._property(window, "_NET_WM_WINDOW_TYPE")
        known = ("DOCK", "DESKTOP", "SPLASH")
        return {kind for kind in known if self._atom(f"_NET_WM_WINDOW_TYPE_{kind}") in (found or ())}

    def find(self, name: str, strict: bool, by_class: bool) -> WindowInfo | None:
        """First window whose title (or class) contains the name, or equals it if ``strict``."""
        for window in self.all():
            texts = [*window.wm_class, ".".join(window.wm_class)] if by_class else [window.title]
            for text in texts:
                if text == name if strict else name.lower() in text.lower():
                    return window
        return None

    def activate(self, window: WindowInfo) -> None:
        """Bring it to the front and give it the focus."""
        self._message(window.id, "_NET_ACTIVE_WINDOW", [2, X.CurrentTime, 0, 0, 0])

    def close(self, window: WindowInfo) -> None:
        """Ask its program to close it."""
        self._message(window.id, "_NET_CLOSE_WINDOW", [X.CurrentTime, 2, 0, 0, 0])

    def size(self, window: WindowInfo) -> tuple[int, int]:
        """Width and height; (0, 0) if it is gone."""
        try:
            geometry = self._display.create_resource_object("window", window.id).get_geometry()
        except XError:
            return 0, 0
        return geometry.width, geometry.height

    def _message(self, window_id: int, name: str, data: list[int]) -> None:
        window = self._display.create_resource_object("window", window_id)
        message = xevent.ClientMessage(window=window, client_type=self._atom(name), data=(32, data))
        mask = X.SubstructureRedirectMask | X.SubstructureNotifyMask
        self._root.send_event(message, event_mask=mask)
        self._display.flush()

    async def wait_for_count(self, count: int, limit_s: float) -> bool:
        """True once there are just so many windows and no menu; False if not so after ``limit_s``."""
        deadline = time.monotonic() + limit_s
        while len(self._ids()) != count or self._menus():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.005)
        return True

    def _menus(self) -> list[int]:
        """Visible windows that the window manager does not manage: menus, tooltips, bubbles."""
        width, height = self._display.screen().width_in_pixels, self._display.screen().height_in_pixels
        found = []
        for window in self._root.query_tree().children:
            try:
                attributes = window.get_attributes()
                if not attributes.override_redirect or attributes.map_state != X.IsViewable:
                    continue
                box = window.get_geometry()
            except XError:
                continue  # the window is gone
            # openbox keeps its own windows outside the screen, or one pixel large in its corner.
            inside = box.x + box.width > 0 and box.y + box.height > 0 and box.x < width and box.y < height
            if inside and box.width * box.height > 1:
                found.append(window.id)
        return found

    def clear_selections(self) -> None:
        """Forget the clipboard and the selected text."""
        for name in SELECTIONS:
            request.SetSelectionOwner(
                display=self._display.display,
                window=X.NONE,
                selection=self._atom(name),
                time=X.CurrentTime,
            )
        self._display.sync()


def _gone(*error: Any) -> None:
    """For requests about a window that may have been closed meanwhile."""
