"""Shared by the tests of the desktop."""

import asyncio
import io
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.providers.process import ProcessProvider
from arpo_replica.tasks.model import Task
from guest.processes import descendants

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
        {
            "type": "launch",
            "parameters": {"command": ["socat", "tcp-listen:9222,fork", "tcp:localhost:1337"]},
        },
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


def command_line(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def owners(pids):
    """User ids of the processes as this machine sees them."""
    return {Path(f"/proc/{pid}").stat().st_uid for pid in pids}


def open_files():
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def own_addresses():
    """Addresses at which this machine can be reached."""
    return ["127.0.0.1", *subprocess.getoutput("hostname -I").split()]


def short_folder():
    """An empty folder like /tmp. Sockets do not bear pytest's long paths."""
    folder = Path(tempfile.mkdtemp(prefix="t-"))
    folder.chmod(0o1777)
    return folder


def alive(pids):
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


async def gone(pids, limit_s=5.0):
    """True once none of the processes is left."""
    for _ in range(int(limit_s / 0.02)):
        if not alive(pids):
            return True
        await asyncio.sleep(0.02)
    return False
