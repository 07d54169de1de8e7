"""A policy behind any OpenAI-compatible chat endpoint: vLLM that we started, a lab's GPU, a service."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp

from arpo_replica.config.models import PolicyConfig
from arpo_replica.errors import PolicyError, UserError
from arpo_replica.policy.interface import Reply
from arpo_replica.policy.prompt import Message, build_messages, kept_images
from arpo_replica.policy.seeds import request_seed
from arpo_replica.tasks.model import Task

API_KEY_VARIABLE = "ARPO_API_KEY"
CONNECT_RETRIES = 3
"""Times a request is sent again whose connection was refused or broke before any answer."""
MAX_ANSWER = 4 * 1024 * 1024
"""Longest answer that is read, in bytes."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How replies are drawn."""

    temperature: float
    top_p: float
    max_tokens: int
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request that only some servers know."""


class Endpoint:
    """One server and one model on it. Use as an async context manager."""

    def __init__(
        self, url: str, *, model: str | None, api_key: str | None, timeout_s: float, connections: int
    ) -> None:
        """``url`` with or without ``/v1``; ``model`` None: the first one served; time-out per request."""
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self.model = model
        key = api_key if api_key is not None else os.environ.get(API_KEY_VARIABLE, "")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=10)
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        try:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=self._timeout,
                connector=aiohttp.TCPConnector(limit=self._connections),
            )
        except ValueError as error:
            raise UserError(f"The key in {API_KEY_VARIABLE} cannot be sent as a header: {error}.") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def check(self) -> None:
        """Find the model. Raises ``UserError`` if the endpoint does not answer or does not serve it."""
        fix = "start the server or correct policy.endpoint"
        try:
            async with self._open().get(
                f"{self.url}/models", timeout=aiohttp.ClientTimeout(total=20)
            ) as answer:
                if answer.status in (401, 403):
                    raise UserError(
                        f"The endpoint {self.url} refuses the key; set {API_KEY_VARIABLE} in the environment."
                    )
                body = await _read_json(answer)
                if answer.status != 200:
                    raise UserError(f"The endpoint {self.url} answers with status {answer.status}; {fix}.")
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise UserError(f"The endpoint {self.url} does not answer ({_brief(error)}); {fix}.") from error
        entries = body.get("data") if isinstance(body, dict) else None
        served = [entry.get("id") for entry in entries or [] if isinstance(entry, dict)]
        if self.model is None and served and isinstance(served[0], str):
            self.model = served[0]
        if self.model not in served:
            raise UserError(
                f"The endpoint {self.url} serves {served}, not '{self.model}'; correct policy.model."
            )

    async def complete(self, body: dict[str, Any]) -> Any:
        """The answer to a chat completion. Raises ``PolicyError``.

        Sent again only if no connection came about or it broke before the answer began: then no token
        was received and, as the request carries its seed, nothing is drawn twice.
        """
        for attempt in range(CONNECT_RETRIES + 1):
            try:
                async with self._open().post(f"{self.url}/chat/completions", json=body) as answer:
                    if answer.status != 200:
                        text = " ".join((await answer.content.read(2000)).decode("utf-8", "replace").split())
                        raise PolicyError(f"the endpoint answers with status {answer.status}: {text[:300]}")
                    return await _read_json(answer)
            except (aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError) as error:
                if attempt == CONNECT_RETRIES:
                    raise PolicyError(f"the endpoint does not answer: {_brief(error)}") from error
                await asyncio.sleep(0.2 * 2**attempt)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                raise PolicyError(f"the endpoint failed: {_brief(error)}") from error
        raise AssertionError("unreachable")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("Endpoint is used outside of its context")
        return self._session


def check_endpoint(url: str) -> None:
    """Refuse, with a ``UserError``, an endpoint that does not answer; for checks before any work."""

    async def ask() -> None:
        async with Endpoint(url, model=None, api_key=None, timeout_s=20, connections=1) as endpoint:
            await endpoint.check()

    asyncio.run(ask())


class EndpointPolicy:
    """A ``Policy`` over an ``Endpoint``. Cheap: made anew for each trial."""

    def __init__(
        self, endpoint: Endpoint, policy: PolicyConfig, sampling: Sampling, seed_parts: tuple[object, ...]
    ) -> None:
        """``seed_parts``: (seed, stage, trial). With task and step they decide each request's seed.

        The arm is left out on purpose: all arms draw the same numbers, which narrows their differences.
        """
        self.endpoint = endpoint
        self.policy = policy
        self.sampling = sampling
        self.seed_parts = seed_parts

    def start(self, task: Task) -> EndpointConversation:
        """A fresh conversation about a task."""
        return EndpointConversation(self, task)


class EndpointConversation:
    """One episode's exchange; the whole history is sent each time, which servers with a prefix cache
    answer quickly."""

    def __init__(self, parent: EndpointPolicy, task: Task) -> None:
        self.parent = parent
        self.task = task
        self.replies: list[str] = []
        self.images: list[str] = []
        """Screenshots as data URLs."""

    def messages(self) -> list[Message]:
        """The conversation so far, in the format of the chat API."""
        policy = self.parent.policy
        messages = build_messages(
            self.task.instruction, self.replies, max_images=policy.max_images, language=policy.language
        )
        kept = iter(self.images[i] for i in kept_images(len(self.images), policy.max_images))
        for message in messages:
            message["content"] = [
                {"type": "image_url", "image_url": {"url": next(kept)}} if part["type"] == "image" else part
                for part in message["content"]
            ]
        return messages

    async def reply(self, screenshot: bytes) -> Reply:
        """See ``Conversation``. Raises ``PolicyError``."""
        self.images.append("data:image/png;base64," + base64.b64encode(screenshot).decode())
        parent, sampling = self.parent, self.parent.sampling
        step = len(self.replies)
        answer = await parent.endpoint.complete(
            {
                "model": parent.endpoint.model,
                "messages": self.messages(),
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_tokens": sampling.max_tokens,
                "seed": request_seed(*parent.seed_parts, f"{self.task.domain}/{self.task.id}", step),
                **sampling.extra,
            }
        )
        reply = _read_reply(answer)
        self.replies.append(reply.text)
        return reply


def _read_reply(answer: Any) -> Reply:
    """The reply in an answer, whose every part may be wrong. Raises ``PolicyError``."""
    try:
        text = answer["choices"][0]["message"]["content"]
        usage = answer.get("usage") or {}
        counts = [int(usage.get(key) or 0) for key in ("prompt_tokens", "completion_tokens")]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise PolicyError(f"the endpoint's answer is no chat completion: {str(answer)[:200]!r}") from error
    if text is None:
        text = ""  # nothing but special tokens
    if not isinstance(text, str):
        raise PolicyError("the endpoint's answer has no text")
    # JSON can carry lone surrogates, which no file of ours could hold.
    return Reply(text.encode("utf-8", "replace").decode(), *counts)


async def _read_json(answer: aiohttp.ClientResponse) -> Any:
    data = await answer.content.read(MAX_ANSWER + 1)
    chunks = [data]
    while data and sum(map(len, chunks)) <= MAX_ANSWER:
        data = await answer.content.read(MAX_ANSWER + 1)
        chunks.append(data)
    if sum(map(len, chunks)) > MAX_ANSWER:
        raise ValueError("the answer is too long")
    return json.loads(b"".join(chunks))


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
