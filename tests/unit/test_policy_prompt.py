"""The conversation with the policy: prompt, turns, and which screenshots stay."""

from __future__ import annotations

import ast
import difflib
from typing import get_args

import pytest
from pydantic import ValidationError
from ui_tars.prompt import COMPUTER_USE_DOUBAO

from arpo_replica.base.environments import ROOT
from arpo_replica.config.models import PolicyConfig
from arpo_replica.config.policy import RECIPES
from arpo_replica.policy.prompt import (
    STYLES,
    add_box_tokens,
    build_messages,
    first_text,
    kept_images,
    screenshot_message,
)


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
    assert shape(build_messages("x", [], PolicyConfig())) == [("user", ["text", "image"])]


def test_replies_and_screenshots_take_turns():
    messages = build_messages("x", ["one", "two"], PolicyConfig())
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
    messages = build_messages("x", ["one", "two", "three"], PolicyConfig(max_images=2))
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
    messages = build_messages("x", ["r"] * steps, PolicyConfig(max_images=max_images))
    images = sum(types.count("image") for _, types in shape(messages))
    kept = kept_images(steps + 1, PolicyConfig(max_images=max_images))
    assert images == len(kept) == min(steps + 1, max_images)
    assert kept[-1] == steps
    assert messages[-1]["content"][-1] == {"type": "image"}


def test_a_policy_must_see_something():
    with pytest.raises(ValidationError, match="max_images"):
        PolicyConfig(max_images=0)


# --- the prompts of UI-TARS and ARPO ------------------------------------------------------------------


def test_every_prompt_of_the_config_exists():
    names = get_args(PolicyConfig.model_fields["prompt"].annotation)
    assert set(names) == set(STYLES)
    for name in names:
        text = first_text("Do {it}.", "German", name)
        assert "German" in text
        assert text.endswith("## User Instruction\nDo {it}.\n")


def test_osworlds_prompt_is_osworlds():
    found = list(ROOT.glob("envs/evaluator/.venv/lib/python3.*/site-packages/mm_agents/prompts.py"))
    if not found:
        pytest.skip("envs/evaluator, which holds OSWorld's own prompts, is not installed")
    values = {
        node.targets[0].id: node.value
        for node in ast.parse(found[0].read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    text, actions = (
        ast.literal_eval(values[name])
        for name in ("UITARS_USR_PROMPT_THOUGHT", "UITARS_CALL_USR_ACTION_SPACE")
    )
    assert STYLES["uitars_box"].template() == text.replace("{action_space}", actions)


def test_arpos_prompt_differs_from_the_packages_in_points_and_hints_alone():
    ours, theirs = STYLES["arpo"].template().splitlines(), COMPUTER_USE_DOUBAO.splitlines()
    changed = [
        line[1:]
        for line in difflib.unified_diff(theirs, ours, n=0, lineterm="")
        if line[0] == "+" and not line.startswith("+++")
    ]
    box = "<|box_start|>(x1,y1)<|box_end|>"
    assert changed == [
        f"click(start_box='{box}')",
        f"left_double(start_box='{box}')",
        f"right_single(start_box='{box}')",
        f"drag(start_box='{box}', end_box='<|box_start|>(x3,y3)<|box_end|>')",
        "hotkey(key='')",
        f"scroll(start_box='{box}', direction='down or up or right or left')",
        "- Use {language} in `Thought` and `Action` part.",
    ]


@pytest.mark.parametrize("prompt", ["arpo", "uitars_box"])
def test_box_prompts_have_a_system_line_and_the_screenshot_in_its_own_turn(prompt):
    policy = PolicyConfig(prompt=prompt)
    messages = build_messages("x", ["Action: click(start_box='(1,2)')"], policy)
    assert shape(messages) == [
        ("system", ["text"]),
        ("user", ["text"]),
        ("user", ["image"]),
        ("assistant", ["text"]),
        ("user", ["image"]),
    ]
    assert messages[0]["content"][0]["text"].endswith(" a helpful assistant.")
    said = "Action: click(start_box='<|box_start|>(1,2)<|box_end|>')"
    assert messages[3]["content"][0]["text"] == said
    assert add_box_tokens(said) == said
    assert build_messages("x", [said], policy) == messages
    drag = "drag(start_box='(1, 2)', end_box='(3,4)')"
    assert add_box_tokens(drag) == (
        "drag(start_box='<|box_start|>(1,2)<|box_end|>', end_box='<|box_start|>(3,4)<|box_end|>')"
    )


def test_old_turns_go_as_a_whole():
    messages = build_messages("x", ["one", "two", "three"], PolicyConfig(max_turns=1))
    assert shape(messages) == [("user", ["text", "image"]), ("assistant", ["text"]), ("user", ["image"])]
    assert messages[1]["content"][0]["text"] == "three"
    assert list(kept_images(4, PolicyConfig(max_turns=1))) == [2, 3]
    many = build_messages("x", ["one"], PolicyConfig(max_turns=5))
    assert many == build_messages("x", ["one"], PolicyConfig())


@pytest.mark.parametrize("steps", range(5))
@pytest.mark.parametrize("max_images", [1, 2, 9])
@pytest.mark.parametrize("max_turns", [1, 2, 9])
@pytest.mark.parametrize("prompt", list(STYLES))
def test_images_and_placeholders_agree_for_every_history(steps, max_images, max_turns, prompt):
    policy = PolicyConfig(max_images=max_images, max_turns=max_turns, prompt=prompt)
    messages = build_messages("x", ["r"] * steps, policy)
    images = sum(types.count("image") for _, types in shape(messages))
    assert images == len(kept_images(steps + 1, policy))
    assert sum(role == "assistant" for role, _ in shape(messages)) == min(steps, max_turns)
    assert messages[-1]["content"][-1] == {"type": "image"}


# --- presets --------------------------------------------------------------------------------------------


def test_a_recipe_fills_what_a_config_leaves_out():
    assert set(get_args(get_args(PolicyConfig.model_fields["recipe"].annotation)[0])) == set(RECIPES)
    for name, values in RECIPES.items():
        policy = PolicyConfig(recipe=name)
        assert {key: getattr(policy, key) for key in values} == values
    assert PolicyConfig(recipe="uitars_15").coordinates == "absolute"
    dpo = PolicyConfig.model_validate({"recipe": "uitars_dpo", "max_images": 3, "language": "Chinese"})
    assert (dpo.coordinates, dpo.max_images, dpo.language) == ("relative_1000", 3, "Chinese")
    assert PolicyConfig.model_validate(dpo.model_dump()) == dpo
    for wrong in ("uitars", 3, ["uitars_15"]):
        with pytest.raises(ValidationError, match="recipe"):
            PolicyConfig.model_validate({"recipe": wrong})


def test_the_page_lists_the_values_of_every_recipe():
    page = (ROOT / "docs" / "policy.md").read_text()
    for name, values in RECIPES.items():
        for key, value in values.items():
            assert f"| `{key}` |" in page
            row = next(line for line in page.splitlines() if line.startswith(f"| `{key}` |"))
            column = 2 + list(RECIPES).index(name)
            assert row.split("|")[column].strip() == f"`{value}`", (name, key)
