"""What evaluators may touch: they read, and one even runs, what a policy wrote."""

from __future__ import annotations

import psutil
import pytest
from aiohttp import web
from osworld_tasks import command, expects, make_task, step

from arpo_replica.base.errors import DesktopError
from arpo_replica.base.processes import command_of, is_alive
from arpo_replica.suites.osworld.client import path_of
from arpo_replica.suites.osworld.confine import can_confine
from fake_guest import SCREEN, FakeGuest, executed


def runs_a_program(url):
    """An evaluator that runs ``main.py`` of the desktop against a test suite."""
    return {
        "func": "check_python_file_by_test_suite",
        "result": {"type": "vm_file", "path": "/main.py", "dest": "main.py"},
        "expected": {"type": "cloud_file", "path": url, "dest": "suite.py"},
        "options": {"test_function_name": "test"},
    }


@pytest.mark.parametrize("passes", [True, False])
async def test_a_policys_program_runs_without_network_and_files_of_ours(worker, guest, downloads, passes):
    if not can_confine():
        pytest.skip("bubblewrap does not work here")
    # The suite asserts what the policy's program must not be able to do; it scores 1 only then.
    secret = downloads / "secret"
    secret.write_text("x")
    guest.files["/main.py"] = b"print('the program of the policy')\n"
    suite = (
        "import main, os, socket, subprocess\n"
        "subprocess.Popen(['sleep', '1001'], start_new_session=True)\n"
        "def test():\n"
        "    def fails(call):\n"
        "        try:\n"
        "            call()\n"
        "        except OSError:\n"
        "            return True\n"
        "        return False\n"
        f"    return (fails(lambda: socket.create_connection(('127.0.0.1', {guest.port}), 2))\n"
        f"        and fails(lambda: open({str(secret)!r}, 'a'))\n"
        "        and fails(lambda: os.stat('/var/run'))\n"
        "        and fails(lambda: os.listdir('/root/.ssh'))\n"
        "        and 'DOCKER_HOST' not in os.environ and os.getuid() != 0\n"
        f"        and {passes})\n"
    )
    url = f"http://127.0.0.1:1/{passes}.py"
    path_of(downloads, url).write_text(suite)
    task = make_task(runs_a_program(url))
    assert await worker.evaluate(task, guest.address, SCREEN, False) == float(passes)
    left = [one for one in psutil.process_iter() if command_of(one) == "sleep 1001" and is_alive(one)]
    assert left == []


async def test_what_a_desktop_prints_is_no_code(worker, guest, tmp_path):
    mark = tmp_path / "mark"
    evaluator = {
        "func": "check_gnome_favorite_apps",
        "result": command("gsettings"),
        "expected": expects(["a.desktop"]),
    }
    guest.answers["/execute"] = lambda _: executed("['a.desktop']")
    assert await worker.evaluate(make_task(evaluator), guest.address, SCREEN, False) == 1.0
    guest.answers["/execute"] = lambda _: executed(f"[open({str(mark)!r}, 'w').name]")
    with pytest.raises(DesktopError, match="malformed"):
        await worker.evaluate(make_task(evaluator), guest.address, SCREEN, False)
    assert not mark.exists()


# -- downloads ------------------------------------------------------------------------------------


async def test_downloads_are_fetched_once_and_whole(worker, guest, downloads):
    async with FakeGuest() as web_site:
        url = f"http://127.0.0.1:{web_site.port}/gold.txt"
        web_site.answers["/gold.txt"] = lambda _: Partial()
        task = make_task(config=[step("download", files=[{"url": url, "path": "/home/user/a.txt"}])])
        with pytest.raises(DesktopError, match=r"gold\.txt could not be downloaded"):
            await worker.set_up(task, guest.address, SCREEN)
        assert [path.name for path in downloads.glob(".*")] == []
        assert not path_of(downloads, url).exists()
        web_site.answers["/gold.txt"] = lambda _: web.Response(body=b"gold")
        for _ in range(2):
            await worker.set_up(task, guest.address, SCREEN)
        assert web_site.count("/gold.txt") == 4  # three tries that broke off, one that did not
    assert [b"gold" in upload and b"/home/user/a.txt" in upload for upload in guest.uploads] == [True, True]


class Partial(web.StreamResponse):
    """A download that breaks off."""

    async def prepare(self, request):
        self.content_length = 1000
        writer = await super().prepare(request)
        await self.write(b"part")
        request.transport.abort()
        return writer


async def test_gold_files_come_from_the_downloads(worker, guest, downloads):
    url = "http://127.0.0.1:1/gold.txt"
    path_of(downloads, url).write_text("a\nb\n")
    evaluator = {
        "func": "compare_text_file",
        "result": {"type": "vm_file", "path": "/a.txt", "dest": "a.txt"},
        "expected": {"type": "cloud_file", "path": url, "dest": "gold.txt"},
    }
    for text, wanted in (("a\nb\n", 1.0), ("a\nc\n", 0.0)):
        guest.files["/a.txt"] = text.encode()
        assert await worker.evaluate(make_task(evaluator), guest.address, SCREEN, False) == wanted
