"""Several pools of desktops: spread by load; dead, draining, late and foreign ones; a folder of them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from test_pool import SETTINGS, collect, episodes, index, make_roots
from test_remote_desktops import TOKEN, until
from test_remote_desktops import Lent as ShortLent

from arpo_replica.actions.types import Click
from arpo_replica.base.errors import DesktopError, NoDesktopFree, UserError
from arpo_replica.config import load_config
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.providers import pool_folder, remote, remote_service
from arpo_replica.providers.pool_folder import Announcement, announced, make_secret, read_secret
from arpo_replica.providers.remote import RemoteProvider, Service
from arpo_replica.providers.remote_service import DesktopService
from arpo_replica.tasks.model import load_task
from fakes import SCREEN, make_task


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    monkeypatch.setenv("ARPO_DESKTOP_TOKEN", TOKEN)
    for name, seconds in {"WAIT_S": 0.4, "FULL_S": 0.05, "REST_S": 0.3, "LOOK_S": 0.05}.items():
        monkeypatch.setattr(remote, name, seconds)


class Lent(ShortLent):
    """A pool whose leases last longer than a busy machine's pauses."""

    def __init__(self, folder: Path, **options):
        super().__init__(folder, **{"lease_s": 4.0} | options)


def make_tasks(folder: Path, count: int = 8) -> list:
    """Task files that a pool reads, as ``make_task`` would make them."""
    made = []
    for number in range(count):
        task = make_task(number)
        path = folder / "tasks" / task.domain / f"{task.id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = {"id": task.id, "instruction": task.instruction, "config": [], "evaluator": task.evaluator}
        path.write_text(json.dumps(text))
        made.append(load_task(path))
    return made


@asynccontextmanager
async def pools(folder: Path, how_many: int = 2, **options):
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Lent(folder, **options)) for _ in range(how_many)]


def provider_of(lent, count: int = 2, **settings) -> RemoteProvider:
    where = {"pools": [pool.url for pool in lent]}
    base = {"provider": "remote", "screen": SCREEN, "count": count, "remote": where}
    return RemoteProvider(DesktopConfig.model_validate(base | settings))


async def test_desktops_are_spread_by_load(tmp_path):
    async with pools(tmp_path, 3, count=4) as lent:
        provider = provider_of(lent)
        desktops = [await provider.start(f"d-{number}") for number in range(6)]
        assert [len(pool.service.leases) for pool in lent] == [2, 2, 2]
        await asyncio.gather(*(desktop.close() for desktop in desktops[:2]))
        assert sorted(len(pool.service.leases) for pool in lent) == [1, 1, 2]
        for number in range(2):
            desktops.append(await provider.start(f"e-{number}"))
        assert [len(pool.service.leases) for pool in lent] == [2, 2, 2]
        await asyncio.gather(*(desktop.close() for desktop in desktops))


async def test_a_pool_that_dies_costs_its_episodes_one_attempt_elsewhere(tmp_path):
    """All episodes are there, none is an env_error, none of the other pool's was disturbed."""
    tasks = make_tasks(tmp_path)
    roots = make_roots(tmp_path / "out", tasks=1, trials=2)
    roots = [type(root)(root.path, root.split, root.trial, tasks) for root in roots]
    async with Lent(tmp_path, count=2, delay_s=0.05) as kept:
        doomed = Lent(tmp_path, count=2, delay_s=0.05)
        await doomed.__aenter__()

        async def kill() -> None:
            await until(lambda: any(desktop.actions for desktop in doomed.fakes.desktops))
            await doomed.server.close()

        killer = asyncio.create_task(kill())
        progress = await collect(roots, provider_of([kept, doomed]), settings=SETTINGS)
        await killer
    assert progress.outcomes == {"success": 16}
    records = [record for root in roots for record in episodes(root)]
    assert sum(record.attempts > 1 for record in records) <= 2
    assert max(record.attempts for record in records) <= 2
    assert all(len(index(root)) == len(tasks) for root in roots)


async def test_an_idle_desktop_of_a_dead_pool_costs_no_attempt(tmp_path):
    (task,) = make_tasks(tmp_path, 1)
    async with Lent(tmp_path) as kept:
        doomed = Lent(tmp_path)
        await doomed.__aenter__()
        provider = provider_of([doomed, kept], 4)
        desktops = [await provider.start(f"d-{number}") for number in range(2)]
        assert len(doomed.service.leases) == 1
        await doomed.server.close()
        await asyncio.gather(*(desktop.reset(task) for desktop in desktops))
        assert len(kept.service.leases) == 2
        await asyncio.gather(*(desktop.act(Click(1, 1), "a") for desktop in desktops))
        await asyncio.gather(*(desktop.close() for desktop in desktops))
        with pytest.raises(DesktopError, match="closed"):
            await desktops[0].reset(task)


async def test_fewer_desktops_than_wanted_are_waited_for_and_no_attempt_is_counted(tmp_path):
    tasks = make_tasks(tmp_path, 6)
    (root,) = make_roots(tmp_path / "out", tasks=1, trials=1)
    async with Lent(tmp_path, count=1, delay_s=0.1) as lent:
        provider = provider_of([lent], 4)
        progress = await collect([type(root)(root.path, root.split, root.trial, tasks)], provider)
    assert progress.outcomes == {"success": 6}
    assert {record.attempts for record in episodes(root)} == {1}
    assert lent.fakes.most == 1


async def test_a_pool_that_comes_late_is_used(tmp_path):
    folder = tmp_path / "pools"
    config = {"provider": "remote", "screen": SCREEN, "count": 2, "remote": {"pools": str(folder)}}
    provider = RemoteProvider(DesktopConfig.model_validate(config))
    with pytest.raises(UserError, match="no readable token in"):
        provider.check()
    token = make_secret(folder)
    with pytest.raises(UserError, match="No pool of desktops has announced itself in"):
        provider.check()
    with pytest.raises(DesktopError, match="no pool of desktops has announced itself"):
        await provider.start("d")
    async with pools(tmp_path, 2, count=1, token=token) as (first, second):
        with Announcement(folder, {"url": first.url}):
            await asyncio.sleep(0.1)
            one = await provider.start("d")
            with pytest.raises(NoDesktopFree, match="all 1 desktops"):
                await provider.start("e")
            waiting = asyncio.create_task(provider.start("f"))
            (folder / "pool_late.json").write_text(json.dumps({"url": second.url}))
            other = await waiting
        assert [len(pool.service.leases) for pool in (first, second)] == [1, 1]
        await one.close()
        await other.close()
    assert [entry["url"] for entry in announced(folder)] == [second.url], "the first one is withdrawn"


async def test_a_desktop_of_a_draining_pool_is_changed_for_another_between_episodes(tmp_path):
    (task,) = make_tasks(tmp_path, 1)
    async with pools(tmp_path, 2) as (first, second):
        provider = provider_of([first, second])
        desktop = await provider.start("d")
        await desktop.reset(task)
        first.service.draining = True
        await until(lambda: desktop._pool.draining)
        await desktop.act(Click(1, 1), "a")  # the episode goes on where it is
        assert len(first.fakes.desktops[0].actions) == 1
        await desktop.reset(task)
        assert (len(first.service.leases), len(second.service.leases)) == (0, 1)
        await until(lambda: first.fakes.desktops[0].closed)
        fresh = await provider.start("e")
        assert len(second.service.leases) == 2, "a draining pool lends nothing"
        with pytest.raises(NoDesktopFree):
            await provider.start("f")
        second.service.draining = True
        with pytest.raises(DesktopError, match="about to end"):
            await provider.start("g")
        await until(lambda: fresh._pool.draining)
        await fresh.reset(task)  # nowhere to go: it stays for as long as the pool does
        await fresh.close()
        await desktop.close()


async def test_a_pool_with_another_task_file_is_left_out_and_the_others_go_on(tmp_path, caplog):
    (task,) = make_tasks(tmp_path, 1)
    stale = make_tasks(tmp_path / "stale", 1)[0]
    path = tmp_path / "stale" / "tasks" / task.domain / f"{task.id}.json"
    path.write_text(path.read_text() + "\n")
    assert load_task(path).sha256 != stale.sha256
    async with Lent(tmp_path / "stale") as old, Lent(tmp_path) as new:
        provider = provider_of([old, new])
        desktop = await provider.start("d")
        await desktop.reset(task)
        assert (len(old.service.leases), len(new.service.leases)) == (0, 1)
        assert "fake/task-000 is another version on the desktops' machine" in caplog.text
        await desktop.close()
        only = await provider_of([old]).start("d")
        with pytest.raises(UserError, match="give both machines the same task files"):
            await only.reset(task)
        await only.close()


async def test_a_trainings_keeper_lends_on_what_pools_lend(tmp_path):
    """Desktops of pools reach a training through the service on its own node."""
    (task,) = make_tasks(tmp_path, 1)
    async with Lent(tmp_path, count=1) as lent, Lent(tmp_path, count=1) as late:
        config = provider_of([lent])._config
        keeper = DesktopService(provider_of([lent]), config, token=TOKEN, roots=[tmp_path / "tasks"], stock=2)
        server = TestServer(keeper.application(), host="127.0.0.1")
        await server.start_server()
        url = f"http://127.0.0.1:{server.port}"
        provider = RemoteProvider(config, Service(url, 60, TOKEN))
        first = await provider.start("d")
        with pytest.raises(NoDesktopFree):
            await provider.start("e")
        await first.reset(task)
        assert first.ran_on == {"pool": lent.url, "engine": "fake"}, "the pool, not the keeper"
        await first.act(Click(1, 1), "a")
        assert [action for action, _ in lent.fakes.desktops[0].actions] == [Click(1, 1)]
        keeper.provider._config.remote.pools.append(late.url)
        second = await provider.start("e")
        await second.reset(task)
        await lent.server.close()
        with pytest.raises(DesktopError, match="did not answer act"):
            await first.act(Click(1, 1), "b")
        for desktop in (first, second):
            await desktop.close()
        third = await provider.start("f")
        await third.reset(task)
        assert len(late.service.leases) == 1
        await third.close()
        await server.close()


async def test_waiting_because_of_another_pools_task_file_counts_as_no_attempt(tmp_path):
    tasks = make_tasks(tmp_path, 6)
    make_tasks(tmp_path / "stale", 6)
    for path in (tmp_path / "stale").rglob("*.json"):
        path.write_text(path.read_text() + "\n")
    (root,) = make_roots(tmp_path / "out", tasks=1, trials=1)
    async with Lent(tmp_path / "stale", count=3) as old, Lent(tmp_path, count=1, delay_s=0.05) as new:
        await collect([type(root)(root.path, root.split, root.trial, tasks)], provider_of([old, new], 4))
    assert {(record.outcome, record.attempts) for record in episodes(root)} == {("success", 1)}
    assert len(episodes(root)) == 6 and not any(desktop.actions for desktop in old.fakes.desktops)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda pool: pool.facts.update(image="sha256:b"),
            r"have another image \(sha256:b\) than .*sha256:a",
        ),
        (
            lambda pool: pool.service.__dict__.update(_token=b"other"),
            "refuses the token; set ARPO_DESKTOP_TOKEN",
        ),
        (lambda pool: pool.service.config.__dict__.update(screen=(9, 9)), "desktop.screen is"),
    ],
)
async def test_a_pool_that_is_not_like_the_others_is_refused_in_one_sentence(
    tmp_path, caplog, change, sentence
):
    async with pools(tmp_path, 3) as lent:
        for pool in lent:
            pool.facts = {"provider": "fake", "image": "sha256:a"}
            pool.fakes.describe = lambda facts=pool.facts: facts
        change(lent[1])
        provider = provider_of(lent, 4)
        await asyncio.to_thread(provider.check)
        assert re.search(sentence, caplog.text), caplog.text
        desktops = [await provider.start(f"d-{number}") for number in range(4)]
        assert [len(pool.service.leases) for pool in lent] == [2, 0, 2]
        with pytest.raises(NoDesktopFree):
            await provider.start("e")
        await asyncio.gather(*(desktop.close() for desktop in desktops))


async def test_clocks_that_differ_are_named(tmp_path, monkeypatch):
    async with Lent(tmp_path) as lent:
        provider = lent.provider()
        real = time.time
        monkeypatch.setattr(remote.time, "time", lambda: real() - 3600)
        monkeypatch.setattr(
            remote_service, "time", type("Clock", (), {"time": real, "monotonic": time.monotonic})
        )
        with pytest.raises(UserError, match=r"The clock of http://127.* is 3600 s ahead"):
            await asyncio.to_thread(provider.check)


async def test_the_number_of_desktops_is_that_of_all_pools(tmp_path):
    async with pools(tmp_path, 2) as lent:
        await asyncio.to_thread(provider_of(lent, 4).check)
        with pytest.raises(UserError, match="lends only 4 desktops; lower it"):
            await asyncio.to_thread(provider_of(lent, 5).check)
        await lent[1].server.close()
        await asyncio.to_thread(provider_of(lent, 5).check)  # it may come back
    with pytest.raises(UserError, match=r"does not answer .* does not answer"):
        await asyncio.to_thread(provider_of(lent, 4).check)


async def test_calls_to_a_pool_without_power_end_with_its_leases(tmp_path):
    """No connection is closed then: only the silence tells."""
    (task,) = make_tasks(tmp_path, 1)
    async with Lent(tmp_path, delay_s=30, lease_s=60) as lent:
        desktop = await lent.provider().start("d")
        desktop._pool._beat.cancel()
        desktop._pool._beat = asyncio.create_task(desktop._pool._heartbeats(0.4))
        call = asyncio.create_task(desktop.reset(task))
        await until(lambda: lent.service.leases[desktop._lease].running is not None)

        async def silence(*_: object) -> None:
            raise remote.PoolSilent("no answer")

        desktop._pool.post = silence
        with pytest.raises(DesktopError, match="did not answer reset: its lease has ended"):
            await asyncio.wait_for(call, 5)
        await desktop.close()


# --- the folder, and a pool as a process ----------------------------------------------------------------


def test_the_first_one_makes_the_token_and_others_cannot_read_it(tmp_path):
    token = make_secret(tmp_path / "pools")
    assert make_secret(tmp_path / "pools") == token == read_secret(tmp_path / "pools")
    path = tmp_path / "pools" / pool_folder.TOKEN
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in (tmp_path / "pools").iterdir()] == ["token"]
    path.chmod(0o644)
    with pytest.raises(UserError, match="Others can read the token"):
        read_secret(tmp_path / "pools")


def test_a_file_that_announces_nothing_is_passed_over(tmp_path):
    for name, text in {"pool_a.json": "{", "pool_b.json": "{}", "other.json": '{"url": "x"}'}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "pool_c.json").write_text('{"url": "http://127.0.0.1:1"}')
    assert announced(tmp_path) == [{"url": "http://127.0.0.1:1"}]


@pytest.mark.parametrize("pools", ["http://127.0.0.1:8700", ["ftp://x"], [], ["http://user:secret@host"]])
def test_pools_are_urls_or_a_folder(pools):
    with pytest.raises(ValueError, match="pools") as refused:
        DesktopConfig.model_validate({"remote": {"pools": pools}})
    assert "remote.pools" in str(refused.value)


LEND = """
import sys
from pathlib import Path
from arpo_replica.config import load_config
from arpo_replica.providers import remote_service
from fakes import FakeProvider
remote_service.make_provider = lambda config: FakeProvider()
config = load_config(Path(sys.argv[1]))
remote_service.serve_desktops(
    config, host="127.0.0.1", announce=Path(sys.argv[2]), idle_minutes=float(sys.argv[3]), drain_s=20
)
"""
ROOT = Path(__file__).parents[2]


def lend(folder: Path, idle_minutes: float = 0.0) -> subprocess.Popen[bytes]:
    """A pool of fakes in a process of its own, of the demo's screen and number."""
    command = [sys.executable, "-c", LEND, str(ROOT / "configs/demo.yaml"), str(folder), str(idle_minutes)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT / "tests")})


async def test_a_pool_announces_itself_drains_and_ends(tmp_path):
    folder, own = tmp_path / "pools", load_config(ROOT / "configs/demo.yaml").desktop
    process = lend(folder)
    try:
        await until(lambda: folder.is_dir() and announced(folder), 30)
        entry = announced(folder)[0]
        assert entry["count"] == own.count and entry["url"].startswith("http://127.0.0.1:")
        update = {"provider": "remote", "remote": own.remote.model_copy(update={"pools": folder})}
        provider = RemoteProvider(own.model_copy(update=update))
        desktop = await provider.start("d")
        process.send_signal(signal.SIGTERM)
        await until(lambda: not announced(folder))
        with pytest.raises(DesktopError, match=r"no pool|about to end"):
            for _ in range(20):
                await (await provider.start("e")).close()
        assert (await desktop.screenshot()).startswith(b"\x89PNG"), "what is lent may be used"
        assert process.poll() is None
        await desktop.close()
        assert await asyncio.to_thread(process.wait, 10) == 0
    finally:
        process.kill()
        process.wait()


def test_a_pool_that_nobody_uses_ends(tmp_path):
    process = lend(tmp_path, idle_minutes=0.01)
    try:
        assert process.wait(30) == 0
        assert announced(tmp_path) == []
    finally:
        process.kill()
        process.wait()
