"""Each screenshot is sent once, as long as the server remembers it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from arpo_replica.base.errors import PolicyError
from arpo_replica.config.models import PolicyConfig
from arpo_replica.policy.endpoint import NamedImagePolicy, Sampling
from arpo_replica.tasks.model import Task

TASK = Task("t", "d", "Click.", [], {}, {}, "")


class Server:
    """Remembers images by name, as vLLM does, and refuses a name that it has forgotten."""

    model = "m"

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.received: list[list[bool]] = []
        self.broken: str | None = None

    @staticmethod
    def hide(text: str) -> str:
        return text

    async def complete(self, body: dict[str, Any]) -> Any:
        if self.broken is not None:
            raise PolicyError(self.broken)
        images = [p for m in body["messages"] for p in m["content"] if p["type"] == "image_url"]
        self.received.append([part["image_url"] is not None for part in images])
        for part in images:
            if part["image_url"] is None and part["uuid"] not in self.known:
                raise PolicyError("the endpoint answers with status 400: Cache miss for image at index 0")
        self.known |= {part["uuid"] for part in images}
        return {"choices": [{"message": {"content": f"reply {len(self.received)}"}}], "usage": {}}


def start(server: Server) -> Any:
    policy = PolicyConfig(max_images=3)
    return NamedImagePolicy(server, policy, Sampling(1.0, 1.0, 8), ()).start(TASK)  # type: ignore[arg-type]


def test_a_screenshot_is_sent_once() -> None:
    server = Server()

    async def episode() -> None:
        conversation = start(server)
        for number in range(5):
            await conversation.reply(f"png {number}".encode())
        assert conversation.refused == 0

    asyncio.run(episode())
    assert server.received == [
        [True],
        [False, True],
        [False, False, True],
        [False, False, True],
        [False, False, True],
    ]


def test_equal_screenshots_have_one_name() -> None:
    server = Server()

    async def episode() -> None:
        conversation = start(server)
        await conversation.reply(b"same")
        await conversation.reply(b"same")

    asyncio.run(episode())
    assert len(server.known) == 1
    assert server.received[1] == [False, False]


def test_a_forgotten_name_is_sent_again_with_its_screenshot() -> None:
    server = Server()

    async def episode() -> Any:
        conversation = start(server)
        await conversation.reply(b"a")
        await conversation.reply(b"b")
        server.known.clear()
        await conversation.reply(b"c")
        return conversation

    conversation = asyncio.run(episode())
    assert conversation.refused == 1
    assert server.received[-2:] == [[False, False, True], [True, True, True]]
    assert conversation.replies == ["reply 1", "reply 2", "reply 4"]
    assert len(conversation.images) == 3


def test_other_failures_are_not_tried_again() -> None:
    server = Server()

    async def episode() -> None:
        conversation = start(server)
        await conversation.reply(b"a")
        server.broken = "the endpoint does not answer"
        with pytest.raises(PolicyError, match="does not answer"):
            await conversation.reply(b"b")

    asyncio.run(episode())
    assert len(server.received) == 1


def test_a_history_that_is_too_long_is_not_sent_again() -> None:
    server = Server()

    async def episode() -> None:
        conversation = start(server)
        await conversation.reply(b"a")
        server.broken = "status 400: Input length (46808) exceeds model's maximum context length"
        with pytest.raises(PolicyError, match="46808"):
            await conversation.reply(b"b")
        assert conversation.refused == 0

    asyncio.run(episode())
