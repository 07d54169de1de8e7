"""A conversation inside verl, token in and token out.

The ids that vLLM sampled are the ids that are trained on: replies are never tokenised again. What the policy
sees before a reply is decided where it is decided for evaluation (``policy.prompt.build_messages``); here its
user turns become ids (verl's "continuous token" builder) and its replies the ids that were sampled.

While each history only adds to the one before, an episode is one sequence. When the history forgets something
(``policy.max_images``, ``policy.max_turns``), a new sequence begins: its prompt is the history as the policy
then saw it, its response the reply. So every reply is trained on once, under the very prompt it was given to.
"""

import asyncio
import hashlib
import io
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import groupby
from typing import Any, Self

from PIL import Image
from ray.exceptions import RayError

from arpo_replica.base.errors import PolicyError, RefusedError
from arpo_replica.config.policy import PolicyConfig
from arpo_replica.policy.endpoint import Reply, request_seed
from arpo_replica.policy.prompt import Message, build_messages, with_images
from arpo_replica.rollout.records import encode_webp
from arpo_replica.tasks.model import Task
from arpo_replica.training.pixels import FeatureFolder

FORGOTTEN = "screenshot forgotten"
"""``stop_reason`` of an answer without tokens: vLLM no longer has a screenshot that was only named."""


def decode(file: bytes) -> Image.Image:
    """The picture in an image file."""
    return Image.open(io.BytesIO(file)).convert("RGB")


def with_pictures(messages: Sequence[Message], pictures: Sequence[Image.Image]) -> list[Message]:
    """Copies of messages whose image parts carry the pictures, in order."""
    return with_images(messages, ({"type": "image", "image": picture} for picture in pictures))


def image_parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The image parts, in order."""
    return [part for message in messages for part in message["content"] if part["type"] == "image"]


@dataclass
class TokenSequence:
    """One sequence to train on: a prompt and what followed it."""

    messages: list[Message]
    """The history before its latest reply; a reply's text is the number of its turn."""
    first_image: int
    """Its screenshots are those from this one on, up to its latest reply."""
    images: int
    """How many these are."""
    ids: list[int]
    """All tokens so far."""
    mask: list[int] = field(default_factory=list)
    """1 = sampled, 0 = observation; begins with the first sampled token."""
    logprobs: list[float] = field(default_factory=list)

    @property
    def prompt(self) -> list[int]:
        """Tokens before the first sampled one."""
        return self.ids[: len(self.ids) - len(self.mask)]

    @property
    def response(self) -> list[int]:
        return self.ids[len(self.ids) - len(self.mask) :]


@dataclass(eq=False)
class TokenConversation:
    """One episode's conversation (a ``Conversation``) and the sequences that it leaves behind."""

    loop: Any
    """The verl agent loop, whose token builder and server are used."""
    task: Task
    _: KW_ONLY
    sampling: dict[str, Any]
    seed_parts: tuple[object, ...]
    attempt: int = 0
    """Sets apart the requests of two conversations of the same seeds."""
    policy: PolicyConfig
    named: bool = False
    """The server is ours (``rollout_server``) and keeps screenshots by name."""
    features: FeatureFolder | None = None
    """Where vLLM leaves what its vision tower made of them."""
    images: list[Image.Image] = field(default_factory=list)
    """All screenshots."""
    pngs: list[bytes] = field(default_factory=list)
    """The same as files ..."""
    names: list[str] = field(default_factory=list)
    """... and their names, hashes of the files."""
    known: set[str] = field(default_factory=set)
    """Names that vLLM has answered for."""
    files: dict[bytes, asyncio.Future[bytes]] = field(default_factory=dict)
    """PNG -> WebP, encoded in threads while vLLM computes: the record needs it."""
    links: list[asyncio.Future[None]] = field(default_factory=list)
    """Screenshots' names being linked to their pixel values, for the trainer."""
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Where the time of all replies went; adds up to the time spent in ``reply``."""
    replies: list[list[int]] = field(default_factory=list)
    """The sampled ids of each turn."""
    sequences: list[TokenSequence] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    """Version of the weights at each reply, as vLLM reports it."""

    def __post_init__(self) -> None:
        parts = (self.task.id, self.seed_parts, self.attempt)
        self.request_id = hashlib.sha256(repr(parts).encode()).hexdigest()

    def start(self, task: Task) -> Self:
        """A ``Policy`` of the one conversation, which is made beforehand."""
        return self

    async def reply(self, screenshot: bytes) -> Reply:
        """See ``Conversation``. Raises ``PolicyError`` when vLLM fails, and ``RefusedError`` when the context
        is full: the sequences then are those of the replies so far, as after an episode's last step."""
        began = time.monotonic()
        run = self.loop.loop.run_in_executor
        picture = await run(None, decode, screenshot)
        self.images.append(picture)
        self.pngs.append(screenshot)
        self.names.append(hashlib.sha256(screenshot).hexdigest()[:32])
        if screenshot not in self.files:
            self.files[screenshot] = run(None, encode_webp, picture)
        turn = len(self.replies)
        finished = max(len(self.sequences) - 1, 0)
        open_before = [
            replace(sequence, mask=[*sequence.mask], logprobs=[*sequence.logprobs])
            for sequence in self.sequences[finished:]
        ]
        opened = time.monotonic()
        now = await run(None, self._observe)
        observed = time.monotonic()
        if self.features is not None:
            self.links.append(run(None, self._link, picture, self.names[-1]))
        prompt_tokens, longest = len(now.ids), self.policy.max_new_tokens
        if prompt_tokens + longest > self.policy.max_model_len:
            self.sequences[finished:] = open_before
            for shown in (self.images, self.pngs, self.names):
                shown.pop()
            raise RefusedError(
                f"the conversation has {prompt_tokens} tokens, which leaves no room for a reply of "
                f"{longest} in policy.max_model_len ({self.policy.max_model_len})"
            )
        output = await self._generate(now, turn)
        if output.stop_reason == FORGOTTEN:
            self.known.clear()
            output = await self._generate(now, turn)
        if not output.token_ids or output.log_probs is None:
            raise PolicyError(f"vLLM returned no tokens ({output.stop_reason})")
        sampled = [int(token) for token in output.token_ids]
        now.ids = now.ids + sampled
        now.mask += [1] * len(sampled)
        now.logprobs += [float(value) for value in output.log_probs]
        self.replies.append(sampled)
        self.known.update(self.names)
        inside = output.extra_fields.get("seconds") or {}
        own = {"png": opened - began, "tokens": observed - opened}
        own["way"] = time.monotonic() - observed - sum(inside.values())
        for part, value in [*own.items(), *inside.items()]:
            self.seconds[part] += value
        known = [output.extra_fields.get(key) for key in ("min_global_steps", "max_global_steps")]
        versions = [int(version) for version in known if version is not None]
        self.versions += versions
        text = self.loop.tokenizer.decode(sampled, skip_special_tokens=True)
        return Reply(
            text=text,
            prompt_tokens=prompt_tokens,
            completion_tokens=len(sampled),
            weights=(min(versions), max(versions)) if versions else None,
        )

    def _link(self, picture: Image.Image, name: str) -> None:
        assert self.features is not None
        options = self.loop._get_mm_processor_kwargs(None)
        found = self.loop.processor.image_processor(images=[picture], return_tensors="pt", **options)
        self.features.link(found["pixel_values"], name)

    async def _generate(self, now: TokenSequence, turn: int) -> Any:
        """vLLM's answer to a turn. Raises ``PolicyError``."""
        shown = slice(now.first_image, now.first_image + now.images)
        images: list[Any] = self.images[shown]
        if self.named:
            pairs = zip(self.names[shown], self.pngs[shown], strict=True)
            images = [(name, None if name in self.known else png) for name, png in pairs]
        try:
            return await self.loop.server_manager.generate(
                request_id=self.request_id,
                prompt_ids=list(now.ids),
                sampling_params={
                    **self.sampling,
                    "max_tokens": self.policy.max_new_tokens,
                    "seed": request_seed(*self.seed_parts, turn),
                },
                image_data=images,
                mm_processor_kwargs=self.loop._get_mm_processor_kwargs(None),
            )
        except (RayError, OSError, RuntimeError, ValueError) as error:
            raise PolicyError(f"vLLM did not answer: {error}") from error

    def _observe(self) -> TokenSequence:
        """The sequence that the next reply belongs to, its history complete."""
        turn = len(self.replies)
        # Replies go by their numbers, so that a history says which replies it keeps.
        history = build_messages(
            self.task.instruction, [str(earlier) for earlier in range(turn)], self.policy
        )
        images = len(image_parts(history))
        last = self.sequences[-1] if self.sequences else None
        if last is not None:
            latest = [{"type": "text", "text": str(turn - 1)}]
            seen = [*last.messages, {"role": "assistant", "content": latest}]
            if history[: len(seen)] == seen:
                first_new = len(self.images) - images + last.images
                new = with_pictures(history[len(seen) :], self.images[first_new:])
                ids = self._append(last.ids, new)
                added = len(ids) - len(last.ids)
                last.mask += [0] * added
                last.logprobs += [0.0] * added
                last.ids, last.messages, last.images = ids, history, images
                return last
        first = len(self.images) - images
        ids = self._render(with_pictures(history, self.images[first:]))
        self.sequences.append(TokenSequence(history, first, images, ids))
        return self.sequences[-1]

    def _render(self, messages: list[Message]) -> list[int]:
        """A whole history as ids, ready for the next reply."""
        ids: list[int] = []
        runs = [(reply, list(run)) for reply, run in groupby(messages, lambda m: m["role"] == "assistant")]
        for is_reply, run in runs:
            if not ids:
                # As every first prompt: the processor renders it, with the generation prompt at the end.
                images = [part["image"] for part in image_parts(run)]
                ids = self._builder.build_initial_tokens(run, images=images or None)
            elif is_reply:
                for position, message in enumerate(run):
                    if position:  # a reply right after a reply: the screenshot between them is forgotten
                        ids = self._append(ids, [])
                    ids = ids + self.replies[int(message["content"][0]["text"])]
            else:
                ids = self._append(ids, run)
        return ids

    def _append(self, ids: list[int], messages: list[Message]) -> list[int]:
        """``ids``, which end in a reply, with user turns and the generation prompt after them."""
        builder = self._builder
        closed = builder.merge_context_tokens([], [], ids).token_ids
        if not messages:
            user = {"role": "user", "content": [{"type": "text", "text": "-"}]}
            return [*closed, *builder.render_delta_token_id([user], [], add_generation_prompt=True)]
        return [*closed, *builder.tokenize_context_incremental_messages([], messages)]

    @property
    def _builder(self) -> Any:
        return self.loop.continuous_token_builder
