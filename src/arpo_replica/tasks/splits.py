"""Lists of tasks, what a study leaves out of them, and what it runs: the one place where a split loses tasks.

A split is ``{name, source, tasks: {domain: [id, ...]}}``, with optional grade and notes. Which tasks are
infeasible is never a matter of the list: it is read from the task files.

What is left out is ``{because, tasks: {domain/id: what exactly}}``; the config names such lists in
``tasks.leave_out``. A split keeps its name, its list and its size: what is left out stands on the page with
the reason, and a verdict about all its tasks counts each left-out one as a failure and as a success.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from arpo_replica.base.environments import find
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import write_document
from arpo_replica.base.tables import load_yaml
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.section import ReadPath
from arpo_replica.tasks.model import Task, load_task
from arpo_replica.tasks.osworld_files import MANIFEST, read_task_manifest
from arpo_replica.tasks.osworld_files import ROOT as FETCHED


class Split(BaseModel):
    """A named list of task ids per domain."""

    model_config = ConfigDict(extra="allow")

    name: str
    source: str
    """Where the list comes from."""
    tasks: dict[str, list[str]]
    """Domain -> ids, in order."""
    grade: str | None = None
    """How sure it is that the list is what its name says."""
    notes: list[str] = []
    """What a reader of results on it should know."""
    task_root: str | None = None
    """Folder of its task files, relative to the list; without it the config's ``tasks.root``."""

    @property
    def names(self) -> list[str]:
        """``domain/id`` of each task, in order."""
        return [f"{domain}/{task_id}" for domain, ids in self.tasks.items() for task_id in ids]


def read_split(path: Path) -> Split:
    """Read a list and check what needs no task files. Raises ``UserError`` that names the fault."""
    try:
        raw = json.loads(path.read_bytes(), object_pairs_hook=_once)
        split = Split.model_validate(raw)
    except OSError as error:
        raise UserError(f"Split {path} cannot be read: {error.strerror}; correct tasks.splits.") from error
    except _Twice as error:
        raise UserError(f"Split {path} has the key '{error}' twice; join the two.") from error
    except (ValidationError, ValueError, RecursionError) as error:
        raise UserError(f"Split {path} must be {{name, source, tasks: {{domain: [id]}}}}.") from error
    if not split.tasks:
        raise UserError(f"Split {path} lists no task; add ids under 'tasks'.")
    for domain, ids in split.tasks.items():
        if not ids:
            raise UserError(f"Split {path}: the domain '{domain}' is empty; add ids or drop it.")
        twice = sorted({task_id for task_id in ids if ids.count(task_id) > 1})
        if twice:
            listed = ", ".join(f"{domain}/{task_id}" for task_id in twice)
            raise UserError(f"Split {path} lists {listed} twice; drop one.")
    return split


class _Twice(Exception):
    """A key that an object of JSON has twice: the first one's tasks would be lost without a word."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return found


def refuse_unknown(path: Path, split: Split, known: Callable[[str], bool], where: str) -> None:
    """Raises ``UserError`` that names every id of the list whose ``{domain}/{id}.json`` is not known."""
    missing = [name for name in split.names if not known(f"{name}.json")]
    if missing:
        raise UserError(f"Split {path} names tasks that {where} does not have: {', '.join(missing)}.")


def root_of(path: Path, split: Split, task_root: Path) -> Path:
    """Folder of the task files of the list at ``path``."""
    return task_root if split.task_root is None else path.parent / split.task_root


def load_split(path: Path, task_root: Path) -> list[Task]:
    """All tasks of a split, in the order of the list.

    Raises ``UserError`` that names every id which is not in the task set, a duplicate, an empty domain, or
    a file that is not what the manifest of its folder says.
    """
    split = read_split(path)
    root = root_of(path, split, task_root)
    if not root.is_dir():
        made = Path.cwd() / root == Path.cwd() / FETCHED
        fix = f"'snakemake --configfile CONFIG -- {FETCHED / 'manifest.json'}' fetches OSWorld's"
        raise UserError(f"There is no folder of task files {root}; {fix if made else 'correct tasks.root'}.")
    refuse_unknown(path, split, lambda name: (root / name).is_file(), str(root))
    tasks = [load_task(root / f"{name}.json") for name in split.names]
    if (root / "manifest.json").is_file():
        _refuse_changed(root, tasks)
    return tasks


def _refuse_changed(root: Path, tasks: list[Task]) -> None:
    """A folder that a rule made says what it holds: nobody may edit its files afterwards."""
    files = read_task_manifest(root / "manifest.json").files
    for task in tasks:
        if files.get(name := f"{task.name}.json") != task.sha256:
            raise UserError(
                f"The task file {root / name} was changed after it was made; remove the folder {root} and "
                "run again with --forcerun fetch_osworld_tasks make_noisy_tasks."
            )


class ResolvedTask(BaseModel):
    domain: str
    id: str
    path: ReadPath
    sha256: str


class ResolvedSplit(BaseModel):
    """The tasks of a split that a study runs, each by file and hash: all that later jobs read of a split.

    As a file (``results/{study}/splits/{split}.json``) it is an input of theirs, so that a changed task is a
    changed input.
    """

    split: str
    """Its name in the config."""
    tasks: list[ResolvedTask]
    """In the order of the list."""

    def write(self, out: Path) -> None:
        """Write it so that the same tasks give the same bytes."""
        write_document(self, out)

    def hashes(self) -> dict[str, str]:
        """``domain/id`` -> sha256 of the task file."""
        return {f"{task.domain}/{task.id}": task.sha256 for task in self.tasks}

    def load(self) -> list[Task]:
        """The tasks. Raises ``UserError`` for a task file that is not the one that was resolved."""
        tasks = [load_task(entry.path) for entry in self.tasks]
        for entry, task in zip(self.tasks, tasks, strict=True):
            if task.sha256 != entry.sha256:
                raise UserError(
                    f"The task file {entry.path} was changed after the split '{self.split}' was resolved; "
                    "run snakemake again, or restore the file."
                )
        return tasks

    def absolute(self) -> ResolvedSplit:
        """The same for a process in another folder."""
        tasks = [entry.model_copy(update={"path": entry.path.absolute()}) for entry in self.tasks]
        return self.model_copy(update={"tasks": tasks})


def read_resolved(path: Path) -> ResolvedSplit:
    """What ``ResolvedSplit.write`` wrote. Raises ``UserError``."""
    try:
        return ResolvedSplit.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"The resolved split {path} cannot be read; delete it and run again.") from error


# -- what a study leaves out ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeftOut:
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
    root = config.tasks.root
    unknown = [t for t in out if f"{t}.json" not in known and not (root / f"{t}.json").is_file()]
    if unknown:
        where = out[unknown[0]].path
        raise UserError(
            f"{where} leaves out {', '.join(unknown)}: there is no such task file; correct the id."
        )


def left_out_of(config: StudyConfig, split: str) -> list[LeftOut]:
    """What a split names and the study does not run, in the order of the list."""
    out = read_left_out(config)
    names = read_split(config.tasks.splits[split]).names if out else []
    return [out[name] for name in names if name in out]


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
    tasks = [
        ResolvedTask(domain=task.domain, id=task.id, path=root / f"{task.name}.json", sha256=task.sha256)
        for task in split_tasks(config, split)
    ]
    return ResolvedSplit(split=split, tasks=tasks)


def kept(config: StudyConfig, split: str, tasks: list[Task]) -> list[Task]:
    """``tasks`` without those that are left out. Raises ``UserError`` if nothing remains."""
    out = read_left_out(config)
    remaining = [task for task in tasks if task.name not in out]
    if not remaining:
        raise UserError(f"tasks.leave_out leaves no task of the split '{split}'; drop the split or a list.")
    return remaining


def split_size(config: StudyConfig, split: str) -> int:
    """Number of tasks of a split that the study runs, from the list alone; of the source, which is the most
    that it can be, for a noisy or selected split that is still to be made."""
    path, made = config.tasks.splits[split], config.tasks.noisy | config.tasks.selected
    if not path.is_file() and split in made:
        return split_size(config, made[split].source)
    return len(read_split(path).names) - len(left_out_of(config, split))
