"""A window that is in the way: runs inside a desktop, as ``python3 -c SOURCE KIND TITLE TEXT``.

KIND is ``notification`` (on top, at the top in the middle, until it is clicked) or ``background_window``
(an ordinary window that stays below all others and never takes the focus). Returns when the window is on
the screen; a process of its own keeps it there. Needs what OSWorld's guest server needs too: python-xlib
and Pillow, Python 3.8.
"""

import os
import sys
import time

from PIL import Image, ImageDraw
from Xlib import X, Xutil
from Xlib.display import Display
from Xlib.error import DisplayError

START_S = 20
LARGE = 300


def main(kind: str, title: str, text: str) -> int:
    """Show the window in another process; 0 once it is on the screen, 1 if it cannot be."""
    ready, said = os.pipe()
    if os.fork():
        os.close(said)
        return 0 if os.read(ready, 1) else 1
    # The desktop waits for the end of this command's output: the window must not hold it open.
    os.close(ready)
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    show(kind, title, text, said)
    return 0


def connect() -> Display:
    """The X server refuses a connection now and then in its first moments."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            return Display()
        except (DisplayError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def show(kind: str, title: str, text: str, said: int | None) -> None:
    """Show the window until it is clicked or closed; write to ``said`` once it is there."""
    display = connect()
    screen = display.screen()
    on_top = kind == "notification"
    x, y, width, height = place(on_top, screen.width_in_pixels, screen.height_in_pixels)
    window = screen.root.create_window(
        x,
        y,
        width,
        height,
        0,
        screen.root_depth,
        override_redirect=on_top,
        event_mask=X.StructureNotifyMask | X.VisibilityChangeMask | (X.ButtonPressMask if on_top else 0),
    )
    pixels = window.create_pixmap(width, height, screen.root_depth)
    pixels.put_pil_image(pixels.create_gc(), 0, 0, paint(width, height, title, text, on_top))
    window.change_attributes(background_pixmap=pixels)
    window.set_wm_name(title)
    window.set_wm_class("notes", "Notes")
    closing = display.intern_atom("WM_DELETE_WINDOW")
    if not on_top:
        window.set_wm_protocols([closing])
        window.set_wm_hints(flags=Xutil.InputHint, input=0)
        window.set_wm_normal_hints(flags=Xutil.USPosition | Xutil.PSize)
        atom, cardinal = display.intern_atom("ATOM"), display.intern_atom("CARDINAL")
        below = display.intern_atom("_NET_WM_STATE_BELOW")
        window.change_property(display.intern_atom("_NET_WM_STATE"), atom, 32, [below])
        window.change_property(display.intern_atom("_NET_WM_USER_TIME"), cardinal, 32, [0])
    window.map()
    while True:
        event = display.next_event()
        if event.type == X.MapNotify and said is not None:
            display.sync()
            os.write(said, b"1")
            os.close(said)
            said = None
        elif event.type == X.VisibilityNotify and on_top and event.state != X.VisibilityUnobscured:
            window.configure(stack_mode=X.Above)
        elif event.type in (X.ButtonPress, X.DestroyNotify) or (
            event.type == X.ClientMessage and event.data[1][0] == closing
        ):
            return


def place(on_top: bool, width: int, height: int) -> tuple[int, int, int, int]:
    """x, y, width and height on a screen of that size, in pixels."""
    if on_top:
        wide, high = min(420, width // 2), max(20, min(84, height // 9))
        return (width - wide) // 2, max(2, height // 40), wide, high
    wide, high = max(60, width // 3), max(40, height // 3)
    return width - wide - width // 20, height - high - height // 12, wide, high


def paint(width: int, height: int, title: str, text: str, on_top: bool) -> Image.Image:
    # Pillow's own font has one size: large windows are painted at half their size.
    scale = 2 if width >= LARGE else 1
    size = (width // scale, height // scale)
    image = Image.new("RGB", size, (46, 46, 52) if on_top else (252, 248, 214))
    draw = ImageDraw.Draw(image)
    ink = (240, 240, 240) if on_top else (40, 40, 40)
    draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=(110, 110, 118))
    draw.text((5, 2), title, fill=ink)
    draw.text((5, 14 if size[1] < 40 else 20), text, fill=ink)
    return image.resize((width, height), resample=0)  # nearest; its name differs between versions of Pillow


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
