"""The conversation with the policy: prompt, turns, and which screenshots stay."""

from __future__ import annotations

import pytest
from ui_tars.prompt import COMPUTER_USE_DOUBAO

from arpo_replica.policy.prompt import build_messages, first_text, kept_images, screenshot_message


def shape(messages) -> list[tuple[str, list[str]]]:
    return [(message["role"], [part["type"] for part in message["content"]]) for message in messages]


def test_the_prompt_is_the_packages_own():
    assert first_text("Open the menu.", "German") == COMPUTER_USE_DOUBAO.format(
        language="German", instruction="Open the menu."
    )


@pytest.mark.parametrize("instruction", ["Type {instruction}", "{language} {0} {", "a\nb"])
def test_an_instruction_is_never_a_template(instruction):
    assert first_text(instruction).endswith(f"## User Instruction\n{instruction}\n")


def test_the_first_turn_is_the_prompt_and_the_screenshot():
    assert shape(build_messages("x", [], max_images=15)) == [("user", ["text", "image"])]


def test_replies_and_screenshots_take_turns():
    messages = build_messages("x", ["one", "two"], max_images=15)
    assert shape(messages) == [
        ("user", ["text", "image"]),
        ("assistant", ["text"]),
        ("user", ["image"]),
        ("assistant", ["text"]),
        ("user", ["image"]),
    ]
    assert messages[1]["content"][0]["text"] == "one"
    assert messages[-1] == screenshot_message()


def test_old_screenshots_go_and_replies_stay():
    messages = build_messages("x", ["one", "two", "three"], max_images=2)
    assert shape(messages) == [
        ("user", ["text"]),
        ("assistant", ["text"]),
        ("assistant", ["text"]),
        ("user", ["image"]),
        ("assistant", ["text"]),
        ("user", ["image"]),
    ]
    replies = [message["content"][0]["text"] for message in messages if message["role"] == "assistant"]
    assert replies == ["one", "two", "three"]


@pytest.mark.parametrize("steps", range(8))
@pytest.mark.parametrize("max_images", [1, 2, 5, 20])
def test_as_many_images_as_are_kept_and_the_newest_is_last(steps, max_images):
    messages = build_messages("x", ["r"] * steps, max_images=max_images)
    images = sum(types.count("image") for _, types in shape(messages))
    kept = kept_images(steps + 1, max_images)
    assert images == len(kept) == min(steps + 1, max_images)
    assert kept[-1] == steps
    assert messages[-1]["content"][-1] == {"type": "image"}


def test_a_policy_must_see_something():
    with pytest.raises(ValueError, match="max_images"):
        kept_images(3, 0)
