"""Makes the task files and splits of the MiniWoB++ pages: the same bytes on every machine.

The instruction of a task is what its page says, so a desktop (DevTools) is needed. Files are made once
and committed; ``drift`` says whether they still are what the pages say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.desktop.devtools import DevTools
from arpo_replica.suites.miniwob.pages import (
    DOMAIN,
    SPLIT_SEEDS,
    read_instructions,
    task_id,
    task_json,
    to_bytes,
)

PAIRS = dict[str, dict[str, list[int]]]
"""Split -> page -> seeds."""

_THRICE = (
    "click-test-2",
    "click-dialog-2",
    "click-tab",
    "click-color",
    "identify-shape",
    "focus-text-2",
    "click-widget",
    "click-button-sequence",
)
_TWICE = ("click-dialog", "focus-text", "click-collapsible", "enter-text")
_FIRST_FOUR = ("click-test-2", "click-color", "focus-text-2", "click-collapsible")

# Split -> (first seed that may be used, tasks per page). Seeds of the splits never meet.
_TRAIN, _TEST = 0, 500
PLAN: dict[str, tuple[int, dict[str, int]]] = {
    "train_4": (_TRAIN, dict.fromkeys(_FIRST_FOUR, 1)),
    "train_32": (_TRAIN, dict.fromkeys(_THRICE, 3) | dict.fromkeys(_TWICE, 2)),
    "test_in": (_TEST, dict.fromkeys(_THRICE, 2) | dict.fromkeys(_TWICE, 1)),
    "test_out": (
        _TEST,
        {"click-test": 3, "click-button": 3, "click-option": 2, "enter-text-dynamic": 2},
    ),
}
_SOURCES = {
    "train_4": "ours: stage 1 of training, one seed of four page types, all of them in train_32",
    "train_32": "ours: stage 2 of training, two or three seeds of each trained page type",
    "test_in": "ours: the trained page types with seeds that no training uses",
    "test_out": "ours: page types that neither training nor demonstrations show",
}


async def make_files(devtools: DevTools) -> dict[str, bytes]:
    """Path below ``data`` -> content of every task file and split, read from the pages."""
    chosen: dict[tuple[str, int], dict[int, str]] = {}
    needed: dict[tuple[str, int], int] = {}
    for start, pages in PLAN.values():
        for page, count in pages.items():
            needed[page, start] = max(needed.get((page, start), 0), count)
    for (page, start), count in needed.items():
        chosen[page, start] = await _usable(devtools, page, start, count)
    files: dict[str, bytes] = {}
    for (page, _), texts in chosen.items():
        for seed, text in texts.items():
            files[f"tasks/{DOMAIN}/{task_id(page, seed)}.json"] = to_bytes(task_json(page, seed, text))
    for name, (start, pages) in PLAN.items():
        ids = [
            task_id(page, seed) for page, count in pages.items() for seed in list(chosen[page, start])[:count]
        ]
        split: dict[str, Any] = {"name": f"miniwob_{name}", "source": _SOURCES[name], "tasks": {DOMAIN: ids}}
        files[f"splits/miniwob_{name}.json"] = to_bytes(split)
    return files


async def _usable(devtools: DevTools, page: str, first: int, count: int) -> dict[int, str]:
    """Seed -> instruction of the first ``count`` seeds whose target can be clicked."""
    seeds = [first + offset for offset in range(4 * count)]
    if seeds[-1] not in SPLIT_SEEDS:
        raise ValueError(f"seeds from {first} leave the range of task files")
    usable = await read_instructions(devtools, page, seeds)
    if len(usable) < count:
        raise DesktopError(f"the page {page} has too few usable seeds from {first} on")
    return dict(list(usable.items())[:count])


def drift(files: dict[str, bytes], data: Path) -> list[str]:
    """One line for each difference between ``files`` and what lies under ``data``; empty if none."""
    lines = [
        f"{name}: {'missing' if not (data / name).is_file() else 'differs'}"
        for name, content in sorted(files.items())
        if not (data / name).is_file() or (data / name).read_bytes() != content
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
