"""Provider ``osworld`` without desktop-env: its guest's answers, its pins, its messages."""

import asyncio
import contextlib
import hashlib

import pytest
from aiohttp import web

from arpo_replica.actions.types import Click, TypeText, Wait
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.base.files import remembered_sha256
from arpo_replica.config.desktop import DesktopConfig, OSWorldConfig
from arpo_replica.providers import osworld
from arpo_replica.providers.osworld import OSWorldDesktop
from arpo_replica.suites.osworld.client import urls_of
from arpo_replica.tasks.model import Task
from fake_guest import SCREEN, FakeGuest, executed
from fakes import png

TASK = Task("t", "os", "Do it.", [], {"func": "exact_match"}, {}, "0")


class FakeWorker:
    """Stands for both workers: a desktop at ``address`` and a score."""

    def __init__(self, address):
        self.address = address
        self.calls = []

    async def start_desktop(self, timeout_s, **options):
        self.calls.append("start")
        return self.address

    async def reset_desktop(self, fresh, timeout_s):
        self.calls.append(f"reset fresh={fresh}")
        return self.address

    async def set_up(self, task, address, screen, password):
        self.calls.append(f"set up {task.id} {password}")
        return ["a window was not there"]

    async def evaluate(self, task, address, screen, failed, password):
        return 0.5

    async def close(self):
        self.calls.append("close")


@pytest.fixture
async def guest():
    async with FakeGuest() as running:
        yield running


@pytest.fixture
async def desktop(guest, monkeypatch, tmp_path):
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path))
    removed = []
    monkeypatch.setattr(osworld, "remove_containers", removed.append)
    config = DesktopConfig(provider="osworld", screen=SCREEN, act_timeout_s=2, osworld={"settle_ms": 200})
    worker = FakeWorker(guest.address)
    one = OSWorldDesktop("d", config, worker, worker)
    await one.start()
    yield one
    await one.close()
    assert removed == [one.mark]


async def test_a_desktop_is_reverted_for_each_episode_but_the_first(desktop):
    await desktop.reset(TASK)
    await desktop.reset(TASK)
    assert desktop.worker.calls == [
        "start",
        *("reset fresh=True", "set up t password"),
        *("reset fresh=False", "set up t password"),
    ]
    assert await desktop.evaluate(TASK, None) == 0.5


LAUNCH = [{"type": "launch", "parameters": {"command": ["gimp"]}}]


class Screen:
    """Shows the pictures one after the other, each for so many screenshots; the last one stays."""

    def __init__(self, *pictures: tuple[int, int]):
        self.left = [png((shade, 0, 0), SCREEN) for shade, times in pictures for _ in range(times)]
        self.shown = b""

    def __call__(self, _: object) -> web.Response:
        self.shown = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        return web.Response(body=self.shown, content_type="image/png")


@pytest.mark.parametrize(
    ("config", "pictures"),
    [
        (LAUNCH, [(0, 60), (50, 3), (100, 1)]),  # a splash screen, then the window
        (LAUNCH, [(0, 1), (100, 1)]),  # it was there when the set-up was over
        ([], [(0, 1), (100, 1)]),
        ([], [(100, 1)]),  # nothing to be seen
    ],
)
async def test_a_reset_returns_when_the_tasks_window_is_there(desktop, guest, monkeypatch, config, pictures):
    """Not after the 60 s that OSWorld's runner sleeps, and not before."""
    monkeypatch.setattr(osworld, "LOOK_S", 0.01)
    monkeypatch.setattr(osworld, "CALM_S", 0.1)
    guest.answers["/screenshot"] = Screen(*pictures)
    async with asyncio.timeout(5):
        await desktop.reset(Task("t", "os", "Do it.", config, {"func": "exact_match"}, {}, "0"))
    assert await desktop.screenshot() == png((100, 0, 0), SCREEN)


async def test_a_reset_waits_for_no_window_and_no_rest_for_ever(desktop, guest, monkeypatch):
    monkeypatch.setattr(osworld, "LOOK_S", 0.01)
    monkeypatch.setattr(osworld, "WINDOW_S", 0.2)
    monkeypatch.setattr(osworld, "SET_UP_S", 0.2)
    task = Task("t", "os", "Do it.", LAUNCH, {"func": "exact_match"}, {}, "0")
    guest.answers["/screenshot"] = Screen((0, 1))
    async with asyncio.timeout(5):
        await desktop.reset(task)
    guest.answers["/screenshot"] = Screen(*((shade % 250, 1) for shade in range(300)))  # a video
    async with asyncio.timeout(5):
        await desktop.reset(task)


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: web.Response(status=500, text="no"),
        lambda _: executed(code=1, error="Traceback ..."),
        lambda _: web.Response(text="no JSON"),
    ],
)
async def test_an_action_goes_out_once_whatever_the_answer(desktop, guest, answer):
    await desktop.reset(TASK)
    guest.answers["/execute"] = answer
    with pytest.raises(DesktopError):
        await desktop.act(Click(1, 2), "a1")
    await desktop.act(Click(1, 2), "a1")  # seen before
    assert guest.count("/execute") == 1


async def test_text_goes_out_as_an_argument(desktop, guest):
    await desktop.reset(TASK)
    await desktop.act(TypeText("'); import os; os.system('x'); ('"), "a1")
    await desktop.act(Wait(), "a2")
    (body,) = [body for _, path, body in guest.calls if path == "/execute"]
    assert body["command"][:2] == ["python", "-c"]
    assert body["shell"] is False
    assert "pyautogui.write(\"'); import os; os.system('x'); ('\")" in body["command"][2]


async def test_another_screen_than_the_configs_is_refused(desktop, guest):
    guest.answers["/screen_size"] = lambda _: web.json_response({"width": 1, "height": 2})
    with pytest.raises(UserError, match=r"set desktop\.screen to \[1, 2\]"):
        await desktop.reset(TASK)


async def test_tasks_of_our_own_are_refused(desktop):
    own = Task("m", "miniwob", "Do it.", [], {"func": "miniwob_reward"}, {}, "0")
    with pytest.raises(UserError, match="no task of OSWorld"):
        await desktop.reset(own)


# -- pins -----------------------------------------------------------------------------------------


def test_a_machine_of_other_bytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path / "cache"))
    machine = tmp_path / "Ubuntu.qcow2"
    machine.write_bytes(b"one")
    good = hashlib.sha256(b"one").hexdigest()
    osworld._check_machine(machine, good)
    assert remembered_sha256(machine) == good  # from the note
    machine.write_bytes(b"another")
    with pytest.raises(UserError, match="vm_sha256 is " + good):
        osworld._check_machine(machine, good)
    with pytest.raises(UserError, match="does not exist"):
        osworld._check_machine(tmp_path / "none", None)


def test_an_image_of_another_digest_is_refused(monkeypatch):
    have, want = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    image = {"id": have, "digests": [], "labels": {}}
    monkeypatch.setattr(osworld.OSWorldEngine, "image", lambda *_: image)
    osworld._check_image(OSWorldConfig())
    osworld._check_image(OSWorldConfig(image_digest=have))
    with pytest.raises(UserError, match=f"has the digest {have}, but desktop.osworld.image_digest is {want}"):
        osworld._check_image(OSWorldConfig(image_digest=want))


def test_vmware_needs_vmrun_and_a_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no 'vmrun'"):
        osworld._check_vmware(OSWorldConfig(hypervisor="vmware"), 1)
    (tmp_path / "vmrun").touch(0o755)
    with pytest.raises(UserError, match=r"\.vmx"):
        osworld._check_vmware(OSWorldConfig(hypervisor="vmware"), 1)
    own = OSWorldConfig(hypervisor="vmware", vm=tmp_path / "x.vmx")
    osworld._check_vmware(own, 1)
    with pytest.raises(UserError, match=r"desktop\.count is 2.*set desktop\.count to 1"):
        osworld._check_vmware(own, 2)


@pytest.mark.parametrize("fails", ["start", "reset", "nothing"])
async def test_a_virtual_machine_is_stopped_whatever_failed(guest, monkeypatch, tmp_path, fails):
    """A worker that ran out of time is killed: it cannot stop the machine that it was starting."""
    machine, log = tmp_path / "x.vmx", tmp_path / "log"
    (tmp_path / "vmrun").write_text(f'#!/bin/sh\necho "$@" >> {log}\nexit 1\n')
    (tmp_path / "vmrun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    class Keeper(FakeWorker):
        async def start_desktop(self, timeout_s, **options):
            if fails == "start":
                raise DesktopError("longer than 2 s")
            return self.address

        async def reset_desktop(self, fresh, timeout_s):
            raise DesktopError("longer than 2 s")

        async def stop_desktop(self, timeout_s):
            if fails != "nothing":
                raise DesktopError("the evaluator of x has ended")
            self.calls.append("stop")

    own = {"hypervisor": "vmware", "vm": machine}
    config = DesktopConfig(provider="osworld", screen=SCREEN, osworld=own, count=1)
    keeper = Keeper(guest.address)
    desktop = OSWorldDesktop("vm", config, keeper, FakeWorker(guest.address))
    with contextlib.suppress(DesktopError):
        await desktop.start()
        if fails == "reset":
            await desktop.reset(TASK)
    await desktop.close()
    if fails == "nothing":
        assert keeper.calls == ["stop", "close"]
        assert not log.exists()
    else:
        assert log.read_text() == f"-T ws stop {machine} hard\n"


def test_the_mark_is_the_same_on_both_sides():
    source = (
        osworld.python_of.__globals__["ROOT"] / "src/arpo_replica/suites/osworld/desktop_env.py"
    ).read_text()
    assert f'MARK = "{osworld.VARIABLE}"' in source


# -- downloads -----------------------------------------------------------------------


def test_only_files_of_a_task_are_shared():
    def download(url):
        return {"type": "download", "parameters": {"files": [{"url": url, "path": "/a"}]}}

    task = {
        "config": [
            download("http://a/1"),
            {"type": "chrome_open_tabs", "parameters": {"urls_to_open": ["b"]}},
        ],
        "evaluator": {
            "postconfig": [download("http://a/2")],
            "result": [{"type": "vm_file"}, {"type": "cloud_file", "path": "http://a/3", "dest": "x"}],
            "expected": {"type": "cloud_file", "multi": True, "path": ["http://a/4", "http://a/5"]},
        },
    }
    assert urls_of(task) == {f"http://a/{number}" for number in range(1, 6)}
    assert urls_of({"evaluator": {"func": "infeasible"}}) == set()
