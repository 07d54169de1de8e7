"""What lending a desktop over HTTP costs: the same calls on one process desktop, directly and lent.

    python benchmarks/remote_desktops.py [--calls 200] [--screen 168x224]

Prints the median of each call in ms, and the ratio; both desktops live at the same time, calls alternate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import statistics
import time

from aiohttp import web

from arpo_replica.actions.types import Click
from arpo_replica.base.environments import ROOT
from arpo_replica.config import load_config
from arpo_replica.desktop.interface import Desktop
from arpo_replica.providers.pool import make_provider
from arpo_replica.providers.remote import RemoteProvider
from arpo_replica.providers.remote_service import DesktopService
from arpo_replica.tasks.splits import load_split


async def measure(calls: int, screen: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Call -> medians in ms."""
    config = load_config(ROOT / "configs/demo.yaml")
    task = load_split(ROOT / config.tasks.splits["train_4"], ROOT / config.tasks.root)[0]
    config.desktop.screen, config.desktop.count = screen, 1
    local = make_provider(config.desktop)
    local.check()
    token = os.environ["ARPO_DESKTOP_TOKEN"] = secrets.token_urlsafe(32)
    service = DesktopService(local, config.desktop, token=token, roots=[ROOT / config.tasks.root])
    runner = web.AppRunner(service.application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    there = config.desktop.model_copy(deep=True)
    there.provider, there.remote.url = "remote", f"http://127.0.0.1:{runner.addresses[0][1]}"
    desktops: dict[str, Desktop] = {
        "direct": await local.start("direct"),
        "lent": await RemoteProvider(there).start("lent"),
    }
    took: dict[str, dict[str, list[float]]] = {}
    try:
        for desktop in desktops.values():
            await desktop.reset(task)
        for number in range(calls):
            for kind, desktop in desktops.items():
                x, y = number % screen[0], (7 * number) % screen[1]
                for name, call in {
                    "act": lambda d=desktop, x=x, y=y, n=number: d.act(Click(x, y), f"a-{n}"),
                    "screenshot": desktop.screenshot,
                }.items():
                    began = time.perf_counter()
                    await call()
                    took.setdefault(name, {}).setdefault(kind, []).append(1e3 * (time.perf_counter() - began))
    finally:
        for desktop in desktops.values():
            await desktop.close()
        await runner.cleanup()
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
