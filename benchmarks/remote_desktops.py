"""What lending a desktop over HTTP costs: the same calls on process desktops, directly and lent, by TCP on
loopback and by a Unix socket (as the keeper of a training lends its own).

    python benchmarks/remote_desktops.py [--calls 200] [--screen 168x224]

Prints the median of each call in ms, and the ratio; the desktops live at the same time, calls alternate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import statistics
import tempfile
import time
from pathlib import Path

from aiohttp import web

from arpo_replica.actions.types import Click
from arpo_replica.base.environments import ROOT
from arpo_replica.config import load_config
from arpo_replica.desktop.interface import Desktop
from arpo_replica.providers.pool import make_provider
from arpo_replica.providers.remote import RemoteProvider, Service
from arpo_replica.providers.remote_service import DesktopService
from arpo_replica.tasks.splits import load_split


async def measure(calls: int, screen: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Call -> medians in ms."""
    config = load_config(ROOT / "configs/demo.yaml")
    task = load_split(ROOT / config.tasks.splits["train_4"], ROOT / config.tasks.root)[0]
    config.desktop.screen, config.desktop.count = screen, 2
    local = make_provider(config.desktop)
    local.check()
    token = os.environ["ARPO_DESKTOP_TOKEN"] = secrets.token_urlsafe(32)
    service = DesktopService(local, config.desktop, token=token, roots=[ROOT / config.tasks.root])
    runner = web.AppRunner(service.application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "socket"
    await web.UnixSite(runner, str(path)).start()
    there = config.desktop.model_copy(deep=True)
    there.provider, there.remote.pools = "remote", [f"http://127.0.0.1:{runner.addresses[0][1]}"]
    desktops: dict[str, Desktop] = {
        "direct": await local.start("direct"),
        "tcp": await RemoteProvider(there).start("tcp"),
        "socket": await RemoteProvider(there, Service("socket", 60, token, path)).start("socket"),
    }
    took: dict[str, dict[str, list[float]]] = {}
    try:
        for desktop in desktops.values():
            await desktop.reset(task)
        for number in range(calls):
            for kind, desktop in desktops.items():
                x, y = number % screen[0], (7 * number) % screen[1]
                began = time.perf_counter()
                await desktop.act(Click(x, y), f"a-{number}")
                await desktop.screenshot()
                acted = time.perf_counter()
                await desktop.screenshot()
                for name, seconds in (
                    ("click and screenshot", acted - began),
                    ("screenshot", time.perf_counter() - acted),
                ):
                    took.setdefault(name, {}).setdefault(kind, []).append(1e3 * seconds)
    finally:
        for desktop in desktops.values():
            await desktop.close()
        await runner.cleanup()
        folder.cleanup()
    medians = {}
    for name, kinds in took.items():
        medians[name] = {kind: round(statistics.median(values), 2) for kind, values in kinds.items()}
    return medians


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--screen", default="168x224")
    options = parser.parse_args()
    width, _, height = options.screen.partition("x")
    medians = asyncio.run(measure(options.calls, (int(width), int(height))))
    print(json.dumps({"screen": options.screen, "calls": options.calls, "median_ms": medians}))


if __name__ == "__main__":
    main()
