"""Tasks that a study leaves out, and the tasks that it runs: the one place where a split loses tasks.

A list is ``{because, tasks: {domain/id: what exactly}}``; the config names lists in ``tasks.leave_out``. A
split keeps its name, its list and its size: what is left out stands on the page with the reason, and a
verdict about all its tasks counts each left-out one as a failure and as a success.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from arpo_replica.base.environments import find
from arpo_replica.base.errors import UserError
from arpo_replica.config.load import load_yaml
from arpo_replica.config.models import StudyConfig
from arpo_replica.tasks.model import Task
from arpo_replica.tasks.osworld_files import MANIFEST, read_task_manifest
from arpo_replica.tasks.splits import (
    ResolvedSplit,
    ResolvedTask,
    Split,
    load_split,
    read_split,
    root_of,
)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A task that is not run."""

    task: str
    """``domain/id``."""
    because: str
    """Why, the same for all tasks of a list."""
    detail: str
    """What exactly, for this task."""
    path: Path
    """The list."""


class _List(BaseModel):
    model_config = ConfigDict(extra="forbid")

    because: str = Field(min_length=1)
    tasks: dict[str, Annotated[str, Field(min_length=1)]] = Field(min_length=1)


def read_left_out(config: StudyConfig) -> dict[str, LeftOut]:
    """``domain/id`` -> why it is not run, of all lists of ``tasks.leave_out``.

    Raises ``UserError`` for a list that is not in order, e.g. without a reason, and for a task in two lists.
    """
    found: dict[str, LeftOut] = {}
    for path in config.tasks.leave_out:
        content = _read(path)
        for task, detail in content.tasks.items():
            if task in found:
                raise UserError(f"{path} and {found[task].path} both leave out {task}; drop it from one.")
            found[task] = LeftOut(task, content.because, detail, path)
    return found


def _read(path: Path) -> _List:
    try:
        return _List.model_validate(load_yaml(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; correct tasks.leave_out.") from error
    except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} (tasks.leave_out) must be {{because: why, tasks: {{domain/id: what exactly}}}}, with no "
            "reason left empty."
        ) from error


def check_left_out(config: StudyConfig) -> None:
    """Raises ``UserError`` for a left-out task of which there is no task file: a wrong id hides nothing."""
    out = read_left_out(config)
    manifest = find(MANIFEST)
    known = read_task_manifest(manifest).files if out and manifest.is_file() else {}
    unknown = [
        task
        for task in out
        if f"{task}.json" not in known and not (config.tasks.root / f"{task}.json").is_file()
    ]
    if unknown:
        raise UserError(
            f"{out[unknown[0]].path} leaves out {', '.join(unknown)}: there is no such task file; correct "
            "the id."
        )


def left_out_of(config: StudyConfig, split: str) -> list[LeftOut]:
    """What a split names and the study does not run, in the order of the list."""
    out = read_left_out(config)
    return (
        [out[name] for name in _names(read_split(config.tasks.splits[split])) if name in out] if out else []
    )


def split_tasks(config: StudyConfig, split: str) -> list[Task]:
    """The tasks of a split that the study runs, in the order of the list.

    Raises ``UserError`` as ``load_split`` does, and if nothing remains.
    """
    return kept(config, split, load_split(config.tasks.splits[split], config.tasks.root))


def resolve(config: StudyConfig, split: str) -> ResolvedSplit:
    """The same by file and hash, for the jobs that run them. Raises ``UserError`` as ``split_tasks`` does."""
    if split not in config.tasks.splits:
        raise UserError(
            f"There is no split '{split}' in tasks.splits; it has {', '.join(config.tasks.splits)}."
        )
    path = config.tasks.splits[split]
    root = root_of(path, read_split(path), config.tasks.root)
    return ResolvedSplit(
        split=split,
        tasks=[
            ResolvedTask(
                domain=task.domain,
                id=task.id,
                path=root / task.domain / f"{task.id}.json",
                sha256=task.sha256,
            )
            for task in split_tasks(config, split)
        ],
    )


def kept(config: StudyConfig, split: str, tasks: list[Task]) -> list[Task]:
    """``tasks`` without those that are left out. Raises ``UserError`` if nothing remains."""
    out = read_left_out(config)
    remaining = [task for task in tasks if f"{task.domain}/{task.id}" not in out]
    if not remaining:
        raise UserError(f"tasks.leave_out leaves no task of the split '{split}'; drop the split or a list.")
    return remaining


def split_size(config: StudyConfig, split: str) -> int:
    """Number of tasks of a split that the study runs, from the list alone; of the source, which is the most
    that it can be, for a noisy or selected split that is still to be made."""
    path, made = config.tasks.splits[split], config.tasks.noisy | config.tasks.selected
    if not path.is_file() and split in made:
        return split_size(config, made[split].source)
    return len(_names(read_split(path))) - len(left_out_of(config, split))


def _names(split: Split) -> list[str]:
    return [f"{domain}/{task}" for domain, ids in split.tasks.items() for task in ids]
