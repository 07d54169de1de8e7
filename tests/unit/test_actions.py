"""UI-TARS text -> typed actions: every format, every refusal, and agreement with UI-TARS's own parser."""

from __future__ import annotations

import ast
import contextlib
import io
import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ui_tars.action_parser import parse_action_to_structure_output

from arpo_replica.actions.compared import ours, render_actions, rows
from arpo_replica.actions.coordinates import Frame
from arpo_replica.actions.keys import ALIASES, NAMED_KEYS, key_name
from arpo_replica.actions.parse import (
    MAX_CALLS,
    MAX_REPLY,
    MAX_TEXT,
    UITarsParser,
    format_action,
    format_reply,
)
from arpo_replica.actions.types import (
    ACTIONS,
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
    from_json,
)
from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import FormatError

SCREEN, IMAGE = (1920, 1080), (1932, 1092)
PARSER = UITarsParser(Frame("absolute", SCREEN, IMAGE))
SAME = UITarsParser(Frame("absolute", (168, 224), (168, 224)))
ALL = UITarsParser(Frame("absolute", (168, 224), (168, 224)), "all")


def parse(call: str, parser: UITarsParser = SAME) -> Action:
    return parser.parse(f"Thought: I act.\nAction: {call}")


@pytest.mark.parametrize(
    ("call", "action"),
    [
        ("click(point='<point>10 20</point>')", Click(10, 20)),
        ('click(point="<point>10 20</point>")', Click(10, 20)),
        ("click(start_box='<|box_start|>(10,20)<|box_end|>')", Click(10, 20)),
        ("click(start_box='(10,20)')", Click(10, 20)),
        ("click(start_box='(10, 20)')", Click(10, 20)),
        ("click(start_box='[10,20,30,40]')", Click(20, 30)),
        ("click(start_box='<bbox>10 20 30 40</bbox>')", Click(20, 30)),
        ("click(point='10 20')", Click(10, 20)),
        ("left_single(start_box='(10,20)')", Click(10, 20)),
        ("left_double(point='<point>1 2</point>')", DoubleClick(1, 2)),
        ("right_single(point='<point>1 2</point>')", RightClick(1, 2)),
        ("drag(start_point='<point>1 2</point>', end_point='<point>3 4</point>')", Drag(1, 2, 3, 4)),
        ("drag(start_box='(1,2)', end_box='(3,4)')", Drag(1, 2, 3, 4)),
        ("drag(end_box='(3,4)', start_box='(1,2)')", Drag(1, 2, 3, 4)),
        ("select(start_box='(1,2)', end_box='(3,4)')", Drag(1, 2, 3, 4)),
        ("hotkey(key='ctrl c')", Hotkey(("ctrl", "c"))),
        ("hotkey(key='Ctrl+Shift+T')", Hotkey(("ctrl", "shift", "t"))),
        ("hotkey(key='ctrl +')", Hotkey(("ctrl", "+"))),
        ("hotkey(key='arrowleft')", Hotkey(("left",))),
        ("hotkey(key='alt f4')", Hotkey(("alt", "f4"))),
        ("press(key='return')", Hotkey(("enter",))),
        ("type(content='hello')", TypeText("hello")),
        ("type(content='')", TypeText("")),
        ("scroll(point='<point>5 6</point>', direction='down')", Scroll("down", 5, 6)),
        ("scroll(direction='LEFT')", Scroll("left")),
        ("wait()", Wait()),
        ("wait( )", Wait()),
        ("finished()", Finished("")),
        ("finished(content='done')", Finished("done")),
        ("call_user()", Fail("call_user")),
        ("error_env()", Fail("error_env")),
        ("  click ( point = '<point>10 20</point>' )  \n", Click(10, 20)),
        ("click(point='<point>10 20</point>',)", Click(10, 20)),
        ("click()", None),
        ("click(10, 20)", None),
        ("click(point=(10,20))", None),
        ("click(point='<point>10</point>')", None),
        ("click(point='<point>10 20 30</point>')", None),
        ("click(point='<point>1e3 20</point>')", None),
        ("click(point='<point>nan inf</point>')", None),
        ("click(point='<point>9999999 2</point>')", None),
        ("click(point='<point>__import__ 2</point>')", None),
        ("click(point='<point>1 2</point>', button='left')", None),
        ("click(point='<point>1 2</point>', point='<point>1 2</point>')", None),
        ("click(point='<point>1 2</point>', start_box='(1,2)')", None),
        ("drag(start_box='(1,2)')", None),
        ("hotkey(key='')", None),
        ("hotkey(key='ctrl hyper')", None),
        ("hotkey(key='a b c d e')", None),
        ("press(key='ctrl c')", None),
        ("scroll(direction='sideways')", None),
        ("scroll(point='<point>1 2</point>')", None),
        ("type('hello')", None),
        ("type(content=hello)", None),
        ("type(content='hello)", None),
        ("type(content=f'{1}')", None),
        ("type(content='a' + 'b')", TypeText("a' + 'b")),  # text, never evaluated; so reads ui_tars too
        ("wait(seconds='5')", Wait()),
        ("wait(5)", Wait()),
        ("wait(time=5, unit='s')", Wait()),
        ("wait(5s)", None),
        ("wait(__import__('os'))", None),
        ("finished(answer='42')", Finished()),
        ("finished('42')", Finished()),
        ("finished(content='it's 5 o'clock (or so)')", Finished("it's 5 o'clock (or so)")),
        ("call_user(reason='help')", Fail("call_user")),
        ("scroll(point='<point>5 6</point>', direction='down', steps='3')", Scroll("down", 5, 6)),
        ("scroll(start_box='', direction='scroll down', amount=3)", Scroll("down")),
        ("scroll('down')", None),
        ("wait() #Sleep for 5s and take a screenshot to check for any changes.", Wait()),
        ("click(point='<point>1 2</point>') # the 'OK' (button)\n# of the dialog\n", Click(1, 2)),
        ("# the button\nclick(point='<point>1 2</point>')", None),
        ("wait()<|im_end|>", Wait()),
        ("wait() # soon\n<|im_end|>\n<|endoftext|>", Wait()),
        ("wait()" + 60 * "<|endoftext|>", Wait()),
        ("click(point='<|box_start|>(10,20),(30,40)<|box_end|>')", Click(20, 30)),
        ("click(start_box='<|box_start|>((10,20),(30,40))<|box_end|>')", Click(20, 30)),
        ("click(start_box='((10,20))')", Click(10, 20)),
        ("click(start_box='(10,20')", Click(10, 20)),
        ("click(start_box='(10.00000001,20.)')", Click(10, 20)),
        ("click(start_box='(10)')", None),
        ("click(start_box='')", None),
        ("click(start_box='10-20')", None),
        ("hover(point='<point>1 2</point>')", None),
        ("keydown(key='ctrl')", None),
        ("open_computer()", None),
        ("os.system('ls')", None),
        ("__import__('os').system('ls')", None),
        ("click", None),
        ("", None),
        ("wait() and then", None),
        ("wait() wait()", None),
    ],
)
def test_calls(call: str, action: Action | None):
    if action is None:
        with pytest.raises(FormatError):
            parse(call)
    else:
        assert parse(call) == action


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (r"line\n", "line\n"),
        (r"a\tb", "a\tb"),
        (r"it\'s", "it's"),
        ("it's", "it's"),
        (r"say \"hi\"", 'say "hi"'),
        ('say "hi"', 'say "hi"'),
        (r"C:\\new", r"C:\new"),
        (r"100\%", r"100\%"),
        (r"\u00e9\x41", "éA"),
        (r"\ud83d\ude00", "😀"),
        ("über 中文", "über 中文"),
        ("two\nlines", "two\nlines"),
        ("two\r\nlines", "two\nlines"),
        ("f(x), g=y", "f(x), g=y"),
        ("Action: wait()", "Action: wait()"),
        (r"<>?", "<>?"),
    ],
)
def test_text_is_read_with_pythons_escapes(written: str, text: str):
    assert parse(f"type(content='{written}')") == TypeText(text)


@pytest.mark.parametrize("written", [r"\x07", "\x1b[0m", r"\ud800", "\x00", r"\U00110000"])
def test_text_that_no_keyboard_has_is_refused(written: str):
    with pytest.raises(FormatError):
        parse(f"type(content='{written}')")


def test_only_the_text_after_the_last_marker_counts():
    reply = "Thought: Action: click(point='<point>1 2</point>') was wrong.\nAction: wait()"
    assert SAME.parse(reply) == Wait()
    assert SAME.parse("Action: wait()\nAction: finished()") == Finished()
    assert SAME.parse("Thought: so. Action: wait()") == Wait()


@pytest.mark.parametrize("reply", ["", "wait()", "Thought: nothing", "action: wait()"])
def test_a_reply_without_a_marker_is_refused(reply: str):
    with pytest.raises(FormatError, match="Action:"):
        SAME.parse(reply)


# --- where a text ends --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "print('hello')",
        "=IF(A1='x','yes','no')",
        "SELECT * FROM t WHERE name IN ('a','b')",
        "echo $(date +'%Y')",
        "echo $(date +'%Y') # the year",
        "font(size='12', color='red')",
        "git commit -m 'daily update'",
        "it's 5 o'clock (or so)",
        "f(content='1', key='2')",
        "for x in ('a', 'b'):\n    print('x')\n    wait('x')\nprint('end')",
        "a'),",
        "')",
        "'",
    ],
)
@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_text_ends_at_the_last_quote_that_leaves_a_valid_rest(text: str, quote: str):
    text = text.replace("'", quote)
    for tail in ("", "  # typed", "\n\n", "<|im_end|>", "\nhotkey(key='enter')", "\n# now\nwait()"):
        assert parse(f"type(content={quote}{text}{quote}){tail}") == TypeText(text)


QUOTED = st.text(st.sampled_from("ab'\"(),=: $x"), max_size=40)


@settings(max_examples=400, deadline=None)
@given(QUOTED, st.sampled_from("'\""), QUOTED, st.sampled_from("'\""))
def test_any_text_with_quotes_is_typed_as_it_is(text: str, quote: str, other: str, second: str):
    calls = [f"type(content={quote}{text}{quote})", f"type(content={second}{other}{second})"]
    assert ALL.actions("Action: " + calls[0]) == [TypeText(text)]
    assert ALL.actions("Action: " + "\n\n".join(calls)) == [TypeText(text), TypeText(other)]


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("type(content='a') # types 'a' (once)", "a"),
        ("type(content='a') # (the 'a')", "a"),
        ("type(content='f('a') # and (b')", "f('a') # and (b"),
        ("type(content='a')\n# types ('a')", "a"),
    ],
)
def test_a_comment_is_no_part_of_a_text_without_an_open_parenthesis(reply: str, text: str):
    assert parse(reply) == TypeText(text)


# --- several actions ------------------------------------------------------------------------------------


def test_of_several_actions_the_first_or_all_are_taken_and_all_must_be_valid():
    two = "Action: click(point='<point>1 2</point>')\n\ntype(content='x')"
    assert SAME.parse(two) == Click(1, 2)
    assert SAME.actions(two) == [Click(1, 2)]
    assert ALL.actions(two) == [Click(1, 2), TypeText("x")]
    for bad in ("nonsense()", "hover(point='<point>1 2</point>')", "hotkey(key='nonsense')"):
        for first in ("click(point='<point>1 2</point>')", "type(content='a')"):
            with pytest.raises(FormatError):
                parse(f"{first}\n\n{bad}")
    with pytest.raises(FormatError, match="more than"):
        parse("\n".join(["wait()"] * (MAX_CALLS + 1)))


@pytest.mark.parametrize(
    ("control", "action"),
    [("finished()", Finished()), ("wait()", Wait()), ("call_user()", Fail("call_user"))],
)
def test_a_control_action_stands_for_its_whole_reply(control: str, action: Action):
    click = "click(point='<point>1 2</point>')"
    assert ALL.actions(f"Action: {click}\n{control}\n{click}") == [action]
    assert SAME.actions(f"Action: {click}\n{control}") == [Click(1, 2)]


def test_points_outside_the_screen_go_to_its_edge():
    assert parse("click(point='<point>1932 1092</point>')", PARSER) == Click(1919, 1079)
    assert parse("click(start_box='(-5,5000)')", PARSER) == Click(0, 1079)


def test_long_replies_and_texts_are_refused():
    with pytest.raises(FormatError):
        SAME.parse("Action: wait()" + " " * MAX_REPLY)
    with pytest.raises(FormatError):
        parse(f"type(content='{'a' * (MAX_TEXT + 1)}')")
    assert parse(f"type(content='{'a' * MAX_TEXT}')") == TypeText("a" * MAX_TEXT)


@pytest.mark.parametrize(
    "hostile",
    [
        "click(" * 10_000,
        "type(content=" + "'" * 50_000,
        "type(content='" + "\\" * 50_000,
        "type(content='" + "\\u12" * 20_000 + "')",
        "type(content='" + "', a" * 10_000,
        "type(content='" + "')#" * 30_000,
        "type(content='" + "(')#" * 20_000 + "')",
        "type(content='" + "')\n" * 30_000,
        "type(content='" + "# ')\n" * 19_000 + "')",
        "type(content='\n" * 3_000 + "')#" * 20_000,
        "type(content='a')\n" * 5_000 + "x",
        "type(content='a'" + " ," * 45_000 + ")",
        "click(a='',b=\"\n" * 6_000,
        "hotkey(key='' \n" * 7_000,
        "hotkey(key='" + "\\'" * 45_000 + "')",
        "click(point='(10,20" + "\\x" * 45_000 + "')",
        "hotkey(key='" + "a " * 40_000 + "')",
        "click(point='" + "<point>1 2" * 5_000 + "')",
        "click(point='" + "1 " * 20_000 + "')",
        "click(point='" + "(" * 90_000 + "')",
        "wait()" + "\n" * 90_000,
        "wait()\n" * 14_000,
        "wait()" + "\n# " * 30_000,
        "wait()" + "<|im_end|>" * 9_000,
        "type(content='" + "' , " * 20_000 + "x')",
        "(" * 50_000 + ")" * 40_000,
        "click(point='" + " " * 90_000 + "')",
        "click(point='<point>1 2</point>" + " " * 90_000 + "x')",
        "drag(start_point='1" + " " * 40_000 + "', end_point='" + "\t" * 40_000 + "')",
        "scroll(direction='down', point='<|box_start|>" + "\n" * 90_000 + "')",
    ],
    ids=range(30),
)
def test_hostile_replies_cost_little_time(hostile: str):
    """Ten times the 4 to 12 ms that the worst take; one step of a quadratic rule would take seconds."""
    seconds = []
    for _ in range(3):  # the best of three: a collection of garbage may fall into one
        began = time.process_time()
        with contextlib.suppress(FormatError):
            ALL.actions(f"Action: {hostile}")
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.12


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_an_action_or_a_format_error(text: str):
    for reply in (text, f"Action: {text}", f"Action: type(content='{text}')"):
        try:
            action = SAME.parse(reply)
        except FormatError:
            continue
        assert type(action) in ACTIONS.values()
        assert from_json(action.to_json()) == action


FRAGMENTS = st.sampled_from(
    [
        *("click", "type", "drag", "hotkey", "wait", "scroll", "point", "content", "key", "direction"),
        *("(", ")", "=", ",", "'", '"', "\\", "\n", "\n\n", " ", "<point>", "</point>", "1", "20", "Action:"),
        *("<|box_start|>", "<|box_end|>", "down", "ctrl", "\\n", "\\u12", "\\x4", "\u2028", "\ud800", "\0"),
    ]
)


@settings(max_examples=600, deadline=None)
@given(st.lists(FRAGMENTS, max_size=40).map("".join))
def test_any_mixture_of_fragments_is_an_action_or_a_format_error(text: str):
    try:
        action = SAME.parse("Action: " + text)
    except FormatError:
        return
    action.to_json()
    if isinstance(action, TypeText):
        action.text.encode()


# --- round trip ------------------------------------------------------------------------------------

PIXELS = st.tuples(st.integers(0, SCREEN[0] - 1), st.integers(0, SCREEN[1] - 1))
TYPED = st.text(st.characters(exclude_categories=["Cc", "Cs"], include_characters="\n\t"), max_size=60)
KEYS = st.lists(st.sampled_from(sorted(NAMED_KEYS)), min_size=1, max_size=4).map(tuple)
ANY_ACTION = st.one_of(
    PIXELS.map(lambda p: Click(*p)),
    PIXELS.map(lambda p: DoubleClick(*p)),
    PIXELS.map(lambda p: RightClick(*p)),
    st.tuples(PIXELS, PIXELS).map(lambda p: Drag(*p[0], *p[1])),
    st.tuples(st.sampled_from(["up", "down", "left", "right"]), PIXELS).map(lambda s: Scroll(s[0], *s[1])),
    st.sampled_from([Scroll("up"), Scroll("down"), Wait()]),
    KEYS.map(Hotkey),
    TYPED.map(TypeText),
    TYPED.map(Finished),
    TYPED.filter(bool).map(Fail),
)


@settings(max_examples=500, deadline=None)
@given(ANY_ACTION)
def test_what_is_written_is_read_back(action: Action):
    assert PARSER.parse(format_reply("I act.", action, PARSER.frame)) == action


# --- agreement with the package ui-tars ---------------------------------------------------------------

NAMES = {"click": Click, "left_double": DoubleClick, "right_single": RightClick, "drag": Drag}
ASCII = st.text(
    string.ascii_letters + string.digits + " .,;:!?<>/@#$%^&*_+-=|~`[]{}", min_size=1, max_size=40
).filter(lambda text: text == text.strip() and "point=" not in text and "Action" not in text)
MODEL_POINT = st.tuples(st.integers(0, IMAGE[0] - 1), st.integers(0, IMAGE[1] - 1))


@st.composite
def model_calls(draw) -> str:
    """A valid call as a model writes it, in either format, points in pixels of the resized image."""
    doubao = draw(st.booleans())

    def point(key: str) -> str:
        x, y = draw(MODEL_POINT)
        if doubao:
            return f"{key}='<point>{x} {y}</point>'"
        key = {"point": "start_box", "start_point": "start_box", "end_point": "end_box"}[key]
        return f"{key}='({x},{y})'"

    name = draw(
        st.sampled_from(["click", "left_double", "right_single", "drag", "scroll", "hotkey", "type", "wait"])
    )
    if name == "drag":
        return f"drag({point('start_point')}, {point('end_point')})"
    if name == "scroll":
        return f"scroll({point('point')}, direction='{draw(st.sampled_from(['up', 'down']))}')"
    if name == "hotkey":
        return f"hotkey(key='{draw(st.sampled_from(['ctrl c', 'enter', 'alt f4', 'ctrl shift t']))}')"
    if name == "type":
        return f"type(content='{draw(ASCII)}{draw(st.sampled_from(['', chr(92) + 'n']))}')"
    return "wait()" if name == "wait" else f"{name}({point('point')})"


def theirs(reply: str) -> tuple[str, dict[str, str]]:
    """Name and arguments that ``ui_tars`` reads; boxes as fractions of the image."""
    with contextlib.redirect_stdout(io.StringIO()):
        parsed = parse_action_to_structure_output(
            reply, factor=1000, origin_resized_height=SCREEN[1], origin_resized_width=SCREEN[0]
        )
    assert len(parsed) == 1
    return parsed[0]["action_type"], parsed[0]["action_inputs"]


def centre(box: str) -> tuple[float, float]:
    """Screen pixels of a box of ``ui_tars``, as its pyautogui code has them."""
    x1, y1, x2, y2 = ast.literal_eval(box)
    return (x1 + x2) / 2 * SCREEN[0], (y1 + y2) / 2 * SCREEN[1]


def close(action: tuple[int | None, int | None], box: str) -> bool:
    x, y = centre(box)
    return abs(action[0] - x) <= 0.5 + 1e-6 and abs(action[1] - y) <= 0.5 + 1e-6


@settings(max_examples=500, deadline=None)
@given(model_calls())
def test_agreement_with_the_package_ui_tars(call: str):
    reply = f"Thought: I act.\nAction: {call}"
    ours = PARSER.parse(reply)
    name, arguments = theirs(reply)
    if isinstance(ours, Click | DoubleClick | RightClick):
        assert NAMES[name] is type(ours)
        assert close((ours.x, ours.y), arguments["start_box"])
    elif isinstance(ours, Drag):
        assert name == "drag"
        assert close((ours.x, ours.y), arguments["start_box"])
        assert close((ours.to_x, ours.to_y), arguments["end_box"])
    elif isinstance(ours, Scroll):
        assert (name, arguments["direction"]) == ("scroll", ours.direction)
        assert close((ours.x, ours.y), arguments["start_box"])
    elif isinstance(ours, Hotkey):
        assert (name, tuple(arguments["key"].split())) == ("hotkey", ours.keys)
    elif isinstance(ours, TypeText):
        # Theirs keeps the escape \n as two characters where the model wrote it; ours is the Enter key.
        assert (name, arguments["content"].replace("\\n", "\n")) == ("type", ours.text)
    else:
        assert (name, ours) == ("wait", Wait())


# --- keys and JSON -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "keys"),
    [
        ("ctrl + c", "ctrl c"),
        ("Ctrl + Shift + T", "ctrl shift t"),
        ("ctrl++", "ctrl +"),
        ("ctrl + +", "ctrl +"),
        ("ctrl -", "ctrl -"),
        ("ctrl--", "ctrl -"),
        ("ctrl-c", "ctrl c"),
        ("ctrl,c", "ctrl c"),
        ("ctrl-alt-del", "ctrl alt delete"),
        ("ctrl+page_down", "ctrl pagedown"),
        ("page down", "pagedown"),
        ("Page-Down", "pagedown"),
        ("caps_lock", "capslock"),
        ("print screen", "printscreen"),
        ("arrow_down", "down"),
        ("left arrow", "left"),
        ("shift left", "shift left"),
        ("alt+left", "alt left"),
        ("<enter>", "enter"),
        ("<ctrl><shift>t", "ctrl shift t"),
        ("Super_L", "super"),
        ("super l", "super l"),
        ("spacebar", "space"),
        ("apps", "menu"),
        ("prntscrn", "printscreen"),
        ("num0 num9", "0 9"),
        ("add subtract multiply divide", "+ - * /"),
        ("decimal", "."),
        ("<", "<"),
        ("'", "'"),
    ],
)
def test_combinations_of_keys(written: str, keys: str):
    assert parse(f"hotkey(key='{written}')") == Hotkey(tuple(keys.split()))


@pytest.mark.parametrize(
    "written", ["", " ", "ctrl+", "f13", "f24", "hyper", "ctrlc", "é", "ctrl + hyper", "a" * 200]
)
def test_keys_that_no_desktop_can_press_are_refused(written: str):
    with pytest.raises(FormatError):
        parse(f"hotkey(key='{written}')")


def test_every_alias_is_a_key():
    for name, key in ALIASES.items():
        assert key_name(name) == key_name(key) == key
    assert key_name("A") == "a"
    assert key_name(" ") is None
    assert key_name("é") is None


@settings(max_examples=200, deadline=None)
@given(ANY_ACTION)
def test_json_round_trip(action: Action):
    assert from_json(action.to_json()) == action


def test_formatting_uses_the_policys_coordinates():
    frame = Frame("relative_1000", SCREEN, IMAGE)
    assert format_action(Click(960, 540), frame) == "click(point='<point>500 500</point>')"
    assert format_action(Click(960, 540), PARSER.frame) == "click(point='<point>966 546</point>')"


# --- the page docs/actions.md ----------------------------------------------------------------------------


def test_the_page_is_what_the_parser_does():
    assert (ROOT / "docs" / "actions.md").read_text() == render_actions(), "run: arpo docs"


def test_every_difference_from_upstream_has_a_reason_and_nothing_else_has():
    """Where both of theirs end, however they do it, ours may end without a word."""
    for row in rows():
        found = ours(row.reply)
        same = found == row.arpo == row.osworld or (
            found == "ends" and {row.arpo, row.osworld} <= {"ends", "crash"}
        )
        assert (row.why is None) == same, row.reply
