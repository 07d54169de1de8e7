"""Shared by the tests of the desktop."""

import io
from pathlib import Path

from PIL import Image

from arpo_replica.config.models import DesktopConfig
from arpo_replica.desktop.guest.processes import descendants
from arpo_replica.desktop.process import ProcessProvider
from arpo_replica.tasks.model import Task

SITE = Path(__file__).parent / "site"
URL = "http://localhost:8000/site/page.html"
SMALL, LARGE = (168, 224), (1920, 1080)
RED, GREEN = (200, 0, 0), (0, 150, 0)


def provider(**settings):
    return ProcessProvider(DesktopConfig(**{"screen": SMALL, **settings}), {"site": SITE})


def page_task(url=URL):
    """A task as OSWorld's Chrome tasks start."""
    steps = [
        {"type": "launch", "parameters": {"command": ["google-chrome", "--remote-debugging-port=1337"]}},
        {"type": "launch", "parameters": {"command": ["socat", "tcp-listen:9222,fork", "tcp:localhost:1337"]}},
        {"type": "chrome_open_tabs", "parameters": {"urls_to_open": [url]}},
    ]
    return Task("test", "test", "", steps, {"func": "infeasible"}, {}, "")


def image(png):
    return Image.open(io.BytesIO(png)).convert("RGB")


async def inside(desktop, command):
    """Output of a shell line in the desktop."""
    result = await desktop.guest.execute(command, shell=True)
    return result["output"]


def processes_of(desktop):
    outer = desktop._running.process.pid
    return [outer, *descendants(outer)]
