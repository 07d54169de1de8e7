"""A reset leaves nothing of the episode before, and is cheap."""

import asyncio
import uuid

import pytest
import pytest_asyncio
from desktop_helpers import URL, image, inside, page_task, processes_of, provider

from arpo_replica.actions.types import Click, Hotkey, RightClick, TypeText
from arpo_replica.base.errors import DesktopError

WINDOW = """
import time
from Xlib import X
from Xlib.display import Display
display = Display()
screen = display.screen()
window = screen.root.create_window(20, 20, 90, 90, 0, screen.root_depth, background_pixel=255)
window.set_wm_name("stray window")
window.map()
display.sync()
print("up", flush=True)
time.sleep(1000)
"""
HOLD = """
from Xlib import X, XK
from Xlib.display import Display
from Xlib.ext import xtest
display = Display()
for name in ("Shift_L", "a"):
    xtest.fake_input(display, X.KeyPress, display.keysym_to_keycode(XK.string_to_keysym(name)))
xtest.fake_input(display, X.ButtonPress, 1)
display.sync()
"""
OWN_SELECTION = """
import time
from Xlib.display import Display
display = Display()
window = display.screen().root.create_window(0, 0, 1, 1, 0, 0)
window.set_selection_owner(display.intern_atom("CLIPBOARD"), 0)
display.sync()
print(display.get_selection_owner(display.intern_atom("CLIPBOARD")) == window, flush=True)
time.sleep(1000)
"""
PRESSED = """
from Xlib.display import Display
display = Display()
print(sum(display.query_keymap()), display.screen().root.query_pointer().mask)
"""
OWNERS = """
from Xlib.display import Display
display = Display()
for name in ("PRIMARY", "SECONDARY", "CLIPBOARD"):
    print(name, getattr(display.get_selection_owner(display.intern_atom(name)), "id", 0))
"""
STORE = """(async () => {
  document.cookie = "a=1; max-age=9999";
  localStorage.setItem("a", "1");
  sessionStorage.setItem("a", "1");
  await new Promise((done) => {
    const request = indexedDB.open("a", 1);
    request.onsuccess = () => { request.result.close(); done(); };
  });
  await caches.open("a");
  await navigator.serviceWorker.register("worker.js");
  window.name = "a";
  history.pushState({}, "", "?a");
})()"""
STORED = """(async () => [
  document.cookie, localStorage.length, sessionStorage.length, (await indexedDB.databases()).length,
  (await caches.keys()).length, (await navigator.serviceWorker.getRegistrations()).length,
  window.name, history.length, devicePixelRatio,
])()"""
NOTHING = ["", 0, 0, 0, 0, 0, "", 1, 1]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desktop():
    desktop = await provider().start("test")
    yield desktop
    await desktop.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def fresh(desktop):
    """What the screen shows after a first reset."""
    await desktop.reset(page_task())
    return await desktop.screenshot()


pytestmark = [pytest.mark.desktop, pytest.mark.asyncio(loop_scope="module")]


def new_id():
    return uuid.uuid4().hex


async def python(desktop, code):
    result = await desktop.guest.execute(["python3", "-c", code])
    assert result["returncode"] == 0, result["error"]
    return result["output"]


async def start_python(desktop, code):
    """Start a program that says a line when it is ready."""
    await desktop.guest.upload("/tmp/program.py", code.encode())
    await desktop.guest.launch("python3 -u /tmp/program.py > /tmp/ready", shell=True)
    for _ in range(200):
        if await inside(desktop, "cat /tmp/ready 2>/dev/null"):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the program did not start")


async def storage(desktop, fresh):
    await desktop.devtools.evaluate(STORE)


async def zoom(desktop, fresh):
    await desktop.act(Hotkey(("ctrl", "plus")), new_id())
    assert await desktop.devtools.evaluate("devicePixelRatio") > 1


async def second_tab(desktop, fresh):
    await desktop.devtools.open(URL)
    assert len(await desktop.devtools.pages()) == 2


async def second_window(desktop, fresh):
    await desktop.act(Hotkey(("ctrl", "n")), new_id())


async def closed_tab(desktop, fresh):
    await desktop.act(Hotkey(("ctrl", "w")), new_id())
    for _ in range(100):
        if not await desktop.devtools.pages():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the tab is still there")


async def find_bar(desktop, fresh):
    await desktop.act(Hotkey(("ctrl", "f")), new_id())
    await desktop.act(TypeText("page"), new_id())
    assert await desktop.screenshot() != fresh


async def context_menu(desktop, fresh):
    await desktop.act(RightClick(120, 200), new_id())
    assert await desktop.screenshot() != fresh


async def dialog(desktop, fresh):
    page = await desktop.devtools.first_page()
    await desktop.devtools.call("Runtime.evaluate", {"expression": "setTimeout(() => alert('a'), 0)"}, page)
    await asyncio.sleep(0.3)


async def busy_page(desktop, fresh):
    page = await desktop.devtools.first_page()
    await desktop.devtools.call(
        "Runtime.evaluate", {"expression": "setTimeout(() => { while (1); }, 0)"}, page
    )


async def own_profile(desktop, fresh):
    await desktop.devtools.call("Target.createTarget", {"url": "about:blank"})


async def dead_browser(desktop, fresh):
    await inside(desktop, "pkill -9 chrome")


async def stray_window(desktop, fresh):
    await start_python(desktop, WINDOW)
    for _ in range(100):
        if await desktop.screenshot() != fresh:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the window does not show")


async def held_keys(desktop, fresh):
    await python(desktop, HOLD)
    assert (await python(desktop, PRESSED)).split() != ["0", "0"]


async def caps_lock(desktop, fresh):
    await desktop.act(Hotkey(("capslock",)), new_id())
    assert (await python(desktop, PRESSED)).split()[1] != "0"


async def clipboard(desktop, fresh):
    await start_python(desktop, OWN_SELECTION)
    assert await inside(desktop, "cat /tmp/ready") == "True\n"


async def copied_text(desktop, fresh):
    await desktop.act(Click(80, 80), new_id())
    await desktop.act(TypeText("secret"), new_id())
    await desktop.act(Hotkey(("ctrl", "a")), new_id())
    await desktop.act(Hotkey(("ctrl", "c")), new_id())


async def files(desktop, fresh):
    await inside(desktop, "mkdir -p ~/a/b ~/.config/a; touch ~/a/b/c ~/.config/a/b /tmp/a /dev/shm/a")
    await desktop.guest.upload("~/Desktop/a.txt", b"a")


async def processes(desktop, fresh):
    await desktop.guest.launch(["sleep", "1000"])
    await desktop.guest.launch("(setsid sleep 1001 &) ; (trap '' TERM; sleep 1002)", shell=True)


@pytest.mark.parametrize(
    "leave",
    [
        storage, zoom, second_tab, second_window, closed_tab, find_bar, context_menu, dialog,
        busy_page, own_profile, dead_browser, stray_window, held_keys, caps_lock, clipboard, copied_text,
        files, processes,
    ],
)  # fmt: skip
async def test_nothing_of_the_episode_before_is_left(desktop, fresh, leave):
    await leave(desktop, fresh)
    await desktop.reset(page_task())
    assert await desktop.screenshot() == fresh
    assert await desktop.devtools.evaluate(STORED) == NOTHING
    assert [page.url for page in await desktop.devtools.pages()] == [URL]
    await desktop.act(Click(80, 80), new_id())
    await desktop.act(Hotkey(("ctrl", "v")), new_id())
    await desktop.act(TypeText("aB"), new_id())
    assert await desktop.devtools.evaluate("document.getElementById('text').value") == "aB"
    assert (await python(desktop, PRESSED)).split() == ["0", "0"]
    assert (
        await inside(desktop, "ls ~; ls -A ~/.config | grep -v chromium")
        == "Desktop\nDocuments\nDownloads\ngoogle-chrome\n"
    )
    assert await inside(desktop, "ls ~/Desktop ~/Documents ~/Downloads | grep -v :") == "\n\n"
    assert await inside(
        desktop, "ls -A /tmp /dev/shm | grep -vE '^(\\.X11-unix|\\.X0-lock|\\.desktop)$'"
    ) in (
        "/dev/shm:\n\n/tmp:\n",
        "/tmp:\n\n/dev/shm:\n",
    )
    assert await inside(desktop, "ps -eo stat=,args= | grep -v ^Z | grep -E '[s]leep|program[.]py'") == ""


async def test_the_selections_have_no_owner_after_a_reset(desktop, fresh):
    await clipboard(desktop, fresh)
    await desktop.reset(page_task())
    assert [line.split()[1] for line in (await python(desktop, OWNERS)).splitlines()] == ["0", "0", "0"]


async def test_a_usual_reset_keeps_browser_and_tab(desktop, fresh):
    await desktop.reset(page_task())
    page, browser = await desktop.devtools.first_page(), await inside(desktop, "pgrep -o chrome")
    await desktop.act(Click(40, 30), new_id())
    await desktop.reset(page_task())
    assert (await desktop.devtools.first_page(), await inside(desktop, "pgrep -o chrome")) == (page, browser)
    assert await desktop.screenshot() == fresh


async def test_the_browser_context_is_renewed_now_and_then(desktop, fresh, monkeypatch):
    monkeypatch.setattr("arpo_replica.desktop.browser.EPISODES_PER_CONTEXT", 2)
    contexts = set()
    for _ in range(4):
        await desktop.reset(page_task())
        contexts.add(desktop.devtools.context)
        assert await desktop.screenshot() == fresh
    assert len(contexts) in (2, 3)


async def test_a_set_up_that_fails_is_an_error_that_names_the_step(desktop, fresh):
    with pytest.raises(DesktopError, match=r"step 2 \(chrome_open_tabs\)"):
        await desktop.reset(page_task("http://localhost:9/"))
    await desktop.reset(page_task())
    assert await desktop.screenshot() == fresh


async def test_many_resets_leave_no_process_behind(desktop, fresh):
    await desktop.reset(page_task())
    before = len(processes_of(desktop))
    for _ in range(10):
        await desktop.reset(page_task())
    assert len(processes_of(desktop)) <= before + 2
    assert image(await desktop.screenshot()).size == (168, 224)
