"""Real desktops lent by a real service on loopback: episodes, two clients, and what a kill leaves behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys

import psutil
import pytest
import yaml
from desktop_helpers import SMALL, command_line, gone
from test_rollouts import collect

from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import DesktopError
from arpo_replica.config import load_config
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.providers.remote import RemoteProvider
from arpo_replica.rollout.records import finished_episodes, read_episode
from arpo_replica.tasks.splits import load_split

pytestmark = pytest.mark.desktop
LEASE_S = 2.0
CLIENT = """
import asyncio, sys, json
from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.providers.remote import RemoteProvider

async def main():
    desktop = await RemoteProvider(DesktopConfig.model_validate(json.loads(sys.argv[1]))).start("victim")
    await desktop.screenshot()
    print("leased", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def service(tmp_path, monkeypatch):
    """A service with two desktops, as a user starts it; its process and the client's config."""
    monkeypatch.setenv("ARPO_DESKTOP_TOKEN", "token-of-this-test")
    raw = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    raw["desktop"] |= {"count": 2, "screen": list(SMALL)}
    path = tmp_path / "service.yaml"
    path.write_text(yaml.safe_dump(raw))
    command = [sys.executable, "-m", "arpo_replica", "serve-desktops", "--config", str(path), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--lease-seconds", str(LEASE_S)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    line = process.stderr.readline()
    url = re.search(r"http://\S+:\d+", line)
    assert url, line
    config = {"provider": "remote", "screen": list(SMALL), "count": 2, "remote": {"pools": [url[0]]}}
    yield process, DesktopConfig.model_validate(config)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (0, -signal.SIGKILL)


def below(process) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


def first_task():
    config = load_config(ROOT / "configs/demo.yaml")
    return load_split(ROOT / config.tasks.splits["train_4"], ROOT / config.tasks.root)[0]


async def test_episodes_on_lent_desktops(service, tmp_path):
    process, config = service
    provider = RemoteProvider(config)
    await asyncio.to_thread(provider.check)
    assert provider.describe()["provider"] == "process"
    assert "Chromium" in provider.describe()["browser"]
    progress = await collect(tmp_path / "out", trials=2, provider=provider)
    assert (progress.done, progress.outcomes["env_error"]) == (8, 0)
    for path in finished_episodes(tmp_path / "out/trial_0").values():
        record, steps = read_episode(path)
        assert record.hard_score is not None
        assert len(steps) == 2
    assert await gone(below(process))  # what was lent is closed


async def test_two_clients_and_one_of_them_is_killed(service):
    process, config = service
    ours = await RemoteProvider(config).start("ours")
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENT, config.model_dump_json(), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert await asyncio.wait_for(victim.stdout.readline(), 30) == b"leased\n"
        waiting = asyncio.create_task(RemoteProvider(config).start("third"))
        await asyncio.sleep(0.5)
        assert not waiting.done()  # both desktops are taken
        victim.kill()
        third = await asyncio.wait_for(waiting, 3 * LEASE_S + 10)
        task = first_task()
        for desktop in (ours, third):
            await desktop.reset(task)
            assert (await desktop.screenshot()).startswith(b"\x89PNG")
            assert await desktop.evaluate(task, None) == 0.0
            await desktop.close()
    finally:
        if victim.returncode is None:
            victim.kill()
        await victim.wait()
    assert await gone(below(process))


async def test_a_killed_service_is_an_error_and_leaves_nothing(service):
    process, config = service
    desktop = await RemoteProvider(config).start("d")
    await desktop.reset(first_task())
    left = below(process)
    assert any(b"chromium" in command_line(pid) for pid in left)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(DesktopError):
        await desktop.screenshot()
    await desktop.close()
    assert await gone(left, 10)
