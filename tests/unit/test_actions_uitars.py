"""Both kinds of UI-TARS against the package ``ui-tars``: UI-TARS-1.5 answers in pixels of the resized image
(``qwen25vl``), UI-TARS 2B-SFT and 7B-DPO in thousandths (``qwen2vl``, factor 1000)."""

from __future__ import annotations

import ast
import contextlib
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ui_tars.action_parser import parse_action_to_structure_output, parsing_response_to_pyautogui_code

from arpo_replica.actions.parse import UITarsParser
from arpo_replica.actions.types import (
    Action,
    Click,
    DoubleClick,
    Drag,
    Fail,
    Finished,
    Hotkey,
    RightClick,
    Scroll,
    TypeText,
    Wait,
)
from arpo_replica.config.models import PolicyConfig
from arpo_replica.policy.prompt import add_box_tokens

SCREEN = (1920, 1080)
KINDS = {"uitars_15": "qwen25vl", "uitars_dpo": "qwen2vl"}
PARSERS = {name: UITarsParser.of(PolicyConfig(recipe=name), SCREEN) for name in KINDS}
NAMES = {"click": Click, "left_double": DoubleClick, "right_single": RightClick}


def theirs(reply: str, recipe: str) -> dict:
    """What the package reads; boxes as fractions of the screen."""
    with contextlib.redirect_stdout(io.StringIO()):
        parsed = parse_action_to_structure_output(
            # Their parser knows no box tokens: servers strip them before it sees a reply.
            reply.replace("<|box_start|>", "").replace("<|box_end|>", ""),
            factor=1000,
            origin_resized_height=SCREEN[1],
            origin_resized_width=SCREEN[0],
            model_type=KINDS[recipe],
            max_pixels=PolicyConfig(recipe=recipe).max_pixels,
            min_pixels=PolicyConfig(recipe=recipe).min_pixels,
        )
    assert len(parsed) == 1
    return parsed[0]


def same_point(x: int | None, y: int | None, box: str) -> bool:
    """Equal to the pixel; theirs may lie just outside of the screen, ours is then its edge."""
    x1, y1, x2, y2 = ast.literal_eval(box)
    wanted = (x1 + x2) / 2 * SCREEN[0], (y1 + y2) / 2 * SCREEN[1]
    pairs = zip((x, y), wanted, SCREEN, strict=True)
    return all(abs(ours - min(value, size - 1)) <= 0.5 + 1e-6 for ours, value, size in pairs)


def agree(reply: str, recipe: str) -> Action:
    """Our action, once it is found to be theirs."""
    ours, found = PARSERS[recipe].parse(reply), theirs(reply, recipe)
    name, inputs = found["action_type"], found["action_inputs"]
    match ours:
        case Click() | DoubleClick() | RightClick():
            assert NAMES[name] is type(ours)
            assert same_point(ours.x, ours.y, inputs["start_box"])
        case Drag():
            assert name == "drag"
            assert same_point(ours.x, ours.y, inputs["start_box"])
            assert same_point(ours.to_x, ours.to_y, inputs["end_box"])
        case Scroll():
            assert (name, inputs["direction"]) == ("scroll", ours.direction)
            assert same_point(ours.x, ours.y, inputs["start_box"])
        case Hotkey():
            assert name == "hotkey"
        case TypeText():
            assert (name, inputs.get("content", "").replace("\\n", "\n")) == ("type", ours.text)
        case _:
            expected = {Wait: "wait", Finished: "finished", Fail: "call_user"}
            assert name == expected[type(ours)]
    return ours


def box(x: int, y: int, form: str) -> str:
    return {
        "tokens": f"<|box_start|>({x},{y})<|box_end|>",
        "plain": f"({x},{y})",
        "point": f"<point>{x} {y}</point>",
    }[form]


# The image of UI-TARS-1.5 is 1932 x 1092 at full HD.
@pytest.mark.parametrize("form", ["tokens", "plain", "point"])
@pytest.mark.parametrize(
    ("recipe", "x", "y", "pixel"),
    [
        ("uitars_15", 966, 546, (960, 540)),
        ("uitars_15", 1931, 1091, (1919, 1079)),
        ("uitars_15", 0, 0, (0, 0)),
        ("uitars_15", 197, 525, (196, 519)),
        ("uitars_dpo", 500, 500, (960, 540)),
        ("uitars_dpo", 999, 999, (1918, 1079)),
        ("uitars_dpo", 1000, 1000, (1919, 1079)),
        ("uitars_dpo", 235, 512, (451, 553)),
    ],
)
def test_known_points(recipe, x, y, pixel, form):
    key = "point" if form == "point" else "start_box"
    for name, kind in NAMES.items():
        action = agree(f"Thought: I act.\nAction: {name}({key}='{box(x, y, form)}')", recipe)
        assert action == kind(*pixel)


@pytest.mark.parametrize("recipe", KINDS)
@pytest.mark.parametrize(
    ("call", "action"),
    [
        ("hotkey(key='ctrl c')", Hotkey(("ctrl", "c"))),
        ("hotkey(key='arrowdown')", Hotkey(("down",))),
        ("hotkey(key='alt space')", Hotkey(("alt", "space"))),
        (r"type(content='hello\n')", TypeText("hello\n")),
        ("type(content='a < b > c')", TypeText("a < b > c")),
        ("type(content='naïve 中文')", TypeText("naïve 中文")),
        ("wait()", Wait()),
        ("finished()", Finished()),
        ("finished(content='all done')", Finished("all done")),
        ("call_user()", Fail("call_user")),
    ],
)
def test_actions_without_a_point(recipe, call, action):
    assert agree(f"Thought: I act.\nAction: {call}", recipe) == action


@pytest.mark.parametrize(
    ("content", "typed"), [("hello\n", "hello\n"), (r"it\'s", "it's"), (r"C:\\new\n", "C:\\new\n")]
)
def test_where_ours_types_what_is_meant_and_theirs_fails_or_keeps_backslashes(content, typed):
    assert PARSERS["uitars_15"].parse(f"Action: type(content='{content}')") == TypeText(typed)


@pytest.mark.parametrize("recipe", KINDS)
def test_a_final_newline_is_the_enter_key_as_in_their_code(recipe):
    reply = r"Thought: I act." "\n" r"Action: type(content='ls -l\n')"
    # Theirs types the newline and presses the key as well; ours is one press of Enter.
    code = parsing_response_to_pyautogui_code(theirs(reply, recipe), *SCREEN[::-1], input_swap=False)
    assert "press('enter')" in code
    assert PARSERS[recipe].parse(reply) == TypeText("ls -l\n")


@st.composite
def replies(draw) -> tuple[str, str]:
    recipe = draw(st.sampled_from(sorted(KINDS)))
    width, height = PARSERS[recipe].frame.extent
    form = draw(st.sampled_from(["tokens", "plain", "point"]))

    def point() -> str:
        return box(draw(st.integers(0, width)), draw(st.integers(0, height)), form)

    first, last = ("start_point", "end_point") if form == "point" else ("start_box", "end_box")
    one = "point" if form == "point" else "start_box"
    name = draw(st.sampled_from([*NAMES, "drag", "scroll"]))
    if name == "drag":
        call = f"drag({first}='{point()}', {last}='{point()}')"
    elif name == "scroll":
        direction = draw(st.sampled_from(["up", "down", "left", "right"]))
        call = f"scroll({one}='{point()}', direction='{direction}')"
    else:
        call = f"{name}({one}='{point()}')"
    return f"Thought: I look at Action and act.\nAction: {call}", recipe


@settings(max_examples=400, deadline=None)
@given(replies())
def test_both_parsers_agree_on_every_point(case):
    reply, recipe = case
    action = agree(reply, recipe)
    assert PARSERS[recipe].parse(add_box_tokens(reply)) == action
