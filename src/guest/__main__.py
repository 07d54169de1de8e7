"""Run the desktop until its owner goes away.

``python3 -m guest '<GuestConfig as JSON>'``; ``python3 -m guest`` alone is the first process of a container.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys

from aiohttp import web

from .config import GuestConfig
from .container_start import own_config
from .osworld_api import OsworldApi
from .server import MAX_BODY, Server, tell_errors
from .session import Session, SessionError, log
from .site import Relay, StaticSite

TASK_DEVTOOLS_PORT = 9222
"""Where OSWorld's tasks expect DevTools; they start socat for it, we listen already."""

VLC_PORT = 8080
"""VLC's HTTP interface, where OSWorld's evaluators ask it."""

BROWSER_START_S = 10.0


async def run(config: GuestConfig) -> str:
    """Start everything, serve, and return the reason for the end."""
    session = Session(config)
    end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    _listen_for_the_end(config, end)
    try:
        site = web.Application()
        site.add_routes(StaticSite(config.assets).routes())
        await _serve(site, port=config.site_port)
        await session.start()
        # A browser that a task has just launched takes a while; the desktop's own one is there.
        relay = Relay(config.devtools_port, 0.0 if config.fullscreen else BROWSER_START_S)
        if config.vlc_fd >= 0:
            await Relay(VLC_PORT, 0.0).listen(sock=socket.socket(fileno=config.vlc_fd))
        if config.devtools_fd >= 0:
            await relay.listen(sock=socket.socket(fileno=config.devtools_fd))
        if config.fullscreen and config.private_network:
            await relay.listen(host="127.0.0.1", port=TASK_DEVTOOLS_PORT)
        api = web.Application(client_max_size=MAX_BODY, middlewares=[tell_errors])
        api.add_routes(Server(session).routes() + OsworldApi(session).routes())
        await _serve(api, fd=config.server_fd, tcp=config.tcp)
        watch: asyncio.Future[str] = asyncio.ensure_future(session.watch())
        await asyncio.wait([watch, end], return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            raise SessionError(watch.result())
        watch.cancel()
        return end.result()
    finally:
        session.end()


def _listen_for_the_end(config: GuestConfig, end: asyncio.Future[str]) -> None:
    loop = asyncio.get_running_loop()

    def finish(reason: str) -> None:
        if not end.done():
            end.set_result(reason)

    for number in (signal.SIGTERM, signal.SIGINT):
        if os.getpid() == 1 and config.lifeline_fd >= 0:
            # Only the owner ends it, from outside; a policy that could would escape its score.
            loop.add_signal_handler(number, log, "told to end from inside: ignored")
        else:
            loop.add_signal_handler(number, finish, "told to end")
    if config.lifeline_fd >= 0:
        loop.add_reader(config.lifeline_fd, finish, "the owner is gone")


async def _serve(app: web.Application, fd: int = -1, tcp: str = "", port: int = -1) -> None:
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    if fd >= 0:
        await web.SockSite(runner, socket.socket(fileno=fd)).start()
    if tcp:
        host, _, number = tcp.rpartition(":")
        await web.TCPSite(runner, host, int(number)).start()
    if port >= 0:
        await web.TCPSite(runner, "127.0.0.1", port).start()


def main() -> int:
    """Entry point. Status 0 when told to end or the owner has gone, 1 when the desktop broke."""
    try:
        config = GuestConfig.from_json(sys.argv[1]) if len(sys.argv) > 1 else own_config()
    except (OSError, ValueError, KeyError) as error:
        log(f"no settings: {error!r}")
        return 2
    # In a container files made by set-up steps belong to an ordinary user of an ordinary desktop.
    os.umask(0o022 if config.skeleton else 0o077)
    try:
        log(f"desktop ends: {asyncio.run(run(config))}")
    except SessionError as error:
        log(f"desktop broke: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
