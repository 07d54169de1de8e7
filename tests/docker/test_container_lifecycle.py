"""How container desktops start, break, are replaced and end."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import aiohttp
import pytest
from docker_helpers import (
    IMAGE,
    LARGE,
    SMALL,
    THEIRS,
    containers,
    image,
    inside,
    name_of,
    owned,
    provider,
    task,
    until,
)

from arpo_replica.actions.types import Click
from arpo_replica.base.errors import DesktopError
from arpo_replica.providers.docker_engine import LABEL, OWNER, owner
from arpo_replica.providers.relay import relay
from arpo_replica.suites.miniwob.pages import DOMAIN
from arpo_replica.suites.osworld import client
from arpo_replica.tasks.model import load_task

pytestmark = pytest.mark.docker
MINIWOB = sorted(Path("data/tasks", DOMAIN).glob("*.json"))[0]


@pytest.fixture
def scratch(monkeypatch):
    """An empty folder for temporary files. Sockets do not bear pytest's long paths."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


class FakeWorker:
    """In place of OSWorld's evaluators: looks through the address that it is given."""

    score: float | Exception = 0.5
    hang = False
    closed = 0
    ports: set[int]

    @classmethod
    async def start(cls, name):
        return cls()

    async def set_up(self, task, address, screen):
        if FakeWorker.hang:
            await asyncio.sleep(60)
        FakeWorker.ports.add(address.server)
        async with aiohttp.ClientSession(f"http://{address.host}:{address.server}") as http:
            async with http.post("/setup/launch", json={"command": ["gedit"]}) as answer:
                assert answer.status == 200
            async with http.get("/screenshot") as answer:
                assert image(await answer.read()).size == screen

    async def evaluate(self, task, address, screen, last_action_failed):
        if isinstance(FakeWorker.score, Exception):
            raise FakeWorker.score
        assert not last_action_failed
        return FakeWorker.score

    async def close(self):
        FakeWorker.closed += 1


@pytest.fixture
def worker(monkeypatch):
    monkeypatch.setattr(client, "OSWorldWorker", FakeWorker)
    FakeWorker.score, FakeWorker.hang, FakeWorker.closed, FakeWorker.ports = 0.5, False, 0, set()
    return FakeWorker


def osworld_task(**raw):
    launch = {"type": "launch", "parameters": {"command": ["gedit"]}}
    return task([launch], THEIRS, **raw)


async def test_eight_at_once(engine, scratch):
    pool = provider(screen=SMALL, container={"spares": 0}, memory_mb=400, start_timeout_s=120)
    desktops = await asyncio.gather(*(pool.start(f"test-{n}") for n in range(8)))
    try:
        await asyncio.gather(*(desktop.reset(load_task(MINIWOB)) for desktop in desktops))
        assert len({name_of(desktop) for desktop in desktops}) == 8
        assert len(owned(engine)) == 8
        for n, desktop in enumerate(desktops):
            assert image(await desktop.screenshot()).size == SMALL
            assert await inside(desktop, f"echo {n} > ~/mine; sleep 0.1; cat ~/mine") == str(n)

        async def through_a_relay(desktop):
            running = desktop._running
            async with relay(running.server_path, running.devtools_path, running.vlc_path) as address:
                async with aiohttp.ClientSession() as http:
                    page = await http.get(f"http://{address.host}:{address.server}/health")
                    version = await http.get(f"http://{address.host}:{address.chromium}/json/version")
                    assert (page.status, version.status) == (200, 200)
                    await asyncio.sleep(0.2)
                return {address.server, address.chromium, address.vlc}

        ports = await asyncio.gather(*(through_a_relay(desktop) for desktop in desktops))
        assert len(set().union(*ports)) == 24
        with pytest.raises(aiohttp.ClientError):
            async with aiohttp.ClientSession() as http:
                await http.get(f"http://127.0.0.1:{min(ports[0])}/health")
    finally:
        await asyncio.gather(*(desktop.close() for desktop in desktops))
    assert owned(engine) == []
    assert list(scratch.iterdir()) == []


async def test_tasks_of_our_own_are_reset_in_place(engine):
    desktop = await provider(screen=SMALL).start("test")
    try:
        own = load_task(MINIWOB)
        await desktop.reset(own)
        first = name_of(desktop)
        assert len(image(await desktop.screenshot()).getcolors(1 << 16)) > 5
        await inside(desktop, "echo x > ~/left")
        assert await desktop.evaluate(own, None) == 0.0
        await desktop.reset(own)
        assert name_of(desktop) == first
        assert await inside(desktop, "ls ~/left 2>/dev/null") == ""
    finally:
        await desktop.close()


async def test_a_hard_reset_is_a_new_container(engine, capsys):
    desktop = await provider(container={"reset": "hard", "spares": 1}).start("test")
    try:
        seen, times = set(), []
        for _ in range(4):
            began = time.monotonic()
            await desktop.reset(task())
            times.append(round(time.monotonic() - began, 2))
            seen.add(name_of(desktop))
            assert await inside(desktop, "ls ~/left 2>/dev/null; echo x > ~/left") == ""
            await asyncio.sleep(2)  # an episode: the next container is started meanwhile
        assert len(seen) == 4
        assert min(times) < 2.5  # the goal of each, on a machine that has nothing else to do
        with capsys.disabled():
            print(f"\nhard resets, s: {times}; load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores")
    finally:
        await desktop.close()


async def test_a_desktop_killed_in_mid_episode(engine):
    desktop = await provider(screen=SMALL).start("test")
    try:
        await desktop.reset(load_task(MINIWOB))
        engine._client.api.kill(name_of(desktop))
        began = time.monotonic()
        with pytest.raises(DesktopError, match="has ended"):
            await desktop.act(Click(10, 10), uuid.uuid4().hex)
        with pytest.raises(DesktopError, match="has ended"):
            await desktop.screenshot()
        assert time.monotonic() - began < 5
        await desktop.reset(load_task(MINIWOB))
        assert image(await desktop.screenshot()).size == SMALL
    finally:
        await desktop.close()


async def test_osworld_tasks_go_to_osworlds_evaluators(engine, worker):
    desktop = await provider().start("test")
    try:
        await desktop.reset(osworld_task())
        first = name_of(desktop)
        assert image(await desktop.screenshot()).size == LARGE
        assert desktop._running is not None
        assert "gedit" in await inside(desktop, "ps -eo comm=")  # its window is there when reset returns
        assert await desktop.evaluate(osworld_task(), None) == 0.5
        worker.score = DesktopError("the metric broke")
        with pytest.raises(DesktopError, match="the metric broke"):
            await desktop.evaluate(osworld_task(), None)
        assert worker.closed == 1
        await desktop.reset(osworld_task())
        assert name_of(desktop) != first
    finally:
        await desktop.close()
    assert worker.closed == 2


async def test_a_desktop_killed_while_it_is_set_up(engine, worker):
    worker.hang = True
    desktop = await provider().start("test")
    try:
        resetting = asyncio.create_task(desktop.reset(osworld_task()))
        await asyncio.sleep(0.5)
        engine._client.api.kill(name_of(desktop))
        began = time.monotonic()
        with pytest.raises(DesktopError, match="has ended"):
            await resetting
        assert time.monotonic() - began < 5
        assert worker.closed == 1
    finally:
        await desktop.close()


OWNER_PROGRAM = """
import asyncio, os, sys
sys.path.insert(0, sys.argv[1])
from docker_helpers import name_of, provider
async def main():
    desktop = await provider(container={"spares": 1}).start("test")
    print(name_of(desktop), flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_a_killed_owner_leaves_nothing(engine, scratch):
    command = [sys.executable, "-c", OWNER_PROGRAM, str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    label = owner(process.pid)
    name = (await asyncio.to_thread(process.stdout.readline)).strip()
    assert name in containers(engine)
    process.send_signal(signal.SIGKILL)
    process.wait()

    def gone():
        found = engine._client.containers.list(
            all=True, filters={"label": f"{OWNER}={label}"}, ignore_removed=True
        )
        return not found

    # They end by themselves, before anybody looks for them; one that is being made right now may stay ...
    assert await until(lambda: name not in containers(engine), 15)
    desktop = await provider(screen=SMALL).start("test")  # ... until the next study starts.
    await desktop.close()
    assert await until(gone, 15)
    assert len(list(scratch.iterdir())) <= 1  # the folder of a container that was being made


async def test_only_containers_of_ended_processes_are_reaped(engine):
    ended = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220
    dead = owner(ended.pid)
    ended.kill()
    ended.wait()
    labels = {
        "dead": {LABEL: "x", OWNER: dead},
        "ours": {LABEL: "x", OWNER: owner()},
        "foreign": {LABEL: "x"},
    }
    made = {key: engine._client.containers.create(IMAGE, labels=value) for key, value in labels.items()}
    try:
        removed = await asyncio.to_thread(engine.reap)
        assert made["dead"].name in removed
        left = containers(engine)
        assert made["dead"].name not in left
        assert {made["ours"].name, made["foreign"].name} <= left
    finally:
        for key in ("ours", "foreign"):
            made[key].remove()


async def test_a_cancelled_start_leaves_nothing(engine, scratch):
    pool = provider()
    for pause in (0.0, 0.15, 0.3, 0.4, 0.5, 0.7):
        starting = asyncio.create_task(pool.start("test"))
        await asyncio.sleep(pause)
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await starting).close()  # it was there before
    assert owned(engine) == []
    assert list(scratch.iterdir()) == []


async def test_a_start_cancelled_while_the_engine_is_asked_leaves_nothing(engine, scratch, monkeypatch):
    pool, asked = provider(), asyncio.Event()

    async def never_answers():
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(pool, "ran_on", never_answers)
    starting = asyncio.create_task(pool.start("test"))
    await asked.wait()
    starting.cancel()
    await asyncio.wait({starting})
    assert owned(engine) == []
    assert list(scratch.iterdir()) == []


async def test_an_image_without_our_guest_is_a_desktop_error(engine):
    own = engine._client.containers.create(IMAGE, command=["true"])
    name = f"arpo-test-{uuid.uuid4().hex[:8]}"
    try:
        own.commit(repository=name, conf={"Cmd": ["true"]})
        with pytest.raises(DesktopError, match="ended at once"):
            await provider(container={"image": name}, start_timeout_s=20).start("test")
    finally:
        own.remove()
        engine._client.images.remove(name)
