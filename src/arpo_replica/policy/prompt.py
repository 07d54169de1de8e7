"""The conversation with the policy: the one place used by supervised learning, evaluation and verl.

    user       COMPUTER_USE_DOUBAO (package ui-tars) filled with language and instruction, screenshot 0
    assistant  reply 0
    user       screenshot 1
    assistant  reply 1
    ...

No system message is added; a model whose chat template wants one puts it there itself, the same
everywhere. Of the screenshots the newest ``max_images`` are kept; every reply stays, so that the policy
still reads what it did. A user turn that would be left empty is dropped, so that two replies may follow
each other: UI-TARS's runner in OSWorld (``uitars15_v1.py``) does the same with its newest five. With
``max_images >= max_steps``, as in ARPO, this never happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]


def first_text(instruction: str, language: str = "English") -> str:
    """UI-TARS's prompt with the instruction filled in. Braces in the instruction are kept as they are."""
    from ui_tars.prompt import COMPUTER_USE_DOUBAO

    before, after = COMPUTER_USE_DOUBAO.replace("{language}", language).split("{instruction}")
    return f"{before}{instruction}{after}"


def build_messages(
    instruction: str, replies: Sequence[str], *, max_images: int, language: str = "English"
) -> list[Message]:
    """The conversation before the next reply.

    There are ``len(replies) + 1`` screenshots so far; the newest ``max_images`` of them appear, oldest
    first, as ``{"type": "image"}``, whose order is that of the images to be passed along
    (``kept_images``). Ends with a user message.
    """
    first_kept = kept_images(len(replies) + 1, max_images).start
    messages: list[Message] = [
        {"role": "user", "content": [{"type": "text", "text": first_text(instruction, language)}]}
    ]
    if first_kept == 0:
        messages[0]["content"].append({"type": "image"})
    for index, reply in enumerate(replies):
        messages.append({"role": "assistant", "content": [{"type": "text", "text": reply}]})
        if index + 1 >= first_kept:
            messages.append(screenshot_message())
    return messages


def screenshot_message() -> Message:
    """The user turn that follows a reply."""
    return {"role": "user", "content": [{"type": "image"}]}


def kept_images(screenshots: int, max_images: int) -> range:
    """Indices of the screenshots that stay in the conversation, out of so many so far."""
    if max_images < 1:
        raise ValueError("max_images must be at least 1")
    return range(max(0, screenshots - max_images), screenshots)
