"""Do two kinds of desktop give the same scores? Compares two results of ``validation.validate``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arpo_replica.base.errors import UserError
from arpo_replica.validation.validate import MODES

SIDE = ("split", "kind", "mark", "evaluator", "desktop", "trials", "finished_at")
"""What is kept of each result."""


def read_validation(path: Path) -> dict[str, Any]:
    """A result of ``validate_tasks``. Raises ``UserError`` for a file that is none."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        rows = {row["task"]: row for row in document["tasks"]}
        _ = document["kind"]
        for row in rows.values():
            _ = row["sha256"], row["infeasible"], [_scores(row[mode]) for mode in MODES if mode in row]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no result of validate-tasks ({error!r}).") from error
    return document | {"rows": rows}


def compare_validations(first: Path, second: Path) -> dict[str, Any]:
    """The scores of the tasks that both have, and where they differ.

    Raises ``UserError`` if they have no task in common, or one in two versions.
    """
    one, two = read_validation(first), read_validation(second)
    common = [name for name in one["rows"] if name in two["rows"]]
    if not common:
        raise UserError(f"{first} and {second} have no task in common.")
    rows, different = [], []
    for name in common:
        ours, theirs = one["rows"][name], two["rows"][name]
        if ours["sha256"] != theirs["sha256"]:
            raise UserError(f"{first} and {second} have the task {name} in two versions.")
        row: dict[str, Any] = {"task": name, "infeasible": ours["infeasible"]}
        for mode in MODES:
            if mode in ours and mode in theirs:
                row[mode] = {"first": _scores(ours[mode]), "second": _scores(theirs[mode])}
                if set(row[mode]["first"]) != set(row[mode]["second"]):
                    different.append(f"{name}: {mode}")
        rows.append(row)
    return {
        "first": {key: one[key] for key in SIDE if key in one},
        "second": {key: two[key] for key in SIDE if key in two},
        "different": different,
        "tasks": rows,
    }


def _scores(attempts: list[Mapping[str, Any]]) -> list[float | None]:
    return [attempt["score"] for attempt in attempts]
