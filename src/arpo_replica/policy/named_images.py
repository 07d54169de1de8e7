"""A conversation with a vLLM of our own, which sends each screenshot once.

The chat API has no memory, so a plain client sends every screenshot of the history at every step, and the
server decodes all of them again. vLLM (0.11 and newer) takes a ``uuid`` beside an image and, while it still
has the processed image of that name in its cache, the name alone. The names are hashes of the screenshots, so
they hold over episodes and clients.

vLLM refuses a name that it has forgotten; then the whole history is sent, as a plain client would.
"""

from __future__ import annotations

import hashlib
from typing import Any

from arpo_replica.base.errors import PolicyError
from arpo_replica.policy.endpoint import EndpointConversation, EndpointPolicy
from arpo_replica.policy.interface import Reply
from arpo_replica.policy.prompt import Message
from arpo_replica.tasks.model import Task


class NamedImagePolicy(EndpointPolicy):
    """``EndpointPolicy`` for a vLLM that nobody else restarts."""

    def start(self, task: Task) -> NamedImageConversation:
        """A fresh conversation about a task."""
        return NamedImageConversation(self, task)


TOO_MUCH = ("context length", "maximum model length", "At most")
"""Of vLLM's refusals those that sending the screenshots again cannot mend."""


class NamedImageConversation(EndpointConversation):
    """See the module."""

    def __init__(self, parent: EndpointPolicy, task: Task) -> None:
        super().__init__(parent, task)
        self.sent: set[str] = set()
        """Names that the server has answered for."""
        self.refused = 0
        """Times that the server had forgotten a name."""

    def messages(self) -> list[Message]:
        """The conversation so far; screenshots that the server knows by name only."""
        messages = super().messages()
        for message in messages:
            message["content"] = [self._named(part) for part in message["content"]]
        return messages

    async def reply(self, screenshot: bytes) -> Reply:
        """See ``Conversation``. Raises ``PolicyError``."""
        try:
            reply = await super().reply(screenshot)
        except PolicyError as error:
            if not self.sent or not _forgotten(error):
                raise
            self.refused += 1
            self.sent.clear()
            self.images.pop()
            reply = await super().reply(screenshot)
        self.sent.update(name(url) for url in self.images)
        return reply

    def _named(self, part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] != "image_url":
            return part
        url = part["image_url"]["url"]
        own = name(url)
        return {"type": "image_url", "image_url": None if own in self.sent else {"url": url}, "uuid": own}


def name(url: str) -> str:
    """The name of a screenshot, given as a data URL."""
    return hashlib.sha256(url.encode()).hexdigest()[:32]


def _forgotten(error: PolicyError) -> bool:
    """vLLM answers 400 or 500, depending on where it notices. What is too long or too much stays so."""
    text = str(error)
    return not any(words in text for words in TOO_MUCH) and any(
        f"status {code}" in text for code in (400, 404, 422, 500)
    )
