"""How long a conversation gets: what the context must hold."""

from __future__ import annotations

from dataclasses import dataclass

from arpo_replica.actions.coordinates import FACTOR, smart_resize
from arpo_replica.base.errors import UserError
from arpo_replica.config.models import StudyConfig
from arpo_replica.policy.prompt import kept_images

TOKENS_PER_TURN = 40
"""Of the chat template, beside image and reply."""
PROMPT_TOKENS = 700
NANO_PROMPT_TOKENS = 400
"""The nano tokenizer has whole phrases of the prompt."""


@dataclass(frozen=True, slots=True)
class Length:
    """Of the longest conversation, in tokens."""

    images: int
    """Screenshots that it keeps."""
    image: int
    """Tokens of one."""
    turns: int
    """Replies that it keeps."""
    least: int
    """With replies of no length."""
    most: int
    """With replies of ``policy.max_new_tokens``."""


def conversation_length(config: StudyConfig) -> Length:
    """What the last step of an episode needs of ``policy.max_model_len``, by the config."""
    policy = config.policy
    width, height = smart_resize(*config.desktop.screen, policy.min_pixels, policy.max_pixels)
    image = (width // FACTOR) * (height // FACTOR)
    images = len(kept_images(policy.max_steps, policy))
    turns = min(policy.max_turns or policy.max_steps, policy.max_steps)
    least = (NANO_PROMPT_TOKENS if config.size == "nano" else PROMPT_TOKENS) + images * image
    return Length(images, image, turns, least, least + turns * (policy.max_new_tokens + TOKENS_PER_TURN))


def check_context(config: StudyConfig) -> None:
    """Refuse a context too small for the screenshots of an episode and one reply. Raises ``UserError``."""
    policy, length = config.policy, conversation_length(config)
    if policy.max_new_tokens >= policy.max_model_len:
        raise UserError(
            f"policy.max_new_tokens ({policy.max_new_tokens}) leaves no room for a prompt in "
            f"policy.max_model_len ({policy.max_model_len}); raise the latter."
        )
    if length.least + policy.max_new_tokens > policy.max_model_len:
        raise UserError(
            f"{length.images} screenshots of {length.image} tokens (policy.max_images, policy.max_steps), "
            f"the prompt and a reply of policy.max_new_tokens ({policy.max_new_tokens}) are more than "
            f"policy.max_model_len ({policy.max_model_len}); raise it, or lower policy.max_images or "
            "policy.max_pixels."
        )
