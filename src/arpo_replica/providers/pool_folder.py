"""A folder in which pools of desktops announce themselves (``desktop.remote.pools: FOLDER``).

====================  =====================================================================================
``token``             what all of them ask for; readable by its owner alone
``pool_*.json``       one pool: URL, number of desktops, image, Slurm job. It is there while the pool lends
====================  =====================================================================================

Nobody reads times from it: whether a pool lives, its own answer tells.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import stat
from pathlib import Path
from typing import Any

from arpo_replica.base.errors import UserError
from arpo_replica.base.files import write_atomically

TOKEN = "token"  # noqa: S105  # a file's name


def make_secret(folder: Path) -> str:
    """The token of a folder of pools; the first one that asks makes it."""
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f".{TOKEN}.{os.getpid()}.{secrets.token_hex(4)}"
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
        os.link(made, folder / TOKEN)  # whole, and only if there is none
    except FileExistsError:
        pass
    finally:
        made.unlink()
    return read_secret(folder)


def read_secret(folder: Path) -> str:
    """The token of a folder of pools. Raises ``UserError`` without one, and if others can read it."""
    path = folder / TOKEN
    try:
        mode = path.stat().st_mode
        token = path.read_text().strip()
    except OSError:
        raise UserError(
            f"There is no readable token in {folder}; start a pool (arpo serve-desktops --announce {folder}) "
            "or correct desktop.remote.pools."
        ) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(f"Others can read the token {path}; remove it and all pools' files, and start again.")
    if not token or not token.isascii() or not token.isprintable():
        raise UserError(f"The file {path} holds no token; remove it and all pools' files, and start again.")
    return token


def announced(folder: Path) -> list[dict[str, Any]]:
    """The pools that have announced themselves, oldest first."""
    found = []
    for path in folder.glob("pool_*.json"):
        try:
            entry = json.loads(path.read_bytes())
            found.append((path.stat().st_mtime, path.name, {**entry, "url": str(entry["url"])}))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # withdrawn just now, or none of ours
    return [entry for _, _, entry in sorted(found, key=lambda item: item[:2])]


class Announcement:
    """A pool's own file; a context: it is withdrawn at the latest when the pool ends."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        """``facts``: what it holds, its ``url`` among them."""
        job = os.environ.get("SLURM_JOB_ID", "")
        self._path = folder / f"pool_{job or f'{socket.gethostname()}_{os.getpid()}'}.json"
        self._facts = {**facts, "host": socket.gethostname(), "job": job}

    def __enter__(self) -> Announcement:
        write_atomically(self._path, (json.dumps(self._facts, indent=1) + "\n").encode())
        return self

    def __exit__(self, *_: object) -> None:
        self.withdraw()

    def withdraw(self) -> None:
        """Nobody is to come any more."""
        self._path.unlink(missing_ok=True)
