"""Writes ``docs/fidelity.md``: how container desktops differ from OSWorld's machine, from committed results.

Every number on the page comes from a file under ``data/osworld`` or ``benchmarks/results``; a test renders
the page again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from arpo_replica.config.load import load_yaml
from arpo_replica.suites.evaluate import CHROMIUM_WRITES_S
from arpo_replica.validation.validate import KNOWN_ISSUES, load_known_issues

PAGE = Path("docs/fidelity.md")
VALIDATION = Path("data/osworld/validation_container.json")
AGREEMENT = Path("data/osworld/agreement_osworld.json")
WINDOWS = Path("data/osworld/windows_container.json")
GENUINE = Path("data/osworld/genuine_vm.yaml")
SPLIT = Path("data/splits/offline_desktop.json")

HEAD = """# How far container desktops are from OSWorld's

<!-- Written by `arpo docs`; edit src/arpo_replica/validation/fidelity_page.py. -->

OSWorld's numbers come from one virtual machine. Container desktops run OSWorld's own task files and
evaluators on another machine: another distribution, other versions, another start state. Their results
carry the mark **"{mark}"** everywhere and are never compared with a number of the paper.

The mark means: the task files are OSWorld's, byte for byte; set-up steps and scores are those of
`desktop-env` {version}, unmodified; the desktop answers OSWorld's whole HTTP API. It does not mean that a
policy would score the same on OSWorld: on ten tasks, another port to containers (e2b's, Ubuntu 22.04 with
GNOME) was reported at 0.20 where the public result is 0.80. The virtual machine itself could not be had
here: what is said of it is from descriptions.
"""

WAITS = f"""## Waits

OSWorld's runner waits 60 s after a reset, 2 s after each action and 20 s before an evaluation. Here each
waits until the screen is at rest. One wait is left: Chromium writes its bookmarks 2.5 s after a change and
loses them when an evaluator kills it earlier, so such an evaluation begins {CHROMIUM_WRITES_S:g} s after the
last action.
"""


def render_fidelity(root: Path = Path()) -> str:
    """The page, from the committed results below ``root``."""
    validation = _read(root / VALIDATION)
    parts = [
        HEAD.format(mark=validation["mark"], version=validation["evaluator"]["version"]),
        _programs(validation, load_yaml((root / GENUINE).read_text())),
        _windows(_read(root / WINDOWS)),
        WAITS,
        _scores(validation),
        _odd(root, validation),
        _excluded(_read(root / SPLIT)),
        _agreement(_read(root / AGREEMENT)),
    ]
    return "\n".join(parts)


def write_fidelity_page(path: Path = PAGE) -> None:
    """Write the page anew."""
    path.write_text(render_fidelity())


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def _programs(validation: Mapping[str, Any], genuine: Mapping[str, Any]) -> str:
    ours, theirs = validation["desktop"]["packages"], genuine["packages"]
    rows = [(f"`{name}`", version, theirs.get(name, "not known")) for name, version in ours.items()]
    return f"""## Programs

Debian 12, X server `Xvfb`, window manager openbox; OSWorld's machine: {genuine["system"]}. Chromium runs as
process `chrome` with Chrome's profile folder. There is no GNOME Shell, no systemd, no sound card and no VS
Code.

{_table(("package", "container", "OSWorld's machine"), rows)}"""


def _windows(measured: Mapping[str, Any]) -> str:
    rows = [
        (name, window["title"], ", ".join(map(str, window["box"])))
        for name, windows in measured["windows"].items()
        for window in windows
    ]
    width, height = measured["desktop"]["screen"]
    return f"""## Where windows are

Screen {width} x {height}. A bar at the top and a dock at the left take the room that GNOME's take; what
else is on them differs. First windows of programs, without decoration (`benchmarks/windows.py`), in pixels:

{_table(("program", "window", "x, y, width, height"), rows)}"""


def _scores(validation: Mapping[str, Any]) -> str:
    tasks, counts = validation["tasks"], validation["counts"]
    infeasible = [row for row in tasks if row["infeasible"]]
    feasible = [row for row in tasks if not row["infeasible"]]
    right = sum(row["verdict"] == "infeasible_ok" for row in infeasible)
    zero = sum(all(one["score"] == 0 for one in row["noop"]) for row in feasible)
    solved = [row for row in feasible if row["verdict"] == "ok"]
    apps = sorted({row["task"].partition("/")[0] for row in solved})
    seconds = [one[key] for key in ("reset_s", "evaluate_s") for row in tasks for one in row["noop"]]
    half = len(seconds) // 2
    reset, evaluate = sorted(seconds[:half])[half // 2], sorted(seconds[half:])[half // 2]
    return f"""## What tasks score without a model

Rule `validate_tasks` ran the {len(tasks)} tasks of the split `{validation["split"]}` with no action, with
FAIL, and with a script where there is one (`data/oracles/osworld`: mouse and keyboard only). Image
`{validation["desktop"]["image"][:19]}`.

- Infeasible: {right} of {len(infeasible)} score 1 for FAIL and 0 for DONE.
- Feasible, no action: {zero} of {len(feasible)} score 0.
- Solved by their scripts: {len(solved)} tasks of {len(apps)} domains ({", ".join(apps)}).
- Without a script: {counts.get("no_oracle", 0)}. Not expected: {len(validation["unexpected"])}.
- Median reset {reset:.1f} s, median evaluation {evaluate:.1f} s, on a busy machine.
"""


def _odd(root: Path, validation: Mapping[str, Any]) -> str:
    rows = {row["task"]: row for row in validation["tasks"]}
    listed = []
    for issue in load_known_issues(root / KNOWN_ISSUES):
        row = rows.get(issue.task)
        if row is not None and validation["kind"] in issue.desktops:
            score = "/".join(str(one["score"]) for one in row["noop"])
            listed.append((f"`{issue.task}`", issue.verdict.replace("_", " "), score, issue.reason))
    return f"""## False positives, and tasks that cannot be solved

{_table(("task", "what", "score for no action", "why"), listed)}"""


def _excluded(split: Mapping[str, Any]) -> str:
    reasons: dict[str, list[str]] = {}
    for task, reason in split["excluded"].items():
        reasons.setdefault(reason, []).append(task)
    rows = [
        (len(tasks), reason, ", ".join(f"`{task[: task.index('/') + 9]}`" for task in tasks))
        for reason, tasks in reasons.items()
    ]
    return f"""## Offline tasks that cannot run

{_table(("tasks", "why", "which"), rows)}
Further away are the tasks that need files of OSWorld's cache, live sites or a Google account
([tasks.md](tasks.md)).
"""


def _agreement(agreement: Mapping[str, Any]) -> str:
    def told(scores: list[float | None]) -> str:
        return "/".join("env_error" if score is None else f"{score:g}" for score in scores)

    rows = []
    for row in agreement["tasks"]:
        cells = [
            f"{told(row[mode]['first'])} and {told(row[mode]['second'])}" if mode in row else ""
            for mode in ("noop", "fail", "oracle")
        ]
        rows.append((f"`{row['task']}`", *cells))
    return f"""## The same tasks through desktop-env's own provider

Provider `container`, and provider `osworld`: `desktop-env`'s unmodified DockerProvider on our image under
the name of OSWorld's. Scores of the first and of the second; {len(agreement["different"])} differences.

{_table(("task", "no action", "FAIL", "script"), rows)}"""
