"""What the episode loop asks of a policy; the same for an HTTP endpoint, verl and a scripted expert."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from arpo_replica.tasks.model import Task


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply of the policy, as text, with its token counts."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    weights: tuple[int, int] | None = field(default=None, kw_only=True)
    """Updates behind the weights that wrote its first and its last token; None where nothing is trained."""


class Conversation(Protocol):
    """One episode's exchange of screenshots and replies. Raises ``PolicyError`` when the endpoint fails."""

    async def reply(self, screenshot: bytes) -> Reply:
        """Show the newest screenshot (PNG bytes), get the next reply. History is kept inside."""


@runtime_checkable
class AsksAgain(Protocol):
    """A conversation that can draw its last reply anew."""

    async def again(self) -> Reply:
        """Forget the last reply, which could not be read, and draw another at temperature 1."""


class Policy(Protocol):
    """Starts conversations."""

    def start(self, task: Task) -> Conversation:
        """A fresh conversation about a task."""


def request_seed(*parts: object) -> int:
    """A seed of 31 bits that depends on nothing but ``parts`` (Python's ``hash`` differs between runs)."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
