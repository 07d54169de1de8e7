"""A conversation inside verl, token in and token out.

The ids that vLLM sampled are the ids that are trained on: history is never tokenised again. Each new
user turn is rendered alone and appended to the ids (verl's "continuous token" helpers), and an image
joins the list only together with its tokens.
"""

from __future__ import annotations

import copy
import hashlib
import io
from typing import Any

from PIL import Image
from ray.exceptions import RayError

from arpo_replica.errors import PolicyError
from arpo_replica.policy.interface import Reply
from arpo_replica.policy.prompt import Message, build_messages, screenshot_message
from arpo_replica.policy.seeds import request_seed
from arpo_replica.tasks.model import Task


def with_image(message: Message, image: Image.Image) -> Message:
    """A copy of a message whose image part carries the image."""
    filled = copy.copy(message)
    filled["content"] = [
        {**part, "image": image} if part["type"] == "image" else part for part in message["content"]
    ]
    return filled


class TokenConversation:
    """One episode's conversation (a ``Conversation``) and the trajectory that it leaves behind."""

    def __init__(
        self,
        loop: Any,
        task: Task,
        *,
        sampling: dict[str, Any],
        seed_parts: tuple[object, ...],
        max_new_tokens: int,
        max_model_len: int,
        language: str,
    ) -> None:
        """``loop``: the verl agent loop, whose helpers and server are used."""
        self.loop = loop
        self.task = task
        self.sampling = sampling
        self.seed_parts = seed_parts
        self.max_new_tokens = max_new_tokens
        self.max_model_len = max_model_len
        self.language = language
        self.request_id = hashlib.sha256(repr((task.id, seed_parts)).encode()).hexdigest()
        self.messages: list[Message] = []
        self.images: list[Image.Image] = []
        self.ids: list[int] = []
        """All tokens so far."""
        self.mask: list[int] = []
        """1 = sampled, 0 = observation; begins with the first sampled token."""
        self.logprobs: list[float] = []
        self.versions: list[int] = []
        """Version of the weights at each reply, as vLLM reports it."""

    async def reply(self, screenshot: bytes) -> Reply:
        """See ``Conversation``. Raises ``PolicyError`` when vLLM fails or the context is full."""
        image = Image.open(io.BytesIO(screenshot)).convert("RGB")
        await self._observe(image)
        prompt_tokens = len(self.ids)
        if prompt_tokens + self.max_new_tokens > self.max_model_len:
            raise PolicyError(
                f"the conversation has {prompt_tokens} tokens, which leaves no room for a reply of "
                f"{self.max_new_tokens}; raise policy.max_model_len"
            )
        turn = len(self.images) - 1
        try:
            output = await self.loop.server_manager.generate(
                request_id=self.request_id,
                prompt_ids=list(self.ids),
                sampling_params={
                    **self.sampling,
                    "max_tokens": self.max_new_tokens,
                    "seed": request_seed(*self.seed_parts, turn),
                },
                image_data=list(self.images),
                mm_processor_kwargs=self.loop._get_mm_processor_kwargs(None),
            )
        except (RayError, OSError, RuntimeError, ValueError) as error:
            raise PolicyError(f"vLLM did not answer: {error}") from error
        if not output.token_ids or output.log_probs is None:
            raise PolicyError(f"vLLM returned no tokens ({output.stop_reason})")
        sampled = [int(token) for token in output.token_ids]
        merged, self.mask, logprobs = await self.loop.ct_merge_assistant_token(
            self.ids,
            sampled,
            self.mask,
            self.logprobs,
            assistant_logprobs=[float(value) for value in output.log_probs],
        )
        self.ids, self.logprobs = merged.token_ids, logprobs
        for key in ("min_global_steps", "max_global_steps"):
            if output.extra_fields.get(key) is not None:
                self.versions.append(output.extra_fields[key])
        text = self.loop.tokenizer.decode(sampled, skip_special_tokens=True)
        self.messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
        return Reply(text=text, prompt_tokens=prompt_tokens, completion_tokens=len(sampled))

    async def _observe(self, image: Image.Image) -> None:
        """Append the user turn with this screenshot, and the image with it."""
        if not self.images:
            first = build_messages(self.task.instruction, [], max_images=1, language=self.language)
            self.messages = [with_image(message, image) for message in first]
            self.ids = await self.loop.ct_build_initial_tokens(self.messages, images=[image])
        else:
            updated = [*self.messages, with_image(screenshot_message(), image)]
            merged, self.mask, self.logprobs = await self.loop.ct_merge_context_msg(
                self.messages, updated, self.ids, self.mask, self.logprobs
            )
            self.messages, self.ids = updated, merged.token_ids
        self.images.append(image)
