"""Work that outlives a killed job: whose it is, and how it gives way to other work.

A folder of unfinished work holds ``identity.json``: everything that decides its result. The next job goes on
there only if its own identity is the same. Otherwise the folder is moved aside and kept, the newest one: it
may hold days of work, and the change that it gives way to may be a mistake.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arpo_replica.base.files import write_atomically

logger = logging.getLogger(__name__)

IDENTITY = "identity.json"
ASIDE = ".before"
"""What is added to the name of a folder that was moved aside."""
SHOWN = 3
"""Differences that the sentence names."""


def claim_folder(
    folder: Path, identity: dict[str, Any], *, beside: Sequence[Path] = (), adopt: bool = False
) -> None:
    """Make ``folder`` the work folder of ``identity`` (plain JSON: key -> value).

    What belongs to another identity, or (unless ``adopt``) does not say whose it is, is moved aside, with the
    folders ``beside`` that belong to the same work. One sentence says why and where it lies.
    """
    path = folder / IDENTITY
    identity = json.loads(json.dumps(identity))
    foreign = folder.exists() and not (adopt and not path.is_file())
    if foreign and (reason := _other(path, identity)):
        for one in (*beside, folder):  # the one with the identity last: a kill in between loses nothing
            move_aside(one)
        kept = folder.with_name(folder.name + ASIDE)
        logger.warning(f"{folder} {reason}; it is kept as {kept.name}, and the work begins anew.")
    if not path.is_file():
        write_atomically(path, (json.dumps(identity, indent=1) + "\n").encode())


def _other(path: Path, identity: dict[str, Any]) -> str:
    """Why the folder of ``path`` is that of other work; empty if it is not."""
    try:
        stored = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return "does not say what it was made with"
    differ = [
        f"{key} {json.dumps(stored.get(key))} -> {json.dumps(identity.get(key))}"
        for key in sorted({*stored, *identity})
        if stored.get(key) != identity.get(key)
    ]
    more = f" and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
    return f"was made with other values ({', '.join(differ[:SHOWN])}{more})" if differ else ""


def move_aside(path: Path) -> None:
    """Rename ``path`` by ``ASIDE``, in the place of an earlier one of that name. Nothing if there is none."""
    if path.exists():
        aside = path.with_name(path.name + ASIDE)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
