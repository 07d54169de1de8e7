"""Makes the task files and splits of the MiniWoB++ pages by a plan: the same bytes on every machine.

The instruction of a task is what its page says, so a desktop (DevTools) is needed. Files are made once
and committed; ``drift`` says whether they still are what the pages say.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.config.load import describe, read_yaml
from arpo_replica.config.section import Positive, Section
from arpo_replica.desktop.devtools import DevTools
from arpo_replica.suites.miniwob.pages import (
    DOMAIN,
    SPLIT_SEEDS,
    check_pages,
    read_instructions,
    task_id,
    task_json,
    to_bytes,
)

PLAN = "splits/miniwob.yaml"
"""The plan, below the folder that its files are written to."""
SPARE = 4
"""Seeds that are looked at for each task: on some pages the target cannot be clicked."""


class PlannedSplit(Section):
    source: str
    """What it is, as its list says."""
    first_seed: int = Field(ge=0)
    """The tasks of a page type have the first seeds from here on with which it can be solved."""
    pages: dict[str, Positive] = Field(min_length=1)
    """Page type -> tasks."""


class TaskPlan(Section):
    """Which pages become tasks: splits of other first seeds share none."""

    splits: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], PlannedSplit] = Field(min_length=1)
    """Name of a split, without ``miniwob_`` -> its tasks."""


def read_plan(path: Path) -> TaskPlan:
    """The plan in a YAML file. Raises ``UserError`` with the key at fault."""
    what = f"The plan {path}"
    try:
        plan = TaskPlan.model_validate(read_yaml(path, what))
    except ValidationError as error:
        raise UserError(f"{what}: {describe(error, TaskPlan, 'docs/tasks.md')}") from error
    starts = [*sorted({split.first_seed for split in plan.splits.values()}), SPLIT_SEEDS.stop]
    for name, split in plan.splits.items():
        check_pages(split.pages, f"{what}: splits.{name}.pages")
        end = starts[starts.index(split.first_seed) + 1] if split.first_seed < SPLIT_SEEDS.stop else 0
        page, most = max(split.pages.items(), key=lambda entry: entry[1])
        if split.first_seed + SPARE * most > end:
            raise UserError(
                f"{what}: splits.{name}.pages.{page} is {most}, but the {SPARE * most} seeds from "
                f"{split.first_seed} on that this may need go beyond {end}, where others begin; lower it, or "
                "move first_seed."
            )
    return plan


async def make_files(devtools: DevTools, plan: TaskPlan) -> dict[str, bytes]:
    """Path below ``data`` -> content of every task file and split, read from the pages."""
    needed: dict[tuple[str, int], int] = {}
    for split in plan.splits.values():
        for page, count in split.pages.items():
            needed[page, split.first_seed] = max(needed.get((page, split.first_seed), 0), count)
    chosen = {key: await _usable(devtools, *key, count) for key, count in needed.items()}
    files: dict[str, bytes] = {}
    for (page, _), texts in chosen.items():
        for seed, text in texts.items():
            files[f"tasks/{DOMAIN}/{task_id(page, seed)}.json"] = to_bytes(task_json(page, seed, text))
    for name, split in plan.splits.items():
        ids = [
            task_id(page, seed)
            for page, count in split.pages.items()
            for seed in list(chosen[page, split.first_seed])[:count]
        ]
        listed = {"name": f"miniwob_{name}", "source": split.source, "tasks": {DOMAIN: ids}}
        files[f"splits/miniwob_{name}.json"] = to_bytes(listed)
    return files


async def _usable(devtools: DevTools, page: str, first: int, count: int) -> dict[int, str]:
    """Seed -> instruction of the first ``count`` seeds whose target can be clicked."""
    seeds = [first + offset for offset in range(SPARE * count)]
    usable = await read_instructions(devtools, page, seeds)
    if len(usable) < count:
        raise DesktopError(f"the page {page} has too few usable seeds from {first} on")
    return dict(list(usable.items())[:count])


def drift(files: dict[str, bytes], data: Path) -> list[str]:
    """One line for each difference between ``files`` and what lies under ``data``; empty if none."""
    here = {name: (data / name).read_bytes() for name in files if (data / name).is_file()}
    lines = [
        f"{name}: {'differs' if name in here else 'missing'}"
        for name, content in sorted(files.items())
        if here.get(name) != content
    ]
    return lines + [f"{name}: not made any more" for name in _extra(files, data)]


def write_files(files: dict[str, bytes], data: Path) -> None:
    """Write all files and remove those of earlier versions."""
    for name in _extra(files, data):
        (data / name).unlink()
    for name, content in files.items():
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def refuse_drift(files: dict[str, bytes], data: Path) -> None:
    """Raises ``UserError`` if a file under ``data`` is not what its page says."""
    lines = drift(files, data)
    if lines:
        raise UserError(f"{data}/{lines[0]} ({len(lines)} in all); run 'arpo make-tasks'.")


def _extra(files: dict[str, bytes], data: Path) -> list[str]:
    found = [*data.glob(f"tasks/{DOMAIN}/*.json"), *data.glob("splits/miniwob_*.json")]
    return sorted(name for path in found if (name := path.relative_to(data).as_posix()) not in files)
