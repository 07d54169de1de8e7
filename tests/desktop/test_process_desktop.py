"""The real desktop: what an action does, what a desktop may not do, how it ends."""

import asyncio
import json
import os
import signal
import socket
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from desktop_helpers import (
    GREEN,
    LARGE,
    RED,
    SMALL,
    alive,
    command_line,
    gone,
    image,
    inside,
    open_files,
    own_addresses,
    owners,
    page_task,
    processes_of,
    provider,
    short_folder,
)

from arpo_replica.actions.coordinates import Frame
from arpo_replica.actions.keys import NAMED_KEYS
from arpo_replica.actions.parse import UITarsParser
from arpo_replica.actions.types import (
    Click,
    DoubleClick,
    Drag,
    Hotkey,
    RightClick,
    Scroll,
    TypeText,
)
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.desktop import sandbox
from arpo_replica.providers.process import ProcessProvider
from arpo_replica.rollout.episode import EpisodeLimits, run_episode
from fakes import ScriptedPolicy

pytestmark = pytest.mark.desktop
HAS_AT_SPI = Path("/usr/libexec/at-spi-bus-launcher").exists()


@pytest.fixture
async def desktop():
    desktop = await provider().start("test")
    await desktop.reset(page_task())
    yield desktop
    await desktop.close()


async def seen(desktop, kind):
    return await desktop.devtools.evaluate(f"seen.filter((event) => event[0] === '{kind}')")


# -- actions --------------------------------------------------------------------------------------


async def test_click_hits_the_button_and_the_screenshot_shows_it(desktop):
    before = image(await desktop.screenshot())
    assert before.size == SMALL
    assert before.getpixel((20, 20)) == RED
    await desktop.act(Click(40, 30), "click")
    after = image(await desktop.screenshot())
    assert after.getpixel((20, 20)) == GREEN
    assert [event[1:3] for event in await seen(desktop, "click")] == [[40, 30]]


async def test_screenshot_shows_the_pointer(desktop):
    await desktop.act(Click(100, 200), "click")
    spot = image(await desktop.screenshot()).crop((98, 198, 112, 216))
    assert spot.getextrema() != ((255, 255),) * 3


@pytest.mark.parametrize(
    "text",
    [
        "<ä€>\nsecond line",
        " ~!@#$%^&*()_+{}|:\"<>?`-=[]\\;',./ aZ09",
        "ñ ß ø Ω 你好 €uro 😀 „quoted“ – dash",
        "".join(chr(0x4E00 + number) for number in range(300)),
        "Aa" * 300,
    ],
    ids=["angle", "ascii", "unicode", "more_than_the_keyboard_has", "long"],
)
async def test_typed_text_arrives_exactly(desktop, text):
    await desktop.act(Click(80, 80), "focus")
    await desktop.act(TypeText(text), "type")
    assert await desktop.devtools.evaluate("document.getElementById('text').value") == text


async def test_all_actions_of_a_reply_reach_the_desktop(desktop):
    reply = "Action: click(start_box='(80,80)')\n\ntype(content='print('hi')')\n\nhotkey(key='shift + num5')"
    policy = ScriptedPolicy(reply, "Action: finished()")
    parser = UITarsParser(Frame("absolute", (168, 224), (168, 224)), "all")
    result = await run_episode(page_task(), desktop, policy, parser, EpisodeLimits(15, 0.5, 60))
    assert (result.taken, len(result.steps)) == (4, 2)
    assert await desktop.devtools.evaluate("document.getElementById('text').value") == "print('hi')%"


async def test_text_arrives_exactly_with_caps_lock_on(desktop):
    await desktop.act(Click(80, 80), "focus")
    await desktop.act(Hotkey(("capslock",)), "caps")
    await desktop.act(TypeText("aB"), "type")
    assert await desktop.devtools.evaluate("document.getElementById('text').value") == "aB"


async def test_an_action_id_is_applied_at_most_once(desktop):
    facts, png = await desktop.guest.act(Click(40, 30), "one")
    again, same = await desktop.guest.act(Click(40, 30), "one")
    assert (facts["status"], again["status"]) == ("applied", "duplicate")
    assert png == same
    await asyncio.gather(*(desktop.guest.act(Click(40, 30), "two") for _ in range(5)))
    assert len(await seen(desktop, "click")) == 2


async def test_two_clicks_are_no_double_click_and_a_double_click_is_one(desktop):
    await desktop.act(Click(40, 30), "a")
    await desktop.act(Click(41, 31), "b")
    assert await seen(desktop, "dblclick") == []
    await desktop.act(DoubleClick(40, 30), "c")
    assert len(await seen(desktop, "dblclick")) == 1


async def test_right_click_drag_scroll_and_hotkey(desktop):
    await desktop.act(Scroll("down", 60, 150), "scroll")
    await desktop.act(Scroll("right"), "scroll right")
    box = "(() => { const box = document.getElementById('box'); return [box.scrollLeft, box.scrollTop]; })()"
    left, top = await desktop.devtools.evaluate(box)
    assert left > 0 and top > 0
    await desktop.act(Scroll("up", 60, 150), "scroll up")
    await desktop.act(Scroll("left"), "scroll left")
    # On a busy machine the last notches can arrive after the screen came to rest; all of them must arrive.
    for _ in range(100):
        if (place := await desktop.devtools.evaluate(box)) == [0, 0]:
            break
        await asyncio.sleep(0.05)
    assert place == [0, 0]
    await desktop.act(Drag(20, 190, 120, 210), "drag")
    assert [event[1:3] for event in await seen(desktop, "mousedown")] == [[20, 190]]
    assert [event[1:3] for event in await seen(desktop, "mouseup")] == [[120, 210]]
    assert len(await seen(desktop, "mousemove")) > 2
    await desktop.act(Click(80, 80), "focus")
    await desktop.act(TypeText("gone"), "type")
    await desktop.act(Hotkey(("ctrl", "a")), "all")
    await desktop.act(Hotkey(("backspace",)), "delete")
    assert await desktop.devtools.evaluate("document.getElementById('text').value") == ""
    await desktop.act(RightClick(120, 200), "right")
    assert [event[1:3] for event in await seen(desktop, "contextmenu")] == [[120, 200]]


async def test_every_key_that_a_policy_may_name_can_be_pressed(desktop):
    for key in sorted(NAMED_KEYS):
        facts, _ = await desktop.guest.act(Hotkey((key,)), key)
        assert facts["ignored"] == []


async def test_keys_that_do_not_exist_are_ignored_and_named(desktop):
    facts, _ = await desktop.guest.act(Hotkey(("hyperdrive", "arrowup")), "key")
    assert facts["ignored"] == ["hyperdrive"]
    assert [event[3] for event in await seen(desktop, "keydown")] == ["ArrowUp"]


async def test_what_is_no_action_is_refused_and_changes_nothing(desktop):
    before = await desktop.guest.screenshot()
    for body in ({"id": "x"}, {"id": "y", "action": {"type": "explode"}}, {"action": {"type": "wait"}}, []):
        with pytest.raises(DesktopError, match="400"):
            await desktop.guest._call("POST", "/act", json=body)
    assert await desktop.guest.screenshot() == before


# -- what a desktop may not do --------------------------------------------------------------------


async def test_a_desktop_has_no_network(desktop):
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        port = listener.getsockname()[1]
        for address in own_addresses():
            code = f"import socket; socket.create_connection(({address!r}, {port}), 2)"
            result = await desktop.guest.execute(["python3", "-c", code])
            assert result["returncode"] != 0
            assert "refused" in result["error"] or "unreachable" in result["error"]
    assert (await inside(desktop, "ls /sys/class/net 2>/dev/null; cut -d: -f1 -s /proc/net/dev")).split() == [
        "lo"
    ]


async def test_a_desktop_sees_neither_the_machine_nor_root(desktop):
    assert (await inside(desktop, "ls /")).split() == sorted(
        [
            "bin",
            "dev",
            "etc",
            "home",
            "lib",
            "lib64",
            "opt",
            "proc",
            "run",
            "sbin",
            "sys",
            "tmp",
            "usr",
            "var",
        ]
    )
    assert "No such file" in (await desktop.guest.execute(["ls", str(Path(__file__))]))["error"]
    for place in ("/", "/usr", "/etc", "/opt/desktop/bin", "/etc/chromium/policies/managed", "/dev", "/run"):
        assert (await desktop.guest.execute(["touch", f"{place}/x"]))["returncode"] != 0
    assert 0 not in owners(processes_of(desktop))
    assert int(await inside(desktop, "ps -e --no-headers | wc -l")) < 40


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://127.0.0.1:1337/json", "chrome://version"])
async def test_the_browser_of_a_small_desktop_visits_its_site_only(desktop, url):
    with pytest.raises(DesktopError, match="did not load"):
        await desktop.devtools.open(url)


async def test_too_much_memory_ends_the_desktop(desktop):
    await desktop.close()
    small = await provider(memory_mb=900).start("small")
    try:
        await small.guest.launch(["python3", "-c", "x = bytearray(800 << 20); input()"])
        await small.guest.launch(["python3", "-c", "import time; x = b'1' * (800 << 20); time.sleep(60)"])
        assert await gone(processes_of(small), 10)
        with pytest.raises(DesktopError, match="memory_mb"):
            await small.screenshot()
    finally:
        await small.close()


async def test_the_disk_of_a_desktop_is_limited(desktop):
    result = await desktop.guest.execute("head -c 600M /dev/zero > ~/big", shell=True)
    assert "No space left" in result["error"]
    await desktop.reset(page_task())
    assert await inside(desktop, "ls ~") == "Desktop\nDocuments\nDownloads\n"


# -- start and end --------------------------------------------------------------------------------


async def colour(desktop):
    return image(await desktop.screenshot()).getpixel((20, 20))


async def test_eight_start_at_once_and_are_apart():
    made = provider()
    desktops = await asyncio.gather(*(made.start(f"test {n}") for n in range(8)))
    try:
        await asyncio.gather(*(d.reset(page_task()) for d in desktops))
        await desktops[1].act(Click(40, 30), "click")
        for _ in range(100):  # eight browsers that have just started share two cores
            colours = [await colour(d) for d in desktops]
            if colours[1] == GREEN:
                break
            await asyncio.sleep(0.05)
        assert colours == [RED, GREEN, *[RED] * 6]
        for n, d in enumerate(desktops):
            assert await inside(d, f"echo {n} > ~/mine; sleep 0.1; cat ~/mine") == f"{n}\n"
    finally:
        pids = [pid for d in desktops for pid in processes_of(d)]
        await asyncio.gather(*(d.close() for d in desktops))
    assert not alive(pids)


@pytest.mark.parametrize("isolation", ["namespace", "browser"])
async def test_close_leaves_no_process_and_no_file(isolation, monkeypatch):
    folder = short_folder()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    fds = open_files()
    desktop = await provider(isolation=isolation).start("test")
    await desktop.reset(page_task())
    await desktop.guest.launch(["sleep", "1000"])
    await desktop.act(Click(40, 30), "click")
    assert image(await desktop.screenshot()).getpixel((20, 20)) == GREEN
    pids = processes_of(desktop)
    assert len(pids) > 5
    await desktop.close()
    assert not alive(pids)
    os.rmdir(folder)  # noqa: PTH106 - it is empty
    assert open_files() == fds
    with pytest.raises(DesktopError):
        await desktop.screenshot()
    await desktop.close()


OWNER = """
import asyncio, json, sys
from pathlib import Path
from arpo_replica.config.desktop import DesktopConfig
from guest.processes import descendants
from arpo_replica.providers.process import ProcessProvider
from arpo_replica.rollout.episode import EpisodeLimits, run_episode
from fakes import ScriptedPolicy
import os

async def main():
    config = DesktopConfig(screen=(168, 224), isolation=sys.argv[1])
    desktop = await ProcessProvider(config, {}).start("test")
    await desktop.guest.launch(["sleep", "1000"])
    await asyncio.sleep(0.2)
    print(json.dumps(list(descendants(os.getpid()))), flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.parametrize("isolation", ["namespace", "browser"])
async def test_nothing_survives_the_owner_being_killed(isolation):
    folder = short_folder()
    fakes = Path(__file__).parents[1]
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(fakes)}
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, isolation, stdout=asyncio.subprocess.PIPE, env=environment
    )
    pids = json.loads(await owner.stdout.readline())
    assert len(pids) > 5
    owner.send_signal(signal.SIGKILL)
    await owner.wait()
    assert await gone(pids)
    os.rmdir(folder)  # noqa: PTH106 - it is empty


async def test_a_killed_desktop_is_an_error_and_the_next_reset_makes_it_anew(desktop):
    pids = processes_of(desktop)
    server = next(pid for pid in pids if b"-m\0guest" in command_line(pid))
    working = asyncio.create_task(desktop.act(Drag(20, 190, 120, 210), "drag"))
    await asyncio.sleep(0.02)
    os.kill(server, signal.SIGKILL)
    with pytest.raises(DesktopError):
        await working
    with pytest.raises(DesktopError):
        await desktop.screenshot()
    assert await gone(pids)
    await desktop.reset(page_task())
    await desktop.act(Click(40, 30), "click")
    assert image(await desktop.screenshot()).getpixel((20, 20)) == GREEN


async def test_a_large_desktop_is_an_ordinary_one():
    desktop = await provider(screen=LARGE).start("test")
    try:
        for _ in range(2):
            await desktop.reset(page_task())
            shot = image(await desktop.screenshot())
            assert shot.size == LARGE
            x, y = await desktop.devtools.evaluate("[screenX, screenY + outerHeight - innerHeight]")
            assert y > 50
            assert shot.getpixel((x + 20, y + 20)) == RED
            await desktop.act(Click(x + 40, y + 30), f"click {_}")
            assert image(await desktop.screenshot()).getpixel((x + 20, y + 20)) == GREEN
        if HAS_AT_SPI:
            tree = ElementTree.fromstring((await desktop.guest._json("GET", "/accessibility", 130))["AT"])
            assert "Chromium" in {node.get("name") for node in tree}
            assert any(node.tag == "document-web" for node in tree.iter())
        names = await inside(desktop, "ps -eo comm=")
        assert "chrome" in names.split()
        assert (await desktop.guest.file("~/.config/google-chrome/Local State"))[:1] == b"{"
    finally:
        await desktop.close()


# -- check and describe ---------------------------------------------------------------------------


def test_check_passes_here_and_describe_names_the_browser():
    made = provider()
    made.check()
    facts = made.describe()
    assert facts["browser"].startswith("Chromium ")
    assert facts["screen"] == list(SMALL)


def test_check_names_the_packages_to_install(monkeypatch):
    monkeypatch.setattr("arpo_replica.providers.process.shutil.which", lambda program, path=None: None)
    with pytest.raises(
        UserError, match=r"apt-get install xvfb openbox util-linux python3 chromium bubblewrap"
    ):
        provider().check()


def test_check_refuses_a_machine_without_namespaces(monkeypatch):
    monkeypatch.setattr(sandbox, "unprivileged", lambda number: ["false"])
    with pytest.raises(UserError, match=r"desktop\.isolation"):
        provider().check()


def test_check_refuses_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        ProcessProvider(DesktopConfig(screen=SMALL), {"site": tmp_path / "none"}).check()
