"""Desktops in a process of their own: they start while the trainer still imports.

    python -m arpo_replica.training.process.keeper job.json         holds them (started by ``launch``)
    kept_desktops(job)                                              a provider of them for the agent loop

The keeper is the service of remote desktops (``providers.remote_service``) on a Unix socket in the job's
scratch folder.
"""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from arpo_replica.desktop.interface import DesktopProvider
from arpo_replica.providers.pool import load_named
from arpo_replica.providers.remote import LONG_S, RemoteProvider, Service
from arpo_replica.providers.remote_service import DesktopService
from arpo_replica.training.job import Job

LEASE_S = 600.0
"""The agent loop's process shares few cores with the trainer's: it may be silent for long. When it is gone
so is the training, and the keeper with all desktops."""


def socket_path(job: Job) -> Path:
    """Where the keeper of a job listens."""
    return job.scratch / "desktops.sock"


def kept_desktops(job: Job) -> DesktopProvider:
    """The keeper's desktops. Its stock is started in turn, so one may take long."""
    service = Service("the keeper of the desktops", start_s=LONG_S, socket=socket_path(job))
    return RemoteProvider(job.config.desktop, service)


@asynccontextmanager
async def keeping(job: Job) -> AsyncIterator[DesktopService]:
    """The service of a job's desktops, as many started beforehand as a step has rollouts."""
    config = job.config.desktop
    roots = {entry.path.parents[1] for entry in job.split.tasks}
    stock = min(config.count, job.recipe.tasks_per_step * job.recipe.rollouts_per_task)
    service = DesktopService(
        load_named(job.provider, config), config, token=None, roots=list(roots), lease_s=LEASE_S, stock=stock
    )
    runner = web.AppRunner(service.application(), access_log=None)
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)  # the socket is ours alone; its folder must be passable for the desktops' user
    listener.bind(str(socket_path(job)))
    os.umask(mask)
    try:
        await runner.setup()
        await web.SockSite(runner, listener).start()
        yield service
    finally:
        await runner.cleanup()


async def keep(job: Job) -> None:
    """Serve until killed."""
    async with keeping(job):
        await asyncio.Event().wait()


def main() -> None:
    """Keep the desktops of the job in the first argument."""
    asyncio.run(keep(Job.model_validate_json(Path(sys.argv[1]).read_bytes())))


if __name__ == "__main__":
    main()
