"""Typed actions as pyautogui source: a policy's text is data, never code."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arpo_replica.actions.pyautogui_source import PREFIX, source_of
from arpo_replica.actions.types import (
    Click,
    DoubleClick,
    Drag,
    Finished,
    Hotkey,
    RightClick,
    Scroll,
    TypeText,
    Wait,
)

CALLS = {
    *("pyautogui.click", "pyautogui.doubleClick", "pyautogui.rightClick", "pyautogui.moveTo"),
    *(
        "pyautogui.mouseDown",
        "pyautogui.mouseUp",
        "pyautogui.scroll",
        "pyautogui.hscroll",
        "pyautogui.hotkey",
        "pyautogui.write",
    ),
    *("pyperclip.copy", "pyperclip.paste", "time.sleep", "os.open", "os.dup2", "range"),
}


def typed(source):
    """What the source types, in order, and that it calls nothing else than what it may."""
    text = ""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) in CALLS
    for statement in tree.body:
        for node in ast.walk(statement):
            match node:
                case ast.Call(func=ast.Attribute(attr="write" | "copy"), args=[ast.Constant(value=part)]):
                    text += part
                case ast.ListComp(elt=ast.Call(args=[ast.Constant("shift"), ast.Constant(",")])):
                    text += "<" * ast.literal_eval(node.generators[0].iter.args[0])
    return text


@given(st.text())
def test_any_text_is_typed_as_it_is_and_is_no_code(text):
    wanted = text.replace("\r\n", "\n").replace("\r", "\n")
    wanted = "".join(
        c for c in wanted if c in "\n\t" or not (c < " " or "\x7f" <= c < "\xa0" or "\ud800" <= c <= "\udfff")
    )
    source = source_of(TypeText(text))
    if not wanted:
        assert source is None
        return
    assert source.isascii()
    assert source.isprintable()
    assert typed(source) == wanted


def test_less_than_is_no_greater_than_and_umlauts_are_pasted():
    source = source_of(TypeText("a<<b é>"))
    assert "pyautogui.write('a'); [pyautogui.hotkey('shift', ',') for _ in range(2)]" in source
    assert "pyperclip.copy('\\xe9')" in source
    assert "pyautogui.hotkey('ctrl', 'v')" in source
    assert source.endswith("pyautogui.write('>')")


@given(st.lists(st.text(), max_size=4))
def test_hotkeys_are_names_of_a_closed_list(keys):
    source = source_of(Hotkey(tuple(keys)))
    if source is not None:
        typed(source)
        assert source.isascii()


@pytest.mark.parametrize(
    ("action", "code"),
    [
        (Click(1, 2), "pyautogui.click(1, 2)"),
        (DoubleClick(1, 2), "pyautogui.doubleClick(1, 2)"),
        (RightClick(1, 2), "pyautogui.rightClick(1, 2)"),
        (
            Drag(1, 2, 3, 4),
            "pyautogui.moveTo(1, 2); pyautogui.mouseDown(); pyautogui.moveTo(3, 4, duration=1.0); "
            "pyautogui.moveTo(2, 4); pyautogui.moveTo(3, 4); pyautogui.mouseUp()",
        ),
        (Scroll("down", 5, 6), "pyautogui.moveTo(5, 6); pyautogui.scroll(-5)"),
        (Scroll("up"), "pyautogui.scroll(5)"),
        (Scroll("right"), "pyautogui.hscroll(5)"),
        (Scroll("left"), "pyautogui.hscroll(-5)"),
        (Hotkey(("ctrl", "pageup")), "pyautogui.hotkey('ctrl', 'pageup')"),
        (Hotkey(("cmd", "<")), "pyautogui.hotkey('winleft', 'shift', ',')"),
    ],
)
def test_actions(action, code):
    assert source_of(action) == PREFIX + code


def test_what_needs_no_input_and_what_never_gets_here():
    assert source_of(Wait()) is None
    assert source_of(Hotkey(("nosuchkey",))) is None
    with pytest.raises(ValueError, match="finished"):
        source_of(Finished())
