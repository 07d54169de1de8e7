"""What an action does in a container desktop, ours and those of OSWorld's own client."""

import asyncio
import uuid
from pathlib import Path

import pytest
import pytest_asyncio
from docker_helpers import LARGE, image, inside, provider, task

from arpo_replica.actions.pyautogui_source import source_of
from arpo_replica.actions.types import Click, Drag, Hotkey, TypeText

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]

TEXT = "if a < b > c: \"é ß 中文 😀\" & 'x' | ~`#\\"
STOCK = "import pyautogui; import time; pyautogui.FAILSAFE = False; "


@pytest.fixture(autouse=True)
def nothing_is_left():
    """The module's desktop outlives a test."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desktop(engine):
    desktop = await provider().start("test")
    yield desktop
    await desktop.close()


async def editor(desktop):
    """An editor with an empty file in front."""
    await desktop.reset(task())
    await desktop.guest.upload("~/note.txt", b"")
    await desktop.guest.launch(["gedit", "/home/user/note.txt"])
    await desktop.guest.calm(1, 30, 5)
    await act(desktop, Click(960, 560))


async def act(desktop, action, action_id=None):
    await desktop.act(action, action_id or uuid.uuid4().hex)


async def saved(desktop):
    await act(desktop, Hotkey(("ctrl", "s")))
    for _ in range(50):
        if text := (await desktop.guest.file("~/note.txt")).decode():
            return text.removesuffix("\n")
        await asyncio.sleep(0.1)
    return ""


async def test_text_arrives_as_it_is_written(desktop):
    await editor(desktop)
    await act(desktop, TypeText(TEXT))
    assert await saved(desktop) == TEXT


async def test_an_action_is_applied_at_most_once(desktop):
    await editor(desktop)
    for _ in range(3):
        await act(desktop, TypeText("once"), "the same id")
    await act(desktop, TypeText("!"))
    assert await saved(desktop) == "once!"


async def test_actions_of_the_stock_client(desktop):
    """OSWorld's client sends Python for pyautogui; on other desktops ``<`` comes out as ``>``."""
    await editor(desktop)
    code = STOCK + "print(pyautogui.size()); pyautogui.typewrite('a<b>c?', interval=0.02)"
    result = await desktop.guest.execute(["python", "-c", code])
    assert result["returncode"] == 0, result
    assert result["output"] == f"Size(width={LARGE[0]}, height={LARGE[1]})\n"
    assert await saved(desktop) == "a<b>c?"


@pytest.mark.parametrize("client", ["ours", "OSWorld's"])
@pytest.mark.parametrize(("distance", "width"), [(45, 8), (240, 40), (1000, 40)])
async def test_a_dragged_element_drops_on_its_target(desktop, distance, width, client):
    """``OSWorld's``: what provider ``osworld`` sends, by the pyautogui in the image."""
    await desktop.reset(task())
    page = (Path(__file__).parents[1] / "desktop/site/drag.html").read_text()
    await desktop.guest.upload("~/drag.html", f"{page}<script>place({distance}, {width})</script>".encode())
    await desktop.guest.launch(["google-chrome", "--kiosk", "file:///home/user/drag.html"])
    await desktop.guest.calm(1, 30, 5)
    above = (50 + distance, 85)  # of the cursor, on the target
    assert image(await desktop.screenshot()).getpixel(above) == (255, 165, 0)  # orange: it waits for a drop
    drag = Drag(50, 100, 50 + distance, 100)
    if client == "ours":
        await act(desktop, drag)
    else:
        result = await desktop.guest.execute(["python", "-c", source_of(drag)])
        assert result["returncode"] == 0, result
    for _ in range(40):
        if (seen := image(await desktop.screenshot()).getpixel(above)) == (0, 128, 0):
            break
        await asyncio.sleep(0.05)
    assert seen == (0, 128, 0)


async def test_pkill_chrome_ends_the_browser(desktop):
    await desktop.reset(task())
    await desktop.guest.launch(["google-chrome", "--remote-debugging-port=1337"])
    await desktop.guest.calm(1, 30, 5)
    assert int(await inside(desktop, "pgrep -xc chrome")) > 2
    assert "google-chrome" in await inside(desktop, "ls ~/.config")
    await inside(desktop, "pkill chrome")
    for _ in range(40):
        if await inside(desktop, "pgrep -c chrome") == "0":
            break
        await asyncio.sleep(0.1)
    assert await inside(desktop, "pgrep -c chrome") == "0"
    # Its preferences are on disk by then: evaluators read them.
    assert "profile" in await inside(desktop, "cat ~/.config/google-chrome/Default/Preferences")


async def test_programs_open_beside_bar_and_dock(desktop):
    """Real windows of the programs that OSWorld's tasks use."""
    programs = {
        "libreoffice": ["libreoffice", "--calc", "--norestore"],
        "gimp": ["gimp"],
        "vlc": ["vlc"],
    }
    for name, command in programs.items():
        await desktop.reset(task())
        empty = image(await desktop.screenshot())
        assert empty.size == LARGE
        await desktop.guest.launch(command)
        await desktop.guest.calm(1, 60, 10)
        seen = image(await desktop.screenshot())
        changed = sum(a != b for a, b in zip(small(seen), small(empty), strict=True))
        assert changed > 0.05 * len(small(seen)), name
        # The room of bar and dock is theirs.
        assert seen.crop((80, 2, 700, 25)).getcolors() == empty.crop((80, 2, 700, 25)).getcolors()
    answer = "curl -s -o /dev/null -w %{http_code} -u {} http://localhost:8080/requests/status.xml"
    assert await inside(desktop, answer.replace("{}", ":password")) == "200"
    assert await inside(desktop, answer.replace("{}", ":wrong")) == "401"


def small(picture):
    return list(picture.resize((96, 54)).tobytes())
