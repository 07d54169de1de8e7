"""The client of a guest server: how long it waits, and for what."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
import pytest
from aiohttp import web

from arpo_replica.actions.types import Action, Click, Hotkey, TypeText
from arpo_replica.base.errors import DesktopError
from arpo_replica.desktop.client import GuestClient, typing_s
from fake_guest import SCREEN, FakeGuest


@pytest.mark.parametrize(
    ("action", "seconds"),
    [
        (Click(1, 2), 0.0),
        (Hotkey(("ctrl", "c")), 0.0),
        (TypeText("ab\n~"), 0.08),
        (TypeText("\u6f22\u5b57\u6f22"), 0.06 + 0.6),
        (TypeText("x" * 4096), 81.92),
    ],
)
def test_a_long_text_may_take_longer(action: Action, seconds: float):
    assert typing_s(action) == pytest.approx(seconds)


async def test_slow_typing_is_no_broken_desktop_and_a_slow_click_is_one():
    async def slowly(_: object) -> web.Response:
        await asyncio.sleep(0.4)
        return web.Response(body=b"png", headers={"X-Desktop-Act": '{"status": "applied", "ignored": []}'})

    async with FakeGuest() as guest:
        guest.answers["/act"] = slowly
        url = f"http://{guest.host}:{guest.port}"
        client = GuestClient(aiohttp.TCPConnector, SCREEN, 0.1, url)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(client.close)
            facts, _ = await client.act(TypeText("\u6f22\u5b57" * 3), "a")
            assert facts["status"] == "applied"
            with pytest.raises(DesktopError, match=r"did not answer /act within 0\.1 s"):
                await client.act(Click(1, 1), "b")
