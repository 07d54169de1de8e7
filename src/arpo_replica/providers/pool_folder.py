"""A folder in which pools of desktops announce themselves (``desktop.remote.pools: FOLDER``).

====================  =====================================================================================
``token``             what all of them ask for; readable by its owner alone
``pool_*.json``       one pool: URL, number of desktops, host, Slurm job, whether it is about to end
``submit.json``       how jobs with pools are submitted (``cluster.pools``), where the workflow starts them
====================  =====================================================================================

Nobody reads times from it: whether a pool lives, its own answer tells. Pools that Slurm ended (a lost node, a
time limit, a more important job) are replaced by whoever next asks for a desktop: so there is no one whose
death would leave a study without desktops, and nothing has to be told to go on or to stop.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import stat
from pathlib import Path
from typing import Any

from arpo_replica.base.errors import UserError
from arpo_replica.base.files import read_json, write_atomically
from arpo_replica.base.locks import lock
from arpo_replica.base.slurm import Ask, ask, describe_allocation

logger = logging.getLogger(__name__)
TOKEN = "token"  # noqa: S105  # a file's name
SUBMIT = "submit.json"
LIVING = {"PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "REQUEUED", "RESIZING"}
"""States of jobs that lend desktops, or will."""


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


def announced(folder: Path, *, draining: bool = False) -> list[dict[str, Any]]:
    """The pools that have announced themselves, oldest first; ``draining``: also those about to end."""
    found = []
    for path in folder.glob("pool_*.json"):
        try:
            entry = json.loads(path.read_bytes())
            if draining or not entry.get("draining"):
                found.append((path.stat().st_mtime, path.name, {**entry, "url": str(entry["url"])}))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # withdrawn just now, or none of ours
    return [entry for _, _, entry in sorted(found, key=lambda item: item[:2])]


class Announcement:
    """A pool's own file; a context, after which it is gone."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        """``facts``: what it holds, its ``url`` among them."""
        job = (describe_allocation() or {}).get("job", "")
        host = os.environ.get("SLURMD_NODENAME", socket.gethostname())
        self._path = folder / f"pool_{job or f'{host}_{os.getpid()}'}.json"
        self._facts = {**facts, "host": host, "job": job}

    def __enter__(self) -> Announcement:
        self.write(draining=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)

    def write(self, *, draining: bool) -> None:
        """``draining``: nobody is to come any more."""
        facts = {**self._facts, "draining": draining}
        write_atomically(self._path, (json.dumps(facts, indent=1) + "\n").encode())


def keep_up(folder: Path, asking: Ask = ask) -> int:
    """Submit the pools that are missing, if this is what the folder is for; their number.

    A pool that is about to end counts as missing already. Raises ``UserError`` with what Slurm says.
    """
    plan = read_json(folder / SUBMIT)
    if not plan:
        return 0
    with (folder / "lock").open("w") as file:
        try:
            lock(file, wait=False)
        except BlockingIOError:
            return 0  # another job does it just now
        # One line, such as "7_0 RUNNING", for each task of an array.
        shown = ("--noheader", "--array", "--name", plan["name"], "--format", "%F_%K %T")
        lines = asking("squeue", "--me", *shown).splitlines()
        living = [line.split()[0] for line in lines if line.split()[1] in LIVING]
        for entry in announced(folder, draining=True):
            if entry.get("job") and entry["job"] not in living:
                (folder / f"pool_{entry['job']}.json").unlink(missing_ok=True)  # it could not do so itself
            elif entry.get("draining"):
                living.remove(entry["job"])
        missing = int(plan["nodes"]) - len(living)
        if missing > 0:
            job = asking(*plan["sbatch"], f"--array=0-{missing - 1}", plan["script"]).strip()
            logger.info(f"Slurm job {job}: {missing} pools of {plan['per_node']} desktops")
        return max(0, missing)
