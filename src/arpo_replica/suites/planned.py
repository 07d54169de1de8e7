"""The tasks of a study's splits: as they are on disk, or, before any rule ran, as they will be."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from arpo_replica.base.environments import find
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import write_atomically, write_document
from arpo_replica.config.models import StudyConfig
from arpo_replica.suites.evaluate import check_task
from arpo_replica.suites.miniwob.pages import to_bytes
from arpo_replica.suites.noise import make_noisy, noisy_split
from arpo_replica.tasks.model import Task
from arpo_replica.tasks.osworld_files import MANIFEST, ROOT, TaskManifest, read_task_manifest
from arpo_replica.tasks.splits import kept, load_split, read_split, refuse_unknown, split_tasks


def fetched(config: StudyConfig) -> bool:
    """True if the study's task files are those that rule ``fetch_osworld_tasks`` makes."""
    root = config.tasks.root
    return (root if root.is_absolute() else Path.cwd() / root) == Path.cwd() / ROOT


def planned_tasks(config: StudyConfig, split: str) -> list[Task] | None:
    """The tasks of a split that the study runs, without waiting for a rule.

    Raises ``UserError`` for a list that is wrong.

    None if the task files are still to be fetched: then only the ids could be checked, by the manifest. None
    too for a selected split that is still to be made: which tasks it will have is not known.
    """
    if split in config.tasks.selected and not config.tasks.splits[split].is_file():
        planned_tasks(config, config.tasks.selected[split].source)
        return None
    if split in config.tasks.noisy:
        settings = config.tasks.noisy[split]
        clean = planned_tasks(config, settings.source)
        return None if clean is None else _made_noisy(config, split, clean)
    path, root = config.tasks.splits[split], config.tasks.root
    if fetched(config) and not (root / "manifest.json").is_file():
        known = read_task_manifest(find(MANIFEST)).files
        refuse_unknown(path, read_split(path), known.__contains__, "OSWorld")
        return None
    return kept(config, split, load_split(path, root))


def check_tasks(tasks: Iterable[Task]) -> None:
    """Raises ``UserError`` for the first task that cannot be set up or scored here."""
    for task in tasks:
        check_task(task)


def split_files(config: StudyConfig, split: str) -> list[str]:
    """The files that decide a split's tasks, as a rule's input: task files, or the manifest of all."""
    if split in config.tasks.noisy:
        return [str(_noisy_folder(config, split) / "manifest.json")]
    if split in config.tasks.selected:
        return split_files(config, config.tasks.selected[split].source)
    root = config.tasks.root
    if fetched(config):
        return [str(root / "manifest.json")]
    tasks = load_split(config.tasks.splits[split], root)
    return [str(root / f"{task.name}.json") for task in tasks]


def make_noisy_tasks(config: StudyConfig, split: str) -> int:
    """Write the task files of a noisy split, their manifest, and the list; returns their number."""
    settings = config.tasks.noisy[split]
    clean = split_tasks(config, settings.source)
    tasks = _made_noisy(config, split, clean)
    folder = _noisy_folder(config, split)
    if folder.is_dir():
        shutil.rmtree(folder)
    for task in tasks:
        path = folder / f"{task.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_bytes(task.raw))
    hashes = dict(sorted((f"{task.name}.json", task.sha256) for task in tasks))
    document = noisy_split(split, settings.source, tasks, settings)
    write_document(TaskManifest(source=document["source"], files=hashes), folder / "manifest.json")
    write_atomically(config.tasks.splits[split], to_bytes(document))
    return len(tasks)


def _made_noisy(config: StudyConfig, split: str, clean: list[Task]) -> list[Task]:
    tasks = [make_noisy(task, config.tasks.noisy[split]) for task in clean]
    if len({task.name for task in tasks}) < len(tasks):
        raise UserError(f"tasks.noisy.{split} gives two tasks one id; choose another seed.")
    return tasks


def _noisy_folder(config: StudyConfig, split: str) -> Path:
    """Folder of a noisy split's task files: beside its list, with the list's name."""
    return config.tasks.splits[split].with_suffix("")
