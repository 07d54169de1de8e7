"""Lists of tasks: ``{name, source, tasks: {domain: [id, ...]}}``."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from arpo_replica.errors import UserError
from arpo_replica.rollout.records import write_atomically
from arpo_replica.tasks.model import Task, load_task


class Split(BaseModel):
    """A named list of task ids per domain."""

    model_config = ConfigDict(extra="allow")

    name: str
    source: str
    tasks: dict[str, list[str]]


def load_split(path: Path, task_root: Path) -> list[Task]:
    """All tasks of a split, in the order of the list.

    Raises ``UserError`` that names every id which is not in the task set, a duplicate, or an empty
    domain.
    """
    try:
        split = Split.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"Split {path} cannot be read: {error.strerror}; correct tasks.splits.") from error
    except (ValidationError, json.JSONDecodeError) as error:
        raise UserError(f"Split {path} must be {{name, source, tasks: {{domain: [id]}}}}.") from error
    if not split.tasks:
        raise UserError(f"Split {path} lists no task; add ids under 'tasks'.")
    tasks, missing, seen = [], [], set()
    for domain, ids in split.tasks.items():
        if not ids:
            raise UserError(f"Split {path}: the domain '{domain}' is empty; add ids or drop it.")
        for task_id in ids:
            if (domain, task_id) in seen:
                raise UserError(f"Split {path} lists {domain}/{task_id} twice; drop one.")
            seen.add((domain, task_id))
            file = task_root / domain / f"{task_id}.json"
            if file.is_file():
                tasks.append(load_task(file))
            else:
                missing.append(f"{domain}/{task_id}")
    if missing:
        raise UserError(f"Split {path} names tasks that {task_root} does not have: {', '.join(missing)}.")
    return tasks


def resolve_split(path: Path, task_root: Path, out: Path) -> None:
    """Write the split with the sha256 of each task file: a changed task is then a changed file."""
    tasks = load_split(path, task_root)
    content = {
        "split": path.stem,
        "tasks": [{"domain": task.domain, "id": task.id, "sha256": task.sha256} for task in tasks],
    }
    write_atomically(out, (json.dumps(content, indent=1) + "\n").encode())
