"""What a policy is, and one behind any OpenAI-compatible chat endpoint: vLLM that we started, a lab's GPU, a
service."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import aiohttp

from arpo_replica.base.errors import PolicyError, RefusedError, UserError, brief
from arpo_replica.config.policy import PolicyConfig
from arpo_replica.policy.prompt import Message, build_messages, kept_images, with_images
from arpo_replica.tasks.model import Task

API_KEY_VARIABLE = "ARPO_API_KEY"
CONNECT_RETRIES = 3
"""Times a request is sent again whose connection was refused or broke before any answer."""
BUSY_RETRIES = 5
"""Times a request is sent again that the server turned away unread (429, 503)."""
BUSY_WAIT_S = 30.0
"""Longest wait before that, whatever the server asks for."""
REFUSED = (400, 413, 422)
"""Statuses of a server that has read a request and will not take it, whenever it comes."""
HIDDEN = "(key)"
"""Stands in messages and replies where the server wrote the key back."""
TOO_MUCH = ("context length", "maximum model length", "At most")
"""Of vLLM's refusals those that sending the screenshots again cannot mend."""
MAX_ANSWER = 4 * 1024 * 1024
"""Longest answer that is read, in bytes."""


# --- what the episode loop asks of a policy; the same for an endpoint, verl and a scripted expert ---


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


# --- a policy behind an endpoint ----------------------------------------


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

    _session: aiohttp.ClientSession
    """While it is entered."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None,
        api_key: str | None,
        timeout_s: float,
        connections: int,
        key_variable: str = API_KEY_VARIABLE,
    ) -> None:
        """``url`` with or without ``/v1``; ``model`` None: the first one served; time-out per request.

        Without ``api_key`` the environment variable ``key_variable`` is read, if it is set.
        """
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self.model = model
        self.key_variable = key_variable
        self._key = (api_key if api_key is not None else os.environ.get(key_variable, "")).strip()
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=10)
        self.roots: set[str] = set()
        """What the server says of the model: its name and, by vLLM, where its weights come from."""
        self._connections = connections

    async def __aenter__(self) -> Self:
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(
                f"The key in {self.key_variable} cannot be sent as a header; set it without line breaks."
            )
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=self._timeout,
            connector=aiohttp.TCPConnector(limit=self._connections),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def check(self, section: str = "policy") -> None:
        """Find the model. Raises ``UserError`` if the endpoint does not answer or does not serve it.

        ``section``: where the config names them.
        """
        fix = f"start the server or correct {section}.endpoint"
        limit = aiohttp.ClientTimeout(total=20)
        try:
            async with self._session.get(
                f"{self.url}/models", timeout=limit, allow_redirects=False
            ) as answer:
                status = answer.status
                body = await _read_json(answer) if status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
            raise UserError(
                f"The endpoint {self.url} does not answer ({self.hide(brief(error))}); {fix}."
            ) from None
        if status in (401, 403):
            have = "refuses the key in" if self._key else "wants a key; set"
            raise UserError(f"The endpoint {self.url} {have} {self.key_variable} in the environment.")
        if status != 200:
            raise UserError(f"The endpoint {self.url} answers with status {status}; {fix}.")
        entries = body.get("data") if isinstance(body, dict) else None
        listed = entries if isinstance(entries, list) else []
        served = [str(entry["id"]) for entry in listed if isinstance(entry, dict) and entry.get("id")]
        if self.model is None and served:
            self.model = served[0]
        mine = [entry for entry in listed if isinstance(entry, dict) and entry.get("id") == self.model]
        self.roots = {str(entry[key]) for entry in mine for key in ("id", "root") if entry.get(key)}
        if self.model not in served:
            asked = "any model" if self.model is None else f"'{self.model}'"
            raise UserError(
                f"The endpoint {self.url} serves {[self.hide(name) for name in served]}, not {asked}; "
                f"correct {section}.served_model."
            )

    async def complete(self, body: dict[str, Any]) -> Any:
        """The answer to a chat completion. Raises ``PolicyError``; ``RefusedError`` where no retry can help.

        Sent again only if no connection came about or it broke before the answer began: then no token
        was received and, as the request carries its seed, nothing is drawn twice. And if the server was
        too busy to read it (429, 503), after the time that it asks for.
        """
        broken = busy = 0
        while True:
            answered = False
            try:
                async with self._session.post(
                    f"{self.url}/chat/completions", json=body, allow_redirects=False
                ) as answer:
                    answered = True
                    if answer.status == 200:
                        return await _read_json(answer)
                    text = " ".join((await answer.content.read(2000)).decode("utf-8", "replace").split())
                    # After an error vLLM closes the connection unannounced: nothing may follow on it.
                    answer.close()
                    wait = _busy_wait(answer, busy)
                    if wait is None or busy == BUSY_RETRIES:
                        kind = RefusedError if answer.status in REFUSED else PolicyError
                        raise kind(
                            f"the endpoint answers with status {answer.status}: {self.hide(text)[:300]}"
                        )
                busy += 1
            except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
                # No connection, or one that broke while the request was written or before the answer.
                if answered or not isinstance(error, aiohttp.ClientOSError | aiohttp.ServerDisconnectedError):
                    raise PolicyError(f"the endpoint failed: {self.hide(brief(error))}") from None
                if broken == CONNECT_RETRIES:
                    raise PolicyError(f"the endpoint does not answer: {self.hide(brief(error))}") from None
                wait = 0.2 * 2**broken
                broken += 1
            await asyncio.sleep(wait)

    def hide(self, text: str) -> str:
        """The text without the key, should a server have written it back."""
        return text.replace(self._key, HIDDEN) if len(self._key) >= 8 else text


def check_endpoint(
    url: str,
    model: str | None = None,
    key_variable: str = API_KEY_VARIABLE,
    others: Collection[str] = (),
    section: str = "policy",
) -> str:
    """The name of the model served. Refuses, with a ``UserError``, an endpoint that does not answer.

    Or that serves one of ``others``: known models, in lower case, that the config does not mean.
    """

    async def ask() -> str:
        async with Endpoint(
            url, model=model, api_key=None, timeout_s=20, connections=1, key_variable=key_variable
        ) as endpoint:
            await endpoint.check(section)
            names = {root.rstrip("/").rpartition("/")[2].lower() for root in endpoint.roots}
            if found := sorted(names & set(others)):
                raise UserError(
                    f"The endpoint {endpoint.url} serves '{endpoint.hide(str(endpoint.model))}', which is "
                    f"{found[0]} and not the model that the config names; correct one of them."
                )
            return str(endpoint.model)

    return asyncio.run(ask())


class EndpointConversation:
    """One episode's exchange; the whole history is sent each time, which servers with a prefix cache
    answer quickly."""

    def __init__(self, parent: EndpointPolicy, task: Task) -> None:
        self.parent = parent
        self.task = task
        self.replies: list[str] = []
        self.images: list[str] = []
        """Screenshots as data URLs."""
        self.screenshot = b""
        """The newest one."""
        self.asked_again: Counter[int] = Counter()
        """Turn -> how often its reply was forgotten and drawn anew."""

    def messages(self) -> list[Message]:
        """The conversation so far, in the format of the chat API."""
        policy = self.parent.policy
        shown = (self.shown(self.images[index]) for index in kept_images(len(self.images), policy))
        return with_images(build_messages(self.task.instruction, self.replies, policy), shown)

    def shown(self, url: str) -> dict[str, Any]:
        """A screenshot as a part of a message."""
        return {"type": "image_url", "image_url": {"url": url}}

    async def reply(self, screenshot: bytes) -> Reply:
        self.images.append("data:image/png;base64," + base64.b64encode(screenshot).decode())
        self.screenshot = screenshot
        parent, sampling = self.parent, self.parent.sampling
        step = len(self.replies)
        again = self.asked_again[step]
        drawn = (step, again) if again else (step,)
        answer = await parent.endpoint.complete(
            {
                "model": parent.endpoint.model,
                "messages": self.messages(),
                "temperature": 1.0 if again else sampling.temperature,
                "top_p": sampling.top_p,
                "max_tokens": sampling.max_tokens,
                "seed": request_seed(*parent.seed_parts, f"{self.task.domain}/{self.task.id}", *drawn),
                **sampling.extra,
            }
        )
        reply = _read_reply(answer, parent.endpoint.hide)
        self.replies.append(reply.text)
        return reply

    async def again(self) -> Reply:
        self.replies.pop()
        self.images.pop()
        self.asked_again[len(self.replies)] += 1
        return await self.reply(self.screenshot)


class NamedImageConversation(EndpointConversation):
    """A conversation with a vLLM of our own, which sends each screenshot once.

    The chat API has no memory, so a plain client sends every screenshot of the history at every step, and
    the server decodes all of them again. vLLM (0.11 and newer) takes a ``uuid`` beside an image and, while it
    still has the processed image of that name in its cache, the name alone. The names are hashes of the
    screenshots, so they hold over episodes and clients. vLLM refuses a name that it has forgotten; then the
    whole history is sent, as a plain client would.
    """

    def __init__(self, parent: EndpointPolicy, task: Task) -> None:
        super().__init__(parent, task)
        self.sent: set[str] = set()
        """Names that the server has answered for."""
        self.refused = 0
        """Times that the server had forgotten a name."""

    def shown(self, url: str) -> dict[str, Any]:
        """The screenshot with its name; the name alone if the server knows it."""
        own = name(url)
        return {"type": "image_url", "image_url": None if own in self.sent else {"url": url}, "uuid": own}

    async def reply(self, screenshot: bytes) -> Reply:
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


@dataclass(eq=False)
class EndpointPolicy:
    """A ``Policy`` over an ``Endpoint``. Cheap: made anew for each trial."""

    endpoint: Endpoint
    policy: PolicyConfig
    sampling: Sampling
    seed_parts: tuple[object, ...]
    """(seed, stage, trial). With task and step they decide each request's seed.

    The arm is left out on purpose: all arms draw the same numbers, which narrows their differences.
    """
    conversation: ClassVar[type[EndpointConversation]] = EndpointConversation

    def start(self, task: Task) -> EndpointConversation:
        return self.conversation(self, task)


class NamedImagePolicy(EndpointPolicy):
    """``EndpointPolicy`` for a vLLM that nobody else restarts."""

    conversation = NamedImageConversation


def name(url: str) -> str:
    """The name of a screenshot, given as a data URL."""
    return hashlib.sha256(url.encode()).hexdigest()[:32]


def _forgotten(error: PolicyError) -> bool:
    """vLLM answers 400 or 500, depending on where it notices. What is too long or too much stays so."""
    text = str(error)
    return not any(words in text for words in TOO_MUCH) and any(
        f"status {code}" in text for code in (400, 404, 422, 500)
    )


def _read_reply(answer: Any, hide: Callable[[str], str]) -> Reply:
    """The reply in an answer, whose every part may be wrong. Raises ``PolicyError``."""
    try:
        text = answer["choices"][0]["message"]["content"]
        usage = answer.get("usage") or {}
        counts = [int(usage.get(key) or 0) for key in ("prompt_tokens", "completion_tokens")]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise PolicyError(
            f"the endpoint's answer is no chat completion: {hide(str(answer))[:200]!r}"
        ) from error
    if text is None:
        text = ""  # nothing but special tokens
    if not isinstance(text, str):
        raise PolicyError("the endpoint's answer has no text")
    # JSON can carry lone surrogates, which no file of ours could hold.
    return Reply(hide(text.encode("utf-8", "replace").decode()), *counts)


def _busy_wait(answer: aiohttp.ClientResponse, tries: int) -> float | None:
    """Seconds until a request that was turned away may come again; None if it was not."""
    if answer.status not in (429, 503):
        return None
    try:
        asked = float(answer.headers.get("Retry-After", ""))
    except ValueError:
        asked = 0.5 * 2**tries
    return min(max(asked, 0.05), BUSY_WAIT_S) if math.isfinite(asked) else BUSY_WAIT_S


async def _read_json(answer: aiohttp.ClientResponse) -> Any:
    data = bytearray()
    while len(data) <= MAX_ANSWER and (chunk := await answer.content.read(MAX_ANSWER)):
        data += chunk
    if len(data) > MAX_ANSWER:
        raise ValueError("the answer is too long")
    return json.loads(data)
