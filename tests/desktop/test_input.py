"""The real desktop: drags and text that reach the page, whatever came before; how long actions last."""

import asyncio
import itertools
import random
import time
import unicodedata

import pytest
from desktop_helpers import GREEN, RED, gone, image, page_task, processes_of, provider

from arpo_replica.actions.types import Click, Drag, Hotkey, TypeText, Wait
from arpo_replica.base.errors import DesktopError

pytestmark = pytest.mark.desktop
WIDE = (1280, 720)
SITE = "http://localhost:8000/site"
numbers = itertools.count()


async def act(desktop, action):
    await desktop.act(action, f"action {next(numbers)}")


async def opened(page, **settings):
    desktop = await provider(**settings).start("test")
    await desktop.reset(page_task(f"{SITE}/{page}"))
    return desktop


async def top_of_page(desktop):
    """Where the page begins on the screen."""
    return await desktop.devtools.evaluate("outerHeight - innerHeight")


@pytest.mark.parametrize(
    ("distance", "width"),
    [(100, 40), (240, 40), (400, 120), (400, 10), (1000, 40), (45, 8)],
    ids=lambda value: f"{value}px",
)
async def test_a_dragged_element_drops_on_its_target(distance, width):
    desktop = await opened("drag.html", screen=WIDE)
    try:
        y = 100 + await top_of_page(desktop)
        for _ in range(3):
            await desktop.devtools.evaluate(f"place({distance}, {width})")
            await act(desktop, Drag(50, y, 50 + distance, y))
            for _ in range(40):  # the browser tells the page of a drop a moment later
                if (seen := await desktop.devtools.evaluate("seen.join()")) == "drop":
                    break
                await asyncio.sleep(0.05)
            assert seen == "drop"
    finally:
        await desktop.close()


# -- text -----------------------------------------------------------------------------------------

RUSSIAN = "Съешь ещё этих мягких французских булок, да выпей чаю"
GREEK = "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία"
SCRIPTS = [
    (0xA1, 0x600),
    (0x600, 0x1100),
    (0x1100, 0x3000),
    (0x3000, 0xD800),
    (0xE000, 0xFFFE),
    (0x10000, 0x30000),
]


def random_text(dice):
    """A mixture of ASCII and characters of all scripts, dead accents and private ones among them."""
    text = ""
    while len(text) < dice.randrange(1, 90):
        character = chr(dice.randrange(*dice.choice(SCRIPTS)))
        if unicodedata.category(character) not in ("Cc", "Cn"):
            text += character + dice.choice(["", "", "a", "Z ", "7,"])
    return text


@pytest.fixture(scope="module")
def texts():
    dice = random.Random(20)
    return [
        ["Hello, my name is Bob. ", RUSSIAN, GREEK],
        ["a" * 4096, "".join(map(chr, range(0x4E00, 0x4E00 + 1000)))],
        # For GTK's input method the last 16 bits of these were Multi_key and dead accents.
        ["ab", "mail＠example ﹐﹕ ﹴ \U0010ff20", "aeiou"],
        *([random_text(dice) for _ in range(8)] for _ in range(3)),
    ]


async def test_text_of_any_script_arrives_whatever_was_typed_before(texts):
    desktop = await opened("page.html", screen=WIDE)
    try:
        y = 80 + await top_of_page(desktop)
        for group in texts:
            await desktop.devtools.evaluate("document.getElementById('text').value = ''")
            await act(desktop, Click(80, y))
            for text in group:
                await act(desktop, TypeText(text))
                await act(desktop, Hotkey(("ctrl", "End")))
                await act(desktop, Hotkey(("shift",)))
            typed = await desktop.devtools.evaluate("document.getElementById('text').value")
            assert typed == "".join(group)
        assert await desktop.devtools.evaluate("location.pathname") == "/site/page.html"
    finally:
        await desktop.close()


# -- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pause", "colour"), [(0, RED), (2, GREEN)])
async def test_what_a_timer_changes_is_seen_if_the_pause_is_long_enough(pause, colour):
    desktop = await opened("late.html?ms=1500", pause_seconds=pause)
    try:
        began = time.monotonic()
        await act(desktop, Click(60, 60))
        assert image(await desktop.screenshot()).getpixel((20, 20)) == colour
        assert (time.monotonic() - began >= 2) == (pause == 2)
    finally:
        await desktop.close()


async def test_wait_lasts_as_long_as_the_config_says():
    desktop = await opened("late.html?ms=2500", wait_seconds=3, pause_seconds=0)
    try:
        await act(desktop, Click(60, 60))
        began = time.monotonic()
        await act(desktop, Wait())
        assert 3 <= time.monotonic() - began < 4.5
        assert image(await desktop.screenshot()).getpixel((20, 20)) == GREEN
    finally:
        await desktop.close()


async def test_an_action_may_last_longer_than_the_desktops_patience():
    desktop = await opened("late.html?ms=0", wait_seconds=2, act_timeout_s=1)
    try:
        await act(desktop, Wait())
    finally:
        await desktop.close()


# -- memory ---------------------------------------------------------------------------------------

OPEN = "import os, time; f = os.memfd_create('x'); [os.write(f, b'1' * (1 << 20)) for _ in range(1000)]; "
MAPPED = "import mmap, time; m = mmap.mmap(-1, 1000 << 20); m[:] = b'1' * (1000 << 20); "


@pytest.mark.parametrize("hog", [OPEN, MAPPED], ids=["an open memfd", "a shared mapping"])
async def test_shared_memory_counts_as_memory(hog):
    desktop = await opened("page.html", memory_mb=900)
    try:
        await desktop.guest.launch(["python3", "-c", hog + "time.sleep(60)"])
        assert await gone(processes_of(desktop), 10)
        with pytest.raises(DesktopError, match="memory_mb"):
            await desktop.screenshot()
    finally:
        await desktop.close()
