"""What desktop-env has, as committed data: bad tasks are refused before a run, without importing it.

``tests/evaluator/list_evaluators.py`` prints it.
"""

import functools
import json
from typing import Any

from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.tasks.model import Task

PATH = ROOT / "data" / "osworld" / "evaluators.json"
ACCOUNT = {"googledrive", "login", "googledrive_file"}
"""Set-up steps and getters that want a Google account's secrets in a file that nobody has."""
READS_TEXT = {"compare_image_text"}
"""Metrics that need easyocr."""


@functools.cache
def read_inventory() -> dict[str, frozenset[str]]:
    """``metrics``, ``getters`` and ``set_up`` of the pinned desktop-env."""
    content = json.loads(PATH.read_text())
    return {key: frozenset(content[key]) for key in ("metrics", "getters", "set_up")}


def refuse_unsupported(task: Task) -> None:
    """Raises ``UserError`` if desktop-env cannot run this OSWorld task."""
    reason = why_not(task)
    if reason is not None:
        raise UserError(
            f"Task {task.domain}/{task.id}: {reason}; leave it out by a list in tasks.leave_out "
            "(data/osworld/left_out has them)."
        )


def why_not(task: Task) -> str | None:
    """Why desktop-env cannot run this OSWorld task; None if it can."""
    known = read_inventory()
    evaluator = task.evaluator
    wanted = [
        ("set_up", "set-up step", _types([*task.config, *(evaluator.get("postconfig") or [])])),
        ("metrics", "evaluator function", _list(evaluator.get("func"))),
        ("getters", "state type", _types(_list(evaluator.get("result")) + _list(evaluator.get("expected")))),
    ]
    for key, what, names in wanted:
        for name in names:
            if name in ACCOUNT:
                return f"the {what} {name!r} needs a Google account"
            if name not in known[key]:
                return f"the {what} {name!r} does not exist in desktop-env {read_version()}"
            if name in READS_TEXT and not _reads_text():
                return f"the {what} {name!r} needs easyocr, an extra (docs/osworld.md, 'Text recognition')"
    return _shape(evaluator)


def _shape(evaluator: dict[str, Any]) -> str | None:
    """Lists must go together (``DesktopEnv._set_evaluator_info`` asserts it in the middle of a run)."""
    functions = evaluator.get("func")
    if not isinstance(functions, list):
        return None
    for key in ("result", "expected", "options"):
        value = evaluator.get(key)
        if value and (not isinstance(value, list) or len(value) != len(functions)):
            return f"its evaluator has {len(functions)} functions, but not as many entries in {key!r}"
    if evaluator.get("conj", "and") not in ("and", "or"):
        return f"its evaluator's 'conj' is {evaluator['conj']!r}, neither 'and' nor 'or'"
    return None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _types(entries: list[Any]) -> list[Any]:
    return [entry.get("type") for entry in entries if entry]


@functools.cache
def read_version() -> str:
    """Version of desktop-env that this repository is for."""
    return str(json.loads(PATH.read_text())["version"])


def _reads_text() -> bool:
    """True if the real easyocr is installed beside desktop-env; its stub is a module, no package."""
    packages = (ROOT / "envs" / "evaluator" / ".venv" / "lib").glob("python3.*/site-packages/easyocr")
    return any(path.is_dir() for path in packages)
