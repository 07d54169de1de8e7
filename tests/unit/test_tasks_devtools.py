"""The DevTools client against a small server that can misbehave, over TCP and a Unix socket."""

import asyncio
import json

import pytest
from aiohttp import TCPConnector, WSMsgType, web

from arpo_replica.base.errors import DesktopError
from arpo_replica.desktop.devtools import DevTools, unix


class Browser:
    """Answers the protocol calls of one tab; ``silent`` methods are never answered."""

    def __init__(self):
        self.calls = []
        self.silent = set()
        self.ignored = asyncio.Event()
        self.socket = None
        self.load_event = True
        self.answer = {"result": {"value": 42}}

    def app(self):
        app = web.Application()
        app.router.add_get("/json/version", self.version)
        app.router.add_get("/devtools/browser/x", self.serve)
        return app

    async def version(self, request):
        return web.json_response({"webSocketDebuggerUrl": f"ws://{request.host}/devtools/browser/x"})

    async def serve(self, request):
        self.socket = web.WebSocketResponse()
        await self.socket.prepare(request)
        async for message in self.socket:
            if message.type is WSMsgType.TEXT:
                await self.handle(json.loads(message.data))
        return self.socket

    async def handle(self, call):
        method = call["method"]
        self.calls.append((method, call.get("sessionId"), call["params"]))
        if method in self.silent:
            self.ignored.set()
            return
        answers = {
            "Target.getTargets": {
                "targetInfos": [{"targetId": "T", "type": "page", "url": "http://a/", "title": "A"}]
            },
            "Target.attachToTarget": {"sessionId": "S"},
            "Runtime.evaluate": self.answer,
            "Page.navigate": {"loaderId": "L"},
        }
        await self.send({"id": call["id"], "result": answers.get(method, {})})
        if method == "Page.navigate" and self.load_event:
            await self.send(
                {
                    "method": "Page.lifecycleEvent",
                    "sessionId": "S",
                    "params": {"name": "load", "loaderId": "L"},
                }
            )

    async def send(self, message):
        await self.socket.send_str(json.dumps(message))


@pytest.fixture(params=["tcp", "unix"])
async def pair(request, tmp_path):
    """A browser and a client connected to it."""
    browser = Browser()
    runner = web.AppRunner(browser.app(), shutdown_timeout=0.1)
    await runner.setup()
    if request.param == "tcp":
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        devtools = DevTools(TCPConnector, f"http://127.0.0.1:{port}", timeout_s=2)
    else:
        await web.UnixSite(runner, str(tmp_path / "socket")).start()
        devtools = DevTools(unix(str(tmp_path / "socket")), timeout_s=2)
    yield browser, devtools
    await devtools.disconnect()
    await runner.cleanup()


async def test_calls_go_to_the_page_and_come_back(pair):
    browser, devtools = pair
    assert [page.id for page in await devtools.pages()] == ["T"]
    assert await devtools.evaluate("6 * 7") == 42
    method, session, params = browser.calls[-1]
    assert (method, session, params["expression"]) == ("Runtime.evaluate", "S", "6 * 7")
    await devtools.navigate("http://b/")
    await devtools.evaluate("1")
    assert [call[0] for call in browser.calls].count("Target.attachToTarget") == 1


async def test_a_script_that_throws_is_an_error(pair):
    browser, devtools = pair
    browser.answer = {"result": {}, "exceptionDetails": {"exception": {"description": "Error: no button"}}}
    with pytest.raises(DesktopError, match="no button"):
        await devtools.evaluate("x")


async def test_silence_ends_with_the_timeout(pair):
    browser, devtools = pair
    browser.silent.add("Runtime.evaluate")
    with pytest.raises(DesktopError, match=r"did not answer within 0\.1 s"):
        await devtools.evaluate("x", timeout_s=0.1)
    browser.silent.clear()
    assert await devtools.evaluate("x") == 42, "a late caller does not spoil the next one"


async def test_a_page_that_never_loads_is_an_error(pair):
    browser, devtools = pair
    browser.load_event = False
    with pytest.raises(DesktopError, match="did not load within"):
        await devtools.navigate("http://b/", timeout_s=0.2)


async def test_a_closed_page_fails_its_calls_at_once(pair):
    browser, devtools = pair
    browser.silent.add("Runtime.evaluate")
    call = asyncio.create_task(devtools.evaluate("x"))
    await browser.ignored.wait()
    await browser.send({"method": "Target.detachedFromTarget", "params": {"sessionId": "S", "targetId": "T"}})
    with pytest.raises(DesktopError, match="closed or crashed"):
        await call


async def test_a_lost_connection_fails_its_calls_at_once_and_is_made_again(pair):
    browser, devtools = pair
    browser.silent.add("Runtime.evaluate")
    call = asyncio.create_task(devtools.evaluate("x"))
    await browser.ignored.wait()
    await browser.socket.close()
    with pytest.raises(DesktopError, match="lost"):
        await call
    browser.silent.clear()
    assert await devtools.evaluate("x") == 42


async def test_no_browser_is_an_error(tmp_path):
    with pytest.raises(DesktopError, match="no DevTools connection"):
        await DevTools(unix(str(tmp_path / "none"))).pages()
    with pytest.raises(DesktopError, match="no DevTools connection"):
        await DevTools(base_url="http://127.0.0.1:1").pages()
