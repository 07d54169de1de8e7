"""Noisy variants of tasks: set-up steps are added, the rest of the task stays as it is.

A notification, a further browser tab, a window in the background, a file that looks interesting, pages that
were visited before: what a desktop in use has and a clean one has not. Instruction, evaluator and the task's
own steps are untouched, and a kind of noise that the evaluator could see is not used for that task.
"""

import json
import random
import re
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from arpo_replica.base.errors import UserError
from arpo_replica.base.tables import table_of
from arpo_replica.config.tasks import NoiseKind, NoisyTasksConfig
from arpo_replica.suites.miniwob.pages import DOMAIN, to_bytes
from arpo_replica.tasks.model import Task

Step = dict[str, Any]

_TEXTS = table_of(__file__)
_VISITS = 4
_SUFFIXES = (".txt", ".md", ".log", ".csv", ".rst")
_FOLDERS = ("Desktop", "Documents", "Downloads", "Pictures", "Public", "Templates")
_HOME = "/home/user"

_DEBUGGING_PORT = re.compile(r"--remote-debugging-port=(\d+)")


def _sees(what: str, text: str) -> bool:
    """True if the text of an evaluator names something by which it could see that kind of noise."""
    return re.search(_TEXTS["sees"][what], text, re.IGNORECASE) is not None


def make_noisy(task: Task, settings: NoisyTasksConfig) -> Task:
    """The task with ``settings.per_task`` kinds of noise; the same input gives the same bytes.

    Raises ``UserError`` if fewer of ``settings.kinds`` leave the task's evaluator alone.
    """
    allowed = [kind for kind in settings.kinds if _KINDS[kind][0](task)]
    if len(allowed) < settings.per_task:
        raise UserError(
            f"Task {task.domain}/{task.id} bears {len(allowed)} of the kinds of noise "
            f"({', '.join(allowed) or 'none'}), not {settings.per_task}; its evaluator could see the others: "
            "allow more kinds in tasks.noisy, or take the task out of the split."
        )
    source = random.Random(f"noise/{settings.seed}/{task.domain}/{task.id}")
    kinds = allowed[: settings.per_task]
    if settings.choice == "random":
        kinds = sorted(source.sample(allowed, settings.per_task), key=settings.kinds.index)
    config, added = list(task.config), set[int]()
    for kind in kinds:
        place, steps = _KINDS[kind][1](task, source)
        # What went in before moves the place in the task's own list of steps.
        at = _position(place, added)
        added = {index if index < at else index + len(steps) for index in added}
        added |= set(range(at, at + len(steps)))
        config[at:at] = steps
    raw = {
        **task.raw,
        "id": noisy_id(task, settings.seed, kinds),
        "config": config,
        "arpo_noise": {
            "of": task.id,
            "of_sha256": task.sha256,
            "seed": settings.seed,
            "kinds": kinds,
            "steps": sorted(added),
        },
    }
    return Task.of(raw, task.domain, to_bytes(raw))


def noisy_id(task: Task, seed: int, kinds: Sequence[str]) -> str:
    """A UUID for a UUID, as OSWorld's ids are; else the old id with a suffix."""
    try:
        return str(uuid.uuid5(uuid.UUID(task.id), f"noise/{seed}/{'/'.join(kinds)}"))
    except ValueError:
        return f"{task.id}-noisy{seed}"


def noisy_split(name: str, source: str, tasks: Sequence[Task], settings: NoisyTasksConfig) -> dict[str, Any]:
    """The split's list, as JSON: its task files lie in the folder ``name`` beside it."""
    listed: dict[str, list[str]] = {}
    for task in tasks:
        listed.setdefault(task.domain, []).append(task.id)
    return {
        "name": name,
        "source": f"ours: the tasks of {source}, each with {settings.per_task} of "
        f"{', '.join(settings.kinds)}; seed {settings.seed}",
        "grade": "made by rule make_noisy_tasks",
        "notes": [
            "Set-up steps were added; instructions, evaluators and the tasks' own steps are unchanged."
        ],
        "tasks": listed,
        "task_root": name,
        "made_from": {task.id: task.raw["arpo_noise"]["of"] for task in tasks},
    }


# -- which kind suits which task ------------------------------------------------------------------


def _evaluator_names(task: Task) -> str:
    """Functions and getter types of the evaluator, in one line."""
    evaluator = task.evaluator
    found: list[str] = []
    for value in (evaluator.get("func"), evaluator.get("result"), evaluator.get("expected")):
        for entry in value if isinstance(value, list) else [value]:
            found.append(str(entry.get("type", "")) if isinstance(entry, dict) else str(entry or ""))
    return " ".join(found)


def _text(task: Task) -> str:
    return json.dumps([task.instruction, task.config, task.evaluator])


def _unseen(what: str, task: Task) -> bool:
    """True if the evaluator neither looks at that kind of thing by its functions nor by commands."""
    by_commands = _sees(f"words_{what}", json.dumps(task.evaluator))
    return not (_sees(what, _evaluator_names(task)) or by_commands)


def _file_is_safe(task: Task) -> bool:
    return _unseen("files", task) and _place_of_file(task) is not None


def _tab_is_safe(task: Task) -> bool:
    if task.domain == DOMAIN:
        return True  # its evaluator asks the pages of the task alone
    steps = {str(step.get("type")) for step in task.config}
    # OSWorld's step that opens tabs closes the browser's first one, whichever that is.
    opens = steps & {"chrome_open_tabs", "chrome_close_tabs", "update_browse_history", "googledrive", "login"}
    return not opens and _browser_step(task) is not None and not _sees("tabs", _evaluator_names(task))


def _history_is_safe(task: Task) -> bool:
    steps = {str(step.get("type")) for step in task.config}
    return (
        task.domain != DOMAIN  # its browser fills the screen and shows no history
        and "update_browse_history" not in steps  # it puts another history in the place of this one
        and _browser_step(task) is not None
        and not _sees("history", f"{task.instruction} {json.dumps(task.evaluator)}")
    )


def _browser_step(task: Task) -> tuple[int, int] | None:
    """Index of the step that launches a browser which can be spoken to, and its port."""
    for index, step in enumerate(task.config):
        command = step.get("parameters", {}).get("command", "")
        words = command if isinstance(command, str) else " ".join(map(str, command))
        port = _DEBUGGING_PORT.search(words)
        if step.get("type") == "launch" and "chrome" in words and port:
            return index, int(port[1])
    return None


def _place_of_file(task: Task) -> tuple[str, str] | None:
    """Folder and suffix that nothing in the task mentions."""
    text = _text(task).lower()
    folder = next((name for name in _FOLDERS if name.lower() not in text), None)
    suffix = next((name for name in _SUFFIXES if name not in text), None)
    return None if folder is None or suffix is None else (folder, suffix)


# -- the steps ------------------------------------------------------------------------------------


def window_source() -> str:
    """The program that shows a window, as it goes into a command."""
    return (Path(__file__).parent / "noise_window.py").read_text()


def _window(kind: str, task: Task, source: random.Random) -> tuple[int, list[Step]]:
    text = _text(task).lower()
    # A task that activates a window by name must not find this one.
    notes = [note for note in _TEXTS["notes"] if note[0].lower() not in text] or [
        ("Reminder 7", "Water the plants")
    ]
    title, body = source.choice(notes)
    return 0, [_execute(["python3", "-c", window_source(), kind, title, body])]


def _distractor_file(task: Task, source: random.Random) -> tuple[int, list[Step]]:
    place = _place_of_file(task)
    assert place is not None
    name, content = source.choice(_TEXTS["files"])
    path = f"{_HOME}/{place[0]}/{name}{place[1]}"
    write = 'mkdir -p "$(dirname "$0")" && printf %s "$1" > "$0"'
    return 0, [_execute(["/bin/bash", "-c", write, path, content])]


def _extra_tab(task: Task, source: random.Random) -> tuple[int, list[Step]]:
    """Directly after the task's own step that launches the browser: there is none before."""
    page = _page(*source.choice(_TEXTS["tabs"]))
    found = _browser_step(task)
    assert found is not None
    at, port = found
    if task.domain == DOMAIN:
        return at + 1, [{"type": "chrome_open_tabs", "parameters": {"urls_to_open": [page]}}]
    return at + 1, [_in_browser("open_tab", f"http://localhost:{port}", page)]


def _browser_history(task: Task, source: random.Random) -> tuple[int, list[Step]]:
    """At the same place; the task then begins with the tabs that it would have had."""
    pages = [_page(title, body) for title, body in source.sample(_TEXTS["visited"], _VISITS)]
    found = _browser_step(task)
    assert found is not None
    at, port = found
    return at + 1, [_in_browser("visit", f"http://127.0.0.1:{port}", *pages)]


def _page(title: str, body: str) -> str:
    """The URL of a page that needs no server."""
    return f"data:text/html,<title>{title}</title><h1>{title}</h1><p>{body}</p>".replace(" ", "%20")


def _in_browser(what: str, *arguments: str) -> Step:
    programs = _TEXTS["browser"]
    return _execute(["python3", "-c", programs["begin"] + programs[what] + programs["end"], *arguments])


def _execute(command: list[str]) -> Step:
    return {"type": "execute", "parameters": {"command": command}}


def _position(place: int, added: set[int]) -> int:
    """Where index ``place`` of the task's own steps is now; 0 stays the very beginning."""
    at = place
    for index in sorted(added):
        if place and index <= at:
            at += 1
    return at


_Steps = Callable[[Task, random.Random], tuple[int, list[Step]]]
_KINDS: dict[NoiseKind, tuple[Callable[[Task], bool], _Steps]] = {
    "notification": (partial(_unseen, "windows"), partial(_window, "notification")),
    "extra_tab": (_tab_is_safe, _extra_tab),
    "background_window": (partial(_unseen, "windows"), partial(_window, "background_window")),
    "distractor_file": (_file_is_safe, _distractor_file),
    "browser_history": (_history_is_safe, _browser_history),
}
"""Kind -> which tasks bear it, and its steps."""
