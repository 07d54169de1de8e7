"""The guest's side of OSWorld's HTTP API, as OSWorld's own client calls it."""

import asyncio
import io
import json
import uuid

import aiohttp
import pytest
import pytest_asyncio
from desktop_helpers import SMALL, inside, page_task, provider
from PIL import Image

from arpo_replica.actions.types import Click
from arpo_replica.base.errors import DesktopError

pytestmark = [pytest.mark.desktop, pytest.mark.asyncio(loop_scope="module")]

WINDOW = """
import time
from Xlib import X
from Xlib.display import Display
display = Display()
screen = display.screen()
window = screen.root.create_window(20, 20, 90, 80, 0, screen.root_depth)
window.set_wm_name("report.txt - editor")
window.set_wm_class("editor", "Editor")
window.set_wm_protocols([display.intern_atom("WM_DELETE_WINDOW")])
window.map()
while True:
    if display.next_event().type == X.ClientMessage:
        break
"""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desktop():
    desktop = await provider().start("test")
    await desktop.reset(page_task())
    yield desktop
    await desktop.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def http(desktop):
    """A plain HTTP client of the guest."""
    connector = aiohttp.UnixConnector(desktop._running.server_path)
    async with aiohttp.ClientSession("http://localhost", connector=connector) as session:
        yield session


async def post(http, path, **body):
    async with http.post(path, **body) as answer:
        return answer.status, await answer.read()


async def get(http, path):
    async with http.get(path) as answer:
        return answer.status, await answer.read()


async def test_screenshot_is_a_png(http):
    status, body = await get(http, "/screenshot")
    assert status == 200
    assert Image.open(io.BytesIO(body)).size == SMALL
    assert body.startswith(b"\x89PNG")


@pytest.mark.parametrize("path", ["/execute", "/setup/execute"])
async def test_execute(http, path):
    status, body = await post(http, path, json={"command": ["sh", "-c", "echo a; echo b >&2; exit 3"]})
    assert status == 200
    assert json.loads(body) == {"status": "success", "output": "a\n", "error": "b\n", "returncode": 3}
    status, body = await post(http, path, json={"command": "echo $HOME ~", "shell": True})
    assert json.loads(body)["output"] == "/home/user /home/user\n"
    status, body = await post(http, path, json={"command": "ls -d ~/Desktop"})
    assert json.loads(body)["output"] == "/home/user/Desktop\n"
    status, body = await post(http, path, json={"command": ["no-such-program"]})
    assert (status, json.loads(body)["status"]) == (500, "error")


async def test_execute_with_verification(http):
    body = {"command": "true", "verification": {"command_success": "test -d ~/Desktop"}, "max_wait_time": 1}
    status, answer = await post(http, "/setup/execute_with_verification", json=body)
    assert (status, json.loads(answer)["status"]) == (200, "success")
    body |= {"verification": {"window_exists": "nothing"}, "max_wait_time": 0.1, "check_interval": 0.05}
    status, answer = await post(http, "/execute_with_verification", json=body)
    assert (status, json.loads(answer)["status"]) == (500, "verification_failed")


async def test_run_python_and_bash(http):
    status, body = await post(http, "/run_python", json={"code": "print(6 * 7)"})
    assert json.loads(body)["output"] == "42\n"
    status, body = await post(http, "/run_python", json={"code": "1 / 0"})
    assert json.loads(body)["return_code"] == 1
    script = {"script": "echo a\necho b >&2\npwd", "working_dir": "/tmp"}
    status, body = await post(http, "/run_bash_script", json=script)
    assert (status, json.loads(body)["output"]) == (200, "a\nb\n/tmp\n")
    status, body = await post(http, "/run_bash_script", json={"script": "sleep 9", "timeout": 0.2})
    assert status == 500
    assert "longer than" in json.loads(body)["message"]


async def test_files(desktop, http):
    await desktop.guest.upload("~/Documents/a/b.bin", b"\x00\xff")
    assert await desktop.guest.file("/home/user/Documents/a/b.bin") == b"\x00\xff"
    assert (await post(http, "/file", data={"file_path": "/none"}))[0] == 404
    with pytest.raises(DesktopError, match="404"):
        await desktop.guest.file("~/none")
    tree = json.loads((await post(http, "/list_directory", json={"path": "~/Documents"}))[1])
    folder = {"type": "directory", "name": "a", "children": [{"type": "file", "name": "b.bin"}]}
    assert tree["directory_tree"] == {"type": "directory", "name": "Documents", "children": [folder]}
    assert json.loads((await post(http, "/desktop_path"))[1]) == {"desktop_path": "/home/user/Desktop"}


async def test_facts(desktop, http):
    assert json.loads((await post(http, "/screen_size"))[1]) == {"width": 168, "height": 224}
    assert (await get(http, "/platform"))[1] == b"Linux"
    await desktop.act(Click(120, 200), uuid.uuid4().hex)
    assert json.loads((await get(http, "/cursor_position"))[1]) == [120, 200]
    status, body = await get(http, "/terminal")
    assert (status, json.loads(body)["status"]) == (200, "success")
    assert (await get(http, "/accessibility"))[0] == 500  # a small desktop has no accessibility bus
    assert (await get(http, "/nothing"))[0] == 404


async def test_the_screen_never_locks_or_goes_dark(http):
    code = (
        "from Xlib.display import Display; display = Display();"
        "print(display.get_screen_saver().timeout, display.has_extension('DPMS'))"
    )
    status, body = await post(http, "/execute", json={"command": ["python3", "-c", code]})
    assert (status, json.loads(body)["output"]) == (200, "0 False\n"), body


async def test_windows(desktop, http):
    await desktop.guest.upload("/tmp/window.py", WINDOW.encode())
    await desktop.guest.launch(["python3", "/tmp/window.py"])
    waiting = {"command": "true", "verification": {"window_exists": "report"}, "max_wait_time": 5}
    await post(http, "/setup/execute_with_verification", json=waiting | {"check_interval": 0.05})
    body = json.loads((await post(http, "/window_size", data={"app_class_name": "editor"}))[1])
    assert body == {"width": 90, "height": 80}
    for body, status in (
        ({"window_name": "report"}, 200),
        ({"window_name": "report.txt - editor", "strict": True}, 200),
        ({"window_name": "Editor", "by_class": True}, 200),
        ({"window_name": "report", "strict": True}, 404),
    ):
        assert (await post(http, "/setup/activate_window", json=body))[0] == status, body
    await desktop.guest.upload("~/report.txt", b"")
    assert (await post(http, "/setup/open_file", json={"path": "~/report.txt"}))[
        0
    ] == 200  # its window is there
    assert (await post(http, "/setup/close_window", json={"window_name": "report"}))[0] == 200
    for _ in range(100):
        if "window.py" not in await inside(desktop, "ps -eo args="):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the window was not closed")


async def test_launch_steps_of_chrome_tasks_are_satisfied_already(desktop, http):
    # The programs that would be there twice; helpers of the browser come and go by themselves.
    programs = "pgrep socat; pgrep -f '[r]emote-debugging-port='"
    before = await inside(desktop, programs)
    assert len(before.split()) >= 2
    for command in (
        ["google-chrome", "--remote-debugging-port=1337"],
        ["socat", "tcp-listen:9222,fork", "tcp:localhost:1337"],
    ):
        status, text = await post(http, "/setup/launch", json={"command": command})
        assert (status, b"runs already" in text) == (200, True)
    assert await inside(desktop, programs) == before
    version = "import urllib.request as u; print(u.urlopen('http://localhost:9222/json/version').read())"
    assert "Chrome/" in (await desktop.guest.execute(["python3", "-c", version]))["output"]


async def test_bad_requests_are_refused(http):
    assert (await post(http, "/setup/upload", data={"file_path": "/tmp/a"}))[0] == 400
    assert (await post(http, "/act", data=b"{"))[0] == 400
    assert (await post(http, "/list_directory", json={"path": "/none"}))[0] == 400
    assert (await post(http, "/end_recording"))[0] == 400
