"""Which checkpoints of a training are whole."""

import json
from pathlib import Path

from arpo_replica.base.files import write_atomically

COMPLETE_FILE = "complete.json"
"""Written last into a checkpoint: its files and their sizes."""
REPLAY_FILE = "replay.json"
"""The replay store in a checkpoint of verl."""
PREFIX_VERL = "global_step_"
PREFIX_TRL = "checkpoint-"


def mark_complete(folder: Path) -> None:
    """Write the list of a checkpoint's files and sizes, last: a killed writer leaves part of one."""
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != COMPLETE_FILE
    }
    write_atomically(folder / COMPLETE_FILE, json.dumps(sizes, indent=1).encode())


def checkpoints(work: Path, prefix: str = PREFIX_VERL) -> list[int]:
    """Steps of the complete checkpoints: all files that ``complete.json`` lists, in their sizes."""
    found = []
    for path in work.glob(f"{prefix}*"):
        marker = path / COMPLETE_FILE
        if not marker.is_file():
            continue
        sizes = json.loads(marker.read_bytes())
        if all((path / name).is_file() and (path / name).stat().st_size == n for name, n in sizes.items()):
            found.append(int(path.name.removeprefix(prefix)))
    return sorted(found)
