"""Shared by the tests of desktops in containers."""

import asyncio
import io
import os
import time

from PIL import Image

from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.providers.container import ContainerProvider
from arpo_replica.tasks.model import Task

IMAGE = os.environ.get("ARPO_TEST_IMAGE", "arpo-desktop:latest")
SMALL, LARGE = (168, 224), (1920, 1080)
OWN = {"func": "miniwob_reward", "result": {"type": "miniwob_episode"}}
THEIRS = {"func": "exact_match", "result": {"type": "vm_command_line"}, "expected": {}}


def provider(screen=LARGE, container=None, **settings):
    own = {"image": IMAGE, "spares": 0, **(container or {})}
    return ContainerProvider(DesktopConfig(provider="container", screen=screen, container=own, **settings))


def task(steps=(), evaluator=OWN, **raw):
    """A task with set-up steps of our own; ``raw``: further keys of its file."""
    config = list(steps)
    raw = {"id": "test", "instruction": "Do it.", "config": config, "evaluator": evaluator, **raw}
    return Task("test", "test", raw["instruction"], config, evaluator, raw, "")


def image(png):
    return Image.open(io.BytesIO(png)).convert("RGB")


async def inside(desktop, command):
    """Output of a shell line in the desktop."""
    result = await desktop.guest.execute(command, shell=True)
    return result["output"].strip()


def name_of(desktop):
    """Name of the desktop's container."""
    return desktop._running.name


def owned(engine):
    """Names of the containers that belong to this process."""
    from arpo_replica.providers.docker_engine import OWNER, owner

    found = engine._client.containers.list(all=True, filters={"label": f"{OWNER}={owner()}"})
    return [container.name for container in found]


def facts(engine, desktop):
    """What the daemon says of the desktop's container."""
    return engine._client.api.inspect_container(name_of(desktop))


async def until(check, limit_s=10.0):
    """True once ``check()`` is; False if not by then."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if check():
            return True
        await asyncio.sleep(0.05)
    return False


def containers(engine):
    """Names of all containers of the daemon."""
    return {container.name for container in engine._client.containers.list(all=True, ignore_removed=True)}
