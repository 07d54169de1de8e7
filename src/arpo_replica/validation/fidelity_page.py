"""Writes ``docs/fidelity.md``: how container desktops differ from OSWorld's machine, from committed results.

Every number on the page comes from a file under ``data/osworld`` or ``benchmarks/results``; a test renders
the page again.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from arpo_replica.base.tables import load_yaml
from arpo_replica.config.docs import render_text
from arpo_replica.suites.evaluate import CHROMIUM_WRITES_S
from arpo_replica.validation.validate import KNOWN_ISSUES, MODES, load_known_issues

PAGE = Path("docs/fidelity.md")
VALIDATION = Path("data/osworld/validation_container.json")
AGREEMENT = Path("data/osworld/agreement_osworld.json")
WINDOWS = Path("data/osworld/windows_container.json")
GENUINE = Path("data/osworld/genuine_vm.yaml")
SPLIT = Path("data/splits/offline_desktop.json")


def render_fidelity(root: Path = Path()) -> str:
    """The page, from the committed results below ``root``; its words are ``fidelity.md.j2``."""
    validation, agreement, windows = (_read(root / path) for path in (VALIDATION, AGREEMENT, WINDOWS))
    genuine = load_yaml((root / GENUINE).read_text())
    tasks = validation["tasks"]
    by_name = {row["task"]: row for row in tasks}
    feasible = [row for row in tasks if not row["infeasible"]]
    solved = [row for row in feasible if row["verdict"] == "ok"]
    reasons = defaultdict(list)
    for task, reason in _read(root / SPLIT)["excluded"].items():
        reasons[reason].append(f"`{task[: task.index('/') + 9]}`")
    return render_text(
        Path(__file__).with_name("fidelity.md.j2"),
        validation=validation,
        agreement=agreement,
        windows=windows,
        genuine=genuine,
        chromium_writes_s=CHROMIUM_WRITES_S,
        feasible=feasible,
        solved=solved,
        zero=sum(all(one["score"] == 0 for one in row["noop"]) for row in feasible),
        domains=sorted({row["task"].partition("/")[0] for row in solved}),
        reset_s=_median(tasks, "reset_s"),
        evaluate_s=_median(tasks, "evaluate_s"),
        odd=[
            (issue, by_name[issue.task]["noop"])
            for issue in load_known_issues(root / KNOWN_ISSUES)
            if issue.task in by_name and validation["kind"] in issue.desktops
        ],
        excluded=reasons,
        modes=MODES,
    )


def write_fidelity_page(path: Path = PAGE) -> None:
    path.write_text(render_fidelity())


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _median(tasks: list[dict[str, Any]], key: str) -> float:
    """Of the attempts without an action; of two in the middle the later one."""
    seconds = sorted(float(one[key]) for row in tasks for one in row["noop"])
    return seconds[len(seconds) // 2]
