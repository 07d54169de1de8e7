"""Connections to an endpoint that end badly: what is sent again, and what is not."""

from __future__ import annotations

import asyncio
import json

import pytest

from arpo_replica.base.errors import PolicyError
from arpo_replica.policy.endpoint import Endpoint


def connect(server: RawServer) -> Endpoint:
    return Endpoint(server.url, model="policy", api_key=None, timeout_s=20.0, connections=4)


class RawServer:
    """Says ``answers``, one per connection and in order, to the first request on it, and then closes the
    connection without a word. None: closes it as soon as the request begins, most of it unread."""

    def __init__(self, *answers: tuple[int, dict] | None) -> None:
        self.answers = list(answers)
        self.connections = 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self.server.close()
        await self.server.wait_closed()

    async def serve(self, reader, writer):
        answer = self.answers[min(self.connections, len(self.answers) - 1)]
        self.connections += 1
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if answer is not None:
            await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
            status, value = answer
            text = json.dumps(value).encode()
            start = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(text)}"
            writer.write(start.encode() + b"\r\n\r\n" + text)
            await writer.drain()
            writer.close()
        else:
            writer.transport.abort()


GOOD = (200, {"choices": [{"message": {"content": "Action: wait()"}}]})
BIG = {"messages": "x" * 20_000_000}
"""More than the sockets' buffers hold, so that writing fails when the other end is gone."""


async def test_no_request_follows_on_a_connection_that_brought_an_error():
    # As vLLM does: it answers 400 and closes, and the next request must not be lost to that.
    async with RawServer((400, {"error": "Cache miss"}), GOOD) as server, connect(server) as to:
        with pytest.raises(PolicyError, match=r"status 400.*Cache miss"):
            await to.complete({"messages": []})
        assert await to.complete(BIG) == GOOD[1]
    assert server.connections == 2


async def test_a_request_that_broke_while_it_was_written_is_sent_again():
    async with RawServer(None, None, GOOD) as server, connect(server) as to:
        assert await to.complete(BIG) == GOOD[1]
    assert server.connections == 3


async def test_an_answer_that_breaks_off_is_not_asked_for_again():
    class Half(RawServer):
        async def serve(self, reader, writer):
            self.connections += 1
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
            await writer.drain()
            writer.close()

    async with Half() as server, connect(server) as to:
        with pytest.raises(PolicyError, match="the endpoint failed"):
            await to.complete({"messages": []})
    assert server.connections == 1
