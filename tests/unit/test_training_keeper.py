"""Desktops of another process over a Unix socket, and the pool over them."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from arpo_replica.actions.types import Click, Finished
from arpo_replica.base.errors import DesktopError, PolicyError, UserError
from arpo_replica.config import load_config
from arpo_replica.providers.pool import DesktopPool
from arpo_replica.tasks.model import load_task
from arpo_replica.tasks.splits import ResolvedSplit, ResolvedTask
from arpo_replica.training.job import Job, outline
from arpo_replica.training.process.keeper import keeping, kept_desktops
from fakes import SCREEN, FakeDesktop, png

CONFIG = load_config(Path(__file__).parents[2] / "configs" / "demo.yaml")


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


PROVIDERS: list[Provider] = []


def newest_provider(config: Any) -> Provider:
    return PROVIDERS[-1]


def a_job(folder: Path) -> Job:
    path = folder / "tasks" / "fake" / "one.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"id": "one", "instruction": "Do.", "config": [], "evaluator": {"func": "x"}}))
    entry = ResolvedTask(domain="fake", id="one", path=path, sha256=load_task(path).sha256)
    desktop = CONFIG.desktop.model_copy(update={"screen": SCREEN, "count": 8})
    config = CONFIG.model_copy(update={"desktop": desktop})
    job = outline(config, "grpo", config.training.stages[-1].name)
    split = ResolvedSplit(split="s", tasks=[entry])
    return job.model_copy(
        update={"split": split, "scratch": folder, "provider": f"{__name__}:newest_provider"}
    )


@asynccontextmanager
async def kept(folder: Path, provider: Provider, stock: int) -> AsyncIterator[tuple[Any, Any]]:
    """A provider of kept desktops, and the one task that there is."""
    PROVIDERS.append(provider)
    job = a_job(folder)
    stage_rollouts = {"tasks_per_step": 1, "rollouts_per_task": stock}
    job.recipe.__dict__.update(stage_rollouts)
    async with keeping(job):
        yield kept_desktops(job), job.split.load()[0]


async def eventually(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # nobody signals what is waited for
            await asyncio.sleep(0.01)


async def test_a_kept_desktop_is_a_desktop(tmp_path: Path) -> None:
    provider = Provider()
    async with kept(tmp_path, provider, stock=1) as (keeper, task):
        desktop = await keeper.start("d")
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
    async with kept(tmp_path, provider, stock=2) as (keeper, _):
        await eventually(lambda: len(provider.made) == 2)
        for _ in range(3):
            await keeper.start("d")
        assert [desktop.name for desktop in provider.made] == ["lent-1", "lent-2", "lent-3"]


async def test_errors_come_through_and_leave_the_connection_whole(tmp_path: Path) -> None:
    def hook(event: str, desktop: FakeDesktop) -> None:
        if event == "act":
            raise DesktopError("the browser died")

    async with kept(tmp_path, Provider(hook), stock=0) as (keeper, task):
        desktop = await keeper.start("d")
        await desktop.reset(task)
        with pytest.raises(DesktopError, match="the browser died"):
            await desktop.act(Click(1, 2), "a")
        assert await desktop.screenshot()


async def test_a_desktop_that_does_not_start(tmp_path: Path) -> None:
    async with kept(tmp_path, Provider(fail=1), stock=1) as (keeper, _):
        with pytest.raises(DesktopError, match="no display"):
            await keeper.start("d")
        await keeper.start("e")


async def test_a_cancelled_call_leaves_no_answer_behind(tmp_path: Path) -> None:
    """The answer of a timed-out call must not be read as that of the next one."""
    provider = Provider(delay_s=0.2)
    async with kept(tmp_path, provider, stock=0) as (keeper, task):
        desktop = await keeper.start("d")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(desktop.reset(task), 0.05)
        assert await desktop.screenshot() == png((0, 40, 60))
        await desktop.close()
        await eventually(lambda: provider.made[0].closed)


async def test_the_socket_is_for_its_user_alone_and_needs_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ARPO_DESKTOP_TOKEN", raising=False)
    async with kept(tmp_path, Provider(), stock=0) as (keeper, _):
        assert stat.S_IMODE((tmp_path / "desktops.sock").stat().st_mode) == 0o600
        await (await keeper.start("d")).close()


async def test_a_changed_task_file_is_refused(tmp_path: Path) -> None:
    async with kept(tmp_path, Provider(), stock=0) as (keeper, task):
        (tmp_path / "tasks" / "fake" / "one.json").write_text("{}")
        desktop = await keeper.start("d")
        with pytest.raises(UserError, match="fake/one"):
            await desktop.reset(task)
        await desktop.close()


async def test_without_a_keeper_or_after_its_end(tmp_path: Path) -> None:
    async with kept(tmp_path, Provider(), stock=0) as (keeper, _):
        desktop = await keeper.start("d")
    with pytest.raises(DesktopError, match="the keeper of the desktops did not answer"):
        await desktop.screenshot()
    await desktop.close()
    with pytest.raises(DesktopError, match="the keeper of the desktops did not answer lease"):
        await keeper.start("d")


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
