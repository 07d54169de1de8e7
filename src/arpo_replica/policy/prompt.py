"""The conversation with the policy: the one place used by supervised learning, evaluation and verl.

    user       the prompt's text (``styles``) filled with language and instruction, screenshot 0
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
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from arpo_replica.config.policy import PolicyConfig
from arpo_replica.policy.prompt_texts import STYLES

Message = dict[str, Any]
_PLAIN_BOX = re.compile(r"(start_box|end_box)='\((\d+),\s*(\d+)\)'")


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
