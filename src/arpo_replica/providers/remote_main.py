"""``arpo serve-desktops``: checks, address, signals of the service."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from arpo_replica.base.errors import UserError
from arpo_replica.config.models import StudyConfig
from arpo_replica.providers.make import make_provider
from arpo_replica.providers.remote_protocol import LEASE_S
from arpo_replica.providers.remote_service import DesktopService
from arpo_replica.tasks.splits import read_split

logger = logging.getLogger(__name__)

LONG_TOKEN = 32
"""Characters that a token needs where other machines can reach the service."""


def read_token(variable: str, *, loopback: bool) -> str:
    """The token in the environment variable. Raises ``UserError``; the message never holds the token."""
    token = os.environ.get(variable, "").strip()
    make = f"export {variable}=$(python3 -c 'import secrets; print(secrets.token_urlsafe(32))')"
    if not token:
        raise UserError(f"The service needs a token in {variable}: {make}")
    if not token.isascii() or not token.isprintable():
        raise UserError(f"The token in {variable} has characters that no HTTP header can hold: {make}")
    if not loopback and len(token) < LONG_TOKEN:
        raise UserError(
            f"The token in {variable} has {len(token)} characters; beyond loopback it needs {LONG_TOKEN}: "
            f"{make}"
        )
    return token


def check_host(host: str, *, allow_network: bool) -> bool:
    """True for a loopback address. Raises ``UserError`` for another one that was not allowed."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise UserError(f"--host is '{host}'; give an IP address of this machine.") from None
    if not address.is_loopback and not allow_network:
        raise UserError(
            f"--host {host} lets other machines in, unencrypted; use an SSH tunnel to 127.0.0.1, or add "
            "--allow-network on a network that you trust."
        )
    return address.is_loopback


def task_folders(config: StudyConfig) -> list[Path]:
    """Folders of task files that a config names: its own, and those of splits with one of their own."""
    folders = [config.tasks.root]
    for path in config.tasks.splits.values():
        if path.is_file() and (own := read_split(path).task_root) is not None:
            folders.append(path.parent / own)
    return folders


def serve_desktops(
    config: StudyConfig,
    *,
    host: str = "127.0.0.1",
    port: int = 8700,
    allow_network: bool = False,
    lease_s: float = LEASE_S,
    roots: Sequence[Path] = (),
) -> None:
    """Lend the config's desktops until SIGTERM or SIGINT; then close them all.

    ``roots``: folders of task files besides ``tasks.root``. Raises ``UserError`` before anything starts.
    """
    if config.desktop.provider == "remote":
        raise UserError("desktop.provider is 'remote'; the service needs desktops of its own machine.")
    if not 1 <= lease_s <= 3600:
        raise UserError(f"--lease-seconds is {lease_s:g}; give 1 to 3600.")
    if not 0 <= port <= 65_535:
        raise UserError(f"--port is {port}; give 1 to 65535, or 0 for any free one.")
    for folder in roots:
        if not folder.is_dir():
            raise UserError(f"--tasks names {folder}, which is no folder; correct it.")
    loopback = check_host(host, allow_network=allow_network)
    token = read_token(config.desktop.remote.token_variable, loopback=loopback)
    provider = make_provider(config.desktop)
    provider.check()
    for handler in logging.getLogger("arpo_replica").handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))

    folders = [*task_folders(config), *roots]

    async def run() -> None:
        service = DesktopService(provider, config.desktop, token=token, roots=folders, lease_s=lease_s)
        runner = web.AppRunner(service.application(), access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            try:
                await site.start()
            except OSError as error:
                raise UserError(
                    f"Port {port} of {host} cannot be used ({error.strerror}); name another one with --port."
                ) from error
            bound = runner.addresses[0][1]
            shown = f"[{host}]" if ":" in host else host
            logger.info(
                f"lending {config.desktop.count} {config.desktop.provider} desktops at "
                f"http://{shown}:{bound}; a client not heard of for {lease_s:g} s loses its own"
            )
            stop = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
            await stop.wait()
        finally:
            await runner.cleanup()

    asyncio.run(run())
