"""Desktops of another process, and the pool over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from arpo_replica.actions.types import Click, Finished
from arpo_replica.base.errors import DesktopError, PolicyError
from arpo_replica.training.desktops import DesktopPool
from arpo_replica.training.process.keeper import LINE_LIMIT, Keeper, KeeperProvider, KeptDesktop
from fakes import SCREEN, FakeDesktop, make_task, png


class Provider:
    """Makes fakes; ``hook`` sees every event."""

    def __init__(self, hook: Any = lambda event, desktop: None, fail: int = 0, delay_s: float = 0.0) -> None:
        self.hook, self.fail, self.delay_s = hook, fail, delay_s
        self.made: list[FakeDesktop] = []

    async def start(self, name: str) -> FakeDesktop:
        if self.fail:
            self.fail -= 1
            raise DesktopError("no display")
        self.made.append(FakeDesktop(name, self.hook, 0.5, self.delay_s))
        return self.made[-1]


@asynccontextmanager
async def kept(folder: Path, provider: Provider, stock: int) -> AsyncIterator[KeeperProvider]:
    keeper = Keeper(provider, stock)  # type: ignore[arg-type]
    server = await asyncio.start_unix_server(keeper.serve, str(folder / "s"), limit=LINE_LIMIT)
    async with server:
        yield KeeperProvider(folder / "s", SCREEN)
    await keeper.close()


async def eventually(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # nobody signals what is waited for
            await asyncio.sleep(0.01)


async def test_a_kept_desktop_is_a_desktop(tmp_path: Path) -> None:
    provider = Provider()
    async with kept(tmp_path, provider, stock=1) as keeper:
        desktop = await keeper.start("d")
        task = make_task(4)
        await desktop.reset(task)
        await desktop.act(Click(3, 4), "id-1")
        assert await desktop.screenshot() == png((1, 40, 60))
        assert await desktop.evaluate(task, Finished("done")) == 0.5
        (real,) = provider.made
        assert real.task == task
        assert real.actions == [(Click(3, 4), "id-1")]
        await desktop.close()
        await eventually(lambda: real.closed)


async def test_the_stock_is_started_beforehand(tmp_path: Path) -> None:
    provider = Provider()
    async with kept(tmp_path, provider, stock=2) as keeper:
        await eventually(lambda: len(provider.made) == 2)
        for _ in range(3):
            await keeper.start("d")
        assert [desktop.name for desktop in provider.made] == ["train-1", "train-2", "train-3"]


async def test_errors_come_through_and_leave_the_connection_whole(tmp_path: Path) -> None:
    def hook(event: str, desktop: FakeDesktop) -> None:
        if event == "act":
            raise DesktopError("the browser died")

    async with kept(tmp_path, Provider(hook), stock=0) as keeper:
        desktop = await keeper.start("d")
        await desktop.reset(make_task())
        with pytest.raises(DesktopError, match="the browser died"):
            await desktop.act(Click(1, 2), "a")
        assert await desktop.screenshot()


async def test_a_desktop_that_does_not_start(tmp_path: Path) -> None:
    async with kept(tmp_path, Provider(fail=1), stock=1) as keeper:
        with pytest.raises(DesktopError, match="no display"):
            await keeper.start("d")
        await keeper.start("e")


async def test_a_cancelled_call_closes_its_desktop(tmp_path: Path) -> None:
    """The answer of a timed-out call must not be read as that of the next one."""
    provider = Provider(delay_s=0.2)
    async with kept(tmp_path, provider, stock=0) as keeper:
        desktop = await keeper.start("d")
        assert isinstance(desktop, KeptDesktop)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(desktop.reset(make_task()), 0.05)
        with pytest.raises(DesktopError):
            await desktop.screenshot()
        await eventually(lambda: provider.made[0].closed)


async def test_without_a_keeper(tmp_path: Path) -> None:
    with pytest.raises(DesktopError, match="does not answer"):
        await KeeperProvider(tmp_path / "none", SCREEN).start("d")


async def test_the_pool_reuses_good_desktops_and_closes_broken_ones() -> None:
    provider = Provider()
    pool = DesktopPool(provider, size=2)  # type: ignore[arg-type]
    async with pool.desktop() as first:
        pass
    with pytest.raises(PolicyError):
        async with pool.desktop() as again:
            assert again is first
            raise PolicyError("vLLM")
    with pytest.raises(DesktopError):
        async with pool.desktop() as again:
            assert again is first
            raise DesktopError("broken")
    assert provider.made[0].closed
    async with pool.desktop() as fresh:
        assert fresh is not first
    await pool.close()
    assert provider.made[1].closed


async def test_the_pool_is_bounded() -> None:
    provider = Provider()
    pool = DesktopPool(provider, size=2)  # type: ignore[arg-type]
    running = peak = 0

    async def episode() -> None:
        nonlocal running, peak
        async with pool.desktop():
            running += 1
            peak = max(peak, running)
            await asyncio.sleep(0.01)
            running -= 1

    await asyncio.gather(*(episode() for _ in range(10)))
    assert (peak, len(provider.made)) == (2, 2)
