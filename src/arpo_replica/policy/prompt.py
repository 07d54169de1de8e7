"""The conversation with the policy, for supervised learning, evaluation and verl alike: its text, what of it
is kept, and how long it gets.

    user       the prompt's text (``STYLES``) filled with language and instruction, screenshot 0
    assistant  reply 0
    user       screenshot 1
    assistant  reply 1
    ...

A prompt may have a system message and may show screenshot 0 in a user turn of its own (``Style``); without
one no system message is added: a model whose chat template wants one puts it there itself, the same
everywhere. Of the screenshots the newest ``max_images`` are kept; every reply stays (or the newest
``max_turns``), so that the policy still reads what it did. A user turn that would be left empty is dropped,
so that two replies may follow each other: UI-TARS's runner in OSWorld (``uitars15_v1.py``) does the same
with its newest five. With ``max_images >= max_steps``, as in ARPO, this never happens.

The prompts and their sources stand in ``prompt.yaml``.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from arpo_replica.actions.coordinates import FACTOR, smart_resize
from arpo_replica.base.errors import UserError
from arpo_replica.base.tables import table_of
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.policy import PolicyConfig

Message = dict[str, Any]
_PLAIN_BOX = re.compile(r"(start_box|end_box)='\((\d+),\s*(\d+)\)'")


@dataclass(frozen=True, slots=True)
class Style:
    """How a conversation looks."""

    text: str | None = None
    """The prompt, with {language} and {instruction}; None: that of the package ``ui-tars``."""
    system: str | None = None
    """System message; None: the chat template's own, "You are a helpful assistant." in Qwen2-VL's."""
    own_turn: bool = False
    """The first screenshot comes in a user turn of its own, after the one with the text."""
    box_tokens: bool = False
    """Replies in the history have ``<|box_start|>`` and ``<|box_end|>``, which many servers strip."""

    def template(self) -> str:
        """The prompt's text."""
        if self.text is not None:
            return self.text.replace("␣", " ")
        from ui_tars.prompt import COMPUTER_USE_DOUBAO

        return str(COMPUTER_USE_DOUBAO)


STYLES = {name: Style(**style) for name, style in table_of(__file__).items()}
"""``policy.prompt`` of the config -> how it is asked."""


def first_text(instruction: str, language: str = "English", prompt: str = "uitars") -> str:
    """The prompt with the instruction filled in. Braces in the instruction are kept as they are."""
    template = STYLES[prompt].template()
    before, after = template.replace("{language}", language).split("{instruction}")
    return f"{before}{instruction}{after}"


def build_messages(instruction: str, replies: Sequence[str], policy: PolicyConfig) -> list[Message]:
    """The conversation before the next reply.

    There are ``len(replies) + 1`` screenshots so far; those that ``kept_images`` names appear, oldest first,
    as ``{"type": "image"}``, whose order is that of the images to be passed along. Ends with a user message.
    """
    style = STYLES[policy.prompt]
    images = kept_images(len(replies) + 1, policy)
    first_turn = max(0, len(replies) - policy.max_turns) if policy.max_turns else 0
    text = {"type": "text", "text": first_text(instruction, policy.language, policy.prompt)}
    messages: list[Message] = [{"role": "user", "content": [text]}]
    if style.system is not None:
        system = {"type": "text", "text": style.system}
        messages.insert(0, {"role": "system", "content": [system]})
    if first_turn in images:
        if style.own_turn:
            messages.append(screenshot_message())
        else:
            messages[-1]["content"].append({"type": "image"})
    for index in range(first_turn, len(replies)):
        said = add_box_tokens(replies[index]) if style.box_tokens else replies[index]
        messages.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
        if index + 1 in images:
            messages.append(screenshot_message())
    return messages


def screenshot_message() -> Message:
    """The user turn that follows a reply."""
    return {"role": "user", "content": [{"type": "image"}]}


def with_images(messages: Sequence[Message], images: Iterable[dict[str, Any]]) -> list[Message]:
    """Copies of messages in which ``images`` stand, in order, in the place of their image parts."""
    rest = iter(images)
    contents = (
        [next(rest) if part["type"] == "image" else part for part in message["content"]]
        for message in messages
    )
    return [{**m, "content": content} for m, content in zip(messages, contents, strict=True)]


def kept_images(screenshots: int, policy: PolicyConfig) -> range:
    """Indices of the screenshots that stay in the conversation, out of so many so far."""
    kept = policy.max_images
    if policy.max_turns is not None:
        kept = min(kept, policy.max_turns + 1)
    return range(max(0, screenshots - kept), screenshots)


def add_box_tokens(reply: str) -> str:
    """The reply with the special tokens around its points that the model had sampled.

    Servers strip special tokens from what they return; ARPO's code and OSWorld's runner put them back
    the same way before a reply becomes history. A reply that still has them stays as it is.
    """
    return _PLAIN_BOX.sub(r"\1='<|box_start|>(\2,\3)<|box_end|>'", reply)


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
