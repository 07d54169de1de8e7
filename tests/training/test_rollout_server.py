"""What our server adds to verl's: names of screenshots, and where a reply's seconds went."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.cpu_env
pytest.importorskip("verl")

from arpo_replica.training.rollout_server import NamingEngine, reply_seconds  # noqa: E402

STATS = SimpleNamespace(queued_ts=10.0, scheduled_ts=10.5, first_token_ts=12.0, last_token_ts=15.0)


class Engine:
    """Answers once, and remembers what it was asked."""

    async def generate(self, *, prompt: Any, request_id: str, **options: Any) -> AsyncIterator[Any]:
        self.asked = prompt
        yield SimpleNamespace(metrics=STATS)


async def answer(engine: NamingEngine, request: str) -> None:
    async for _ in engine.generate(prompt={"prompt_token_ids": [1]}, request_id=request):
        pass


def test_a_request_gets_its_own_names_and_leaves_its_times() -> None:
    inner = Engine()
    engine = NamingEngine(inner)
    engine.names["a"] = ["shot"]
    asyncio.run(answer(engine, "a"))
    assert inner.asked == {"prompt_token_ids": [1], "multi_modal_uuids": {"image": ["shot"]}}
    assert engine.stats == {"a": STATS}
    asyncio.run(answer(engine, "b"))
    assert "multi_modal_uuids" not in inner.asked


def test_the_parts_of_a_reply_add_up() -> None:
    found = reply_seconds(STATS, decoding=0.2, engine=6.0)
    assert found == {"png": 0.2, "queue": 0.5, "prefill": 1.5, "sampling": 3.0, "front": 1.0}
    assert sum(reply_seconds(None, 0.2, 6.0).values()) == pytest.approx(6.2)
