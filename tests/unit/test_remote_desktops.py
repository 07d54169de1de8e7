"""Desktops lent over HTTP, on loopback with fakes: token, leases, at most once, two sides that differ."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from arpo_replica.actions.types import Click, Fail, TypeText
from arpo_replica.base.errors import DesktopError, NoDesktopFree, UserError
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.desktop.interface import Score
from arpo_replica.providers import remote, remote_service
from arpo_replica.providers.remote import RemoteProvider
from arpo_replica.providers.remote_service import DesktopService
from arpo_replica.tasks.model import load_task
from fakes import SCREEN, FakeProvider, broken

TOKEN = "a-token-of-the-tests"
LEASE_S = 0.4


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("ARPO_DESKTOP_TOKEN", TOKEN)


@pytest.fixture
def task(tmp_path: Path):
    folder = tmp_path / "tasks" / "fake"
    folder.mkdir(parents=True)
    text = {"id": "one", "instruction": "Do one.", "config": [], "evaluator": {"func": "fake"}}
    (folder / "one.json").write_text(json.dumps(text))
    return load_task(folder / "one.json")


class Lent:
    """A service with fake desktops and clients of it."""

    def __init__(
        self, tmp_path: Path, *, count: int = 2, lease_s: float = LEASE_S, token: str = TOKEN, **fakes
    ):
        self.fakes = FakeProvider(**fakes)
        config = DesktopConfig(screen=SCREEN, count=count)
        self.service = DesktopService(
            self.fakes, config, token=token, roots=[tmp_path / "tasks"], lease_s=lease_s
        )
        self.server = TestServer(self.service.application(), host="127.0.0.1")

    async def __aenter__(self):
        await self.server.start_server()
        self.url = f"http://127.0.0.1:{self.server.port}"
        return self

    async def __aexit__(self, *_):
        await self.server.close()
        assert all(desktop.closed for desktop in self.fakes.desktops)

    def config(self, **settings) -> DesktopConfig:
        where = {"pools": [self.url]}
        base = {"provider": "remote", "screen": SCREEN, "count": 2, "remote": where, "start_timeout_s": 1}
        return DesktopConfig.model_validate(base | settings)

    def provider(self, **settings) -> RemoteProvider:
        return RemoteProvider(self.config(**settings))

    async def post(self, path: str, body: object, token: str = TOKEN) -> tuple[int, dict]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            aiohttp.ClientSession() as http,
            http.post(self.url + path, data=data, headers=headers) as answer,
        ):
            return answer.status, await answer.json() if answer.content_type == "application/json" else {}


async def until(condition, limit_s: float = 5.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_episode_over_http(tmp_path, task):
    async with Lent(tmp_path, score=Score.of(0.75, "three", "four")) as lent:
        desktop = await lent.provider().start("d")
        await desktop.reset(task)
        assert (await desktop.screenshot()).startswith(b"\x89PNG")
        await desktop.act(Click(3, 4), "a-1")
        await desktop.act(TypeText("<é\n"), "a-2")
        score = await desktop.evaluate(task, None)
        assert score == 0.75
        assert (score.expected, score.found) == ("three", "four")
        assert await desktop.evaluate(task, Fail("no")) == 0.0
        fake = lent.fakes.desktops[0]
        assert fake.actions == [(Click(3, 4), "a-1"), (TypeText("<é\n"), "a-2")]
        assert fake.task == task
        assert desktop.ran_on == {"pool": lent.url, "engine": "fake"}
        await desktop.close()
        await until(lambda: fake.closed)
        with pytest.raises(DesktopError, match="closed"):
            await desktop.screenshot()
        await desktop.close()


async def test_an_action_is_applied_at_most_once(tmp_path, task):
    async with Lent(tmp_path) as lent:
        desktop = await lent.provider().start("d")
        await desktop.reset(task)
        call = {"action": Click(1, 2).to_json(), "id": "same"}
        path = f"/v1/desktops/{desktop._lease}/act"
        assert [await lent.post(path, call) for _ in range(3)] == [(200, {})] * 3
        assert len(lent.fakes.desktops[0].actions) == 1
        await desktop.close()


async def test_a_lost_answer_to_an_action_is_not_asked_for_again(tmp_path, task):
    """The service dies after it applied the action, before it answers."""
    calls = []

    async def act(request):
        calls.append(await request.json())
        request.transport.abort()
        return web.Response()

    async def lease(request):
        return web.json_response({"lease": "x", "lease_s": 60})

    async def status(request):
        return await DesktopService._status(
            DesktopService(FakeProvider(), DesktopConfig(screen=SCREEN), token=None, roots=[]), request
        )

    app = web.Application()
    app.router.add_get("/v1/status", status)
    app.router.add_post("/v1/lease", lease)
    app.router.add_post("/v1/desktops/x/act", act)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server()
    config = {"pools": [f"http://127.0.0.1:{server.port}"]}
    desktop = await RemoteProvider(DesktopConfig(provider="remote", screen=SCREEN, remote=config)).start("d")
    with pytest.raises(DesktopError, match="did not answer act"):
        await desktop.act(Click(1, 1), "a")
    assert len(calls) == 1
    await desktop.close()
    await server.close()


@pytest.mark.parametrize("shown", ["", "wrong", TOKEN + "x", TOKEN[:-1], "ü"])
async def test_without_the_token_nothing_is_answered(tmp_path, shown):
    async with Lent(tmp_path) as lent:
        for path in ("/v1/lease", "/v1/heartbeat", "/v1/desktops/x/act", "/nowhere"):
            status, body = await lent.post(path, {}, shown)
            assert (status, body) == (401, {"error": "wrong or missing token"})
        assert lent.fakes.attempts == 0


async def test_a_wrong_token_is_a_sentence_for_the_user(tmp_path, monkeypatch):
    async with Lent(tmp_path) as lent:
        monkeypatch.setenv("ARPO_DESKTOP_TOKEN", "another")
        provider = lent.provider()
        with pytest.raises(UserError, match="refuses the token; set ARPO_DESKTOP_TOKEN") as refused:
            await asyncio.to_thread(provider.check)
        assert "another" not in str(refused.value)
        with pytest.raises(UserError, match="refuses the token"):
            await provider.start("d")
        monkeypatch.delenv("ARPO_DESKTOP_TOKEN")
        with pytest.raises(UserError, match="needs the service's token in ARPO_DESKTOP_TOKEN"):
            await asyncio.to_thread(provider.check)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"screen": [100, 100]}, "desktop.screen is"),
        ({"count": 3}, "lends only 2 desktops"),
        ({"lends": "container"}, "desktop.remote.lends is 'container'"),
    ],
)
async def test_two_sides_that_differ_are_refused_before_work(tmp_path, settings, sentence):
    async with Lent(tmp_path) as lent:
        config = lent.config(**{key: value for key, value in settings.items() if key != "lends"})
        if "lends" in settings:
            config.remote.lends = settings["lends"]
        with pytest.raises(UserError, match=sentence):
            await asyncio.to_thread(RemoteProvider(config).check)
        await asyncio.to_thread(lent.provider().check)


async def test_provenance_is_the_other_machines(tmp_path):
    async with Lent(tmp_path) as lent:
        facts = await asyncio.to_thread(lent.provider().describe)
        assert facts == {"provider": "fake", "lent_by": "remote", "lease_s": LEASE_S}
        assert lent.config().kind == "process"
        assert TOKEN not in json.dumps(facts)


async def test_a_task_file_that_differs_ends_the_job_with_a_sentence(tmp_path, task):
    async with Lent(tmp_path) as lent:
        desktop = await lent.provider().start("d")
        (tmp_path / "tasks/fake/one.json").write_text(json.dumps({**task.raw, "id": "one"}) + "\n")
        with pytest.raises(UserError, match="fake/one is another version"):
            await desktop.reset(task)
        (tmp_path / "tasks/fake/one.json").unlink()
        with pytest.raises(UserError, match="fake/one is missing"):
            await desktop.evaluate(task, None)
        await desktop.close()


async def test_a_client_that_is_silent_loses_its_desktop_in_time(tmp_path, task):
    async with Lent(tmp_path) as lent:
        desktop = await lent.provider().start("d")
        await desktop.reset(task)
        await asyncio.sleep(2 * LEASE_S)
        assert not lent.fakes.desktops[0].closed  # heartbeats keep it
        desktop._pool._beat.cancel()
        began = asyncio.get_running_loop().time()
        await until(lambda: lent.fakes.desktops[0].closed)
        assert asyncio.get_running_loop().time() - began < 3 * LEASE_S
        with pytest.raises(DesktopError, match="no such lease"):
            await desktop.screenshot()
        with pytest.raises(DesktopError, match="is gone"):
            await desktop.act(Click(1, 1), "a")
        await desktop.close()


async def test_a_running_call_ends_with_the_lease(tmp_path, task):
    async with Lent(tmp_path, delay_s=30) as lent:
        desktop = await lent.provider().start("d")
        call = asyncio.create_task(desktop.reset(task))
        await until(lambda: lent.service.leases[desktop._lease].running is not None)
        desktop._pool._beat.cancel()
        with pytest.raises(DesktopError, match="404"):
            await call
        await until(lambda: lent.fakes.desktops[0].closed)
        await desktop.close()


async def test_clients_share_the_desktops_and_the_third_one_waits(tmp_path):
    async with Lent(tmp_path) as lent:
        first, second = [await lent.provider().start(name) for name in ("a", "b")]
        waiting = asyncio.create_task(lent.provider().start("c"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await first.close()
        third = await waiting
        assert lent.fakes.most == 2
        assert third._lease not in (first._lease, second._lease)
        await second.close()
        await third.close()


async def test_that_all_are_taken_for_long_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "WAIT_S", 0.5)
    async with Lent(tmp_path, count=1) as lent:
        kept = await lent.provider(count=1).start("a")
        with pytest.raises(NoDesktopFree, match="all 1 desktops are taken"):
            await lent.provider(count=1).start("b")
        await kept.close()
        await (await lent.provider(count=1).start("c")).close()


async def test_a_client_that_left_while_waiting_gets_no_desktop(tmp_path):
    async with Lent(tmp_path, count=1, lease_s=30) as lent:
        kept = await lent.provider(count=1).start("a")
        waiting = asyncio.create_task(lent.provider(count=1).start("b"))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        await kept.close()
        await (await lent.provider(count=1).start("c")).close()
        assert lent.fakes.attempts == 2


async def test_a_desktop_that_fails_or_does_not_start(tmp_path, task):
    async with Lent(tmp_path, hook=broken("act", "evaluate")) as lent:
        desktop = await lent.provider().start("d")
        await desktop.reset(task)
        with pytest.raises(DesktopError, match="500: act broke"):
            await desktop.act(Click(1, 1), "a")
        with pytest.raises(DesktopError, match="evaluate broke"):
            await desktop.evaluate(task, None)
        await desktop.close()

    def no(number: int) -> None:
        if number < 4:
            raise DesktopError("no X server")

    async with Lent(tmp_path, start=no) as lent:
        for _ in range(3):  # more often than there are places: a failed start gives its place back
            with pytest.raises(DesktopError, match="no X server"):
                await lent.provider().start("d")
        await (await lent.provider().start("d")).close()


async def test_the_service_ends_while_a_client_works(tmp_path, task):
    async with Lent(tmp_path, delay_s=30) as lent:
        desktop = await lent.provider().start("d")
        call = asyncio.create_task(desktop.reset(task))
        await until(lambda: lent.service.leases[desktop._lease].running is not None)
        await lent.server.close()
        with pytest.raises(DesktopError):
            await call
        with pytest.raises(DesktopError):
            await desktop.screenshot()
        await desktop.close()
    with pytest.raises(UserError, match="does not answer"):
        await asyncio.to_thread(lent.provider().check)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("lease", b"{", 400),
        ("lease", {}, 400),
        ("lease", {"name": "x", "screen": [1, 1]}, 409),
        ("lease", {"name": "x", "screen": SCREEN, "wait_s": 1}, 400),
        ("heartbeat", {"leases": "all"}, 400),
        ("desktops/nope/act", {"action": {"type": "wait"}, "id": "a"}, 404),
        ("desktops/LEASE/act", {"action": {"type": "boom"}, "id": "a"}, 400),
        ("desktops/LEASE/act", {"action": {"type": "wait"}, "id": ""}, 400),
        ("desktops/LEASE/act", {"action": {"type": "wait"}, "id": "a", "more": 1}, 400),
        ("desktops/LEASE/reset", {"task": {"domain": "..", "id": "x", "sha256": ""}}, 400),
        ("desktops/LEASE/reset", {"task": {"domain": "fake", "id": "../../etc/passwd", "sha256": ""}}, 400),
        ("desktops/LEASE/reset", {"task": {"domain": "fake", "id": "one", "sha256": "x"}}, 409),
        ("desktops/LEASE/screenshot", {"x": 1}, 400),
        ("desktops/LEASE/execute", {"command": "ls"}, 404),
        ("heartbeat", b'{"leases": ["' + b"a" * remote_service.MAX_BODY + b'"]}', 413),
        ("heartbeat", b"[" * 60_000, 400),
    ],
    ids=range(16),
)
async def test_bodies_that_no_client_of_ours_sends(tmp_path, task, path, body, status):
    async with Lent(tmp_path) as lent:
        desktop = await lent.provider().start("d")
        found, answer = await lent.post("/v1/" + path.replace("LEASE", desktop._lease), body)
        assert found == status, answer
        assert set(answer) == {"error"}
        await desktop.screenshot()  # it still works
        await desktop.close()


async def test_an_endless_answer_is_not_read_to_its_end(tmp_path, monkeypatch):
    async with Lent(tmp_path) as lent:
        desktop = await lent.provider().start("d")
        monkeypatch.setattr(remote, "MAX_ANSWER", 100)
        with pytest.raises(DesktopError, match="too long"):
            await desktop.screenshot()
        await desktop.close()


# --- who may listen where ---------------------------------------------------------------------------


def test_loopback_by_default_and_a_long_token_beyond_it(monkeypatch):
    assert remote_service.check_host("127.0.0.1", allow_network=False)
    assert remote_service.check_host("::1", allow_network=False)
    with pytest.raises(UserError, match="--allow-network"):
        remote_service.check_host("0.0.0.0", allow_network=False)
    assert not remote_service.check_host("0.0.0.0", allow_network=True)
    with pytest.raises(UserError, match="give an IP address"):
        remote_service.check_host("example.invalid", allow_network=True)
    assert remote_service.read_token("ARPO_DESKTOP_TOKEN", loopback=True) == TOKEN
    with pytest.raises(UserError, match="needs 32") as refused:
        remote_service.read_token("ARPO_DESKTOP_TOKEN", loopback=False)
    assert TOKEN not in str(refused.value)
    monkeypatch.setenv("ARPO_DESKTOP_TOKEN", "x" * 32)
    assert remote_service.read_token("ARPO_DESKTOP_TOKEN", loopback=False) == "x" * 32
    for wrong, sentence in (("", "needs a token"), ("a\nb", "no HTTP header")):
        monkeypatch.setenv("ARPO_DESKTOP_TOKEN", wrong)
        with pytest.raises(UserError, match=sentence):
            remote_service.read_token("ARPO_DESKTOP_TOKEN", loopback=True)


def test_a_service_of_remote_desktops_is_refused(monkeypatch):
    class Config:
        desktop = DesktopConfig(provider="remote")

    with pytest.raises(UserError, match="desktops of its own machine"):
        remote_service.serve_desktops(Config())
