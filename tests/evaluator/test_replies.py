"""What OSWorld's agent makes of the replies of docs/actions.md: its parser, as the package has it, is run.

ARPO's release has the same two functions (verl/trainer/gui_agent.py:58-474 of dvlab-research/ARPO@7489ae3),
so its column is held to that run as well, but for what is listed here.
"""

from __future__ import annotations

import ast
import json
import subprocess

import pytest

from arpo_replica.actions.compared import rows
from arpo_replica.base.environments import python_of

PROGRAM = """
import contextlib, io, json, sys
from unittest.mock import MagicMock
for name in ("openai", "loguru", "PIL", "numpy", "mm_agents.accessibility_tree_wrap.heuristic_retrieve"):
    sys.modules.setdefault(name, MagicMock())  # what the agent needs besides its parser
from mm_agents import uitars15_v1 as agent
WORDS = {agent.FINISH_WORD: "DONE", agent.WAIT_WORD: "WAIT"}
WORDS |= {agent.ENV_FAIL_WORD: "FAIL", agent.CALL_USER: "FAIL"}

def told(reply):
    try:
        parsed = agent.parse_action_to_structure_output(reply, 1000, 1008, 1008, "qwen25vl")
    except Exception:
        return "ends"
    codes = []
    for action in parsed:
        if action["action_type"] in WORDS:
            return WORDS[action["action_type"]]
        try:
            codes.append(agent.parsing_response_to_pyautogui_code(action, 1008, 1008, False))
        except Exception:
            return "crash"
    return codes

with contextlib.redirect_stdout(io.StringIO()):
    found = [told(reply) for reply in json.load(sys.stdin)]
print(json.dumps(found))
"""


ARPO_BY_ITSELF = {"finished(content='it's done')": "DONE"}
"""gui_agent.py:214-226: quotes in ``finished(content`` are escaped as in ``type(content``."""


def in_words(code: str) -> list[str]:
    """The calls of pyautogui in Python source, in the words of the file."""
    try:
        statements = ast.parse(code).body
    except SyntaxError:
        return ["Python refuses the code"]
    calls = [s.value for s in statements if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)]
    words: list[str] = []
    start = ""
    for call in calls:
        name = ast.unparse(call.func).rpartition(".")[2]
        values = [ast.literal_eval(value) for value in call.args]
        named = {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}
        spot = "({:g}, {:g})".format(*values) if name in ("click", "doubleClick", "moveTo", "dragTo") else ""
        match name:
            case "click":
                words.append(f"{'right ' * (named.get('button') == 'right')}click {spot}")
            case "doubleClick":
                words.append(f"double click {spot}")
            case "moveTo":
                start = spot
                words.append(f"move to {spot}")
            case "dragTo":
                words[-1] = f"drag {start} to {spot}"
            case "scroll":
                at = " at ({x:g}, {y:g})".format(**named) if named else ""
                words.append(f"scroll {'up' if values[0] > 0 else 'down'}{at}")
            case "keyDown":
                words.append(f"hold {values[0]}")
            case "write":
                words.append(f"type {values[0]!a}")
            case "hotkey" | "press":
                words.append(f"keys {' '.join(values)}")
    return words


@pytest.fixture(scope="module")
def found() -> list[str]:
    """What OSWorld's parser makes of every row."""
    replies = json.dumps([f"Thought: I act.\nAction: {row.reply}" for row in rows()])
    python = python_of("evaluator")
    done = subprocess.run([python, "-c", PROGRAM], input=replies, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    return [
        one
        if isinstance(one, str)
        else "; ".join(word for code in one for word in in_words(code)) or "nothing"
        for one in told
    ]


def test_osworlds_column_is_what_its_parser_does(found: list[str]) -> None:
    assert len(found) > 80
    assert [row.osworld for row in rows()] == found


def test_arpos_column_is_what_that_parser_does_but_for_its_two_differences(found: list[str]) -> None:
    """The second: one ``try`` around both functions (gui_agent.py:776-819), so a crash there ends here."""
    expected = [
        ARPO_BY_ITSELF.get(row.reply, "ends" if osworld == "crash" else osworld)
        for row, osworld in zip(rows(), found, strict=True)
    ]
    assert [row.arpo for row in rows()] == expected
    assert set(ARPO_BY_ITSELF) < {row.reply for row in rows()}
